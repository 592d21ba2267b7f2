"""The Triton scan as machine code: what can be known of its speed without a GPU.

Kernels compile in a process of their own, since the interpreter is chosen when they are imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from kernels.selective_scan.forward import static_cases
from profiles.static import compile_case

for case in static_cases():
    compiled = compile_case(case, sys.argv[1])
    work, loop = case["work"], compiled.main_loop
    print(json.dumps({
        "name": case["name"],
        "spills": compiled.spills,
        "stack": compiled.stack_bytes,
        "registers": compiled.registers,
        "shared": compiled.shared_bytes,
        "slots": loop.total() * 32 / (work["tokens"] * work["channels"]) if work else 0,
        "opcodes": sorted(loop),
        "exponentials": loop["MUFU"] * 32 / (work["tokens"] * work["channels"]) if work else 0,
    }))
"""


@pytest.fixture(scope="module")
def compiled(request):
    """{name: facts} of every default configuration for one target."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, request.param], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {case["name"]: case for case in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["sm_80", "sm_90", "sm_100"], indirect=True)
def test_no_default_configuration_spills(compiled):
    assert len(compiled) == 6
    for name, case in compiled.items():
        assert case["spills"] == case["stack"] == 0, name
        assert case["registers"] <= 208, name


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_issue_slots_per_token_and_32_channels(compiled):
    """dstate 16: one pass within 130, the two passes of a split sequence within 240."""
    slots = {name.removeprefix("selective_scan_"): case["slots"] for name, case in compiled.items()}
    assert 80 < slots["fwd-fp32"] <= 130
    assert 80 < slots["fwd-bf16-split"] <= 130
    assert slots["states-bf16-split"] > 64
    assert slots["states-bf16-split"] + slots["fwd-bf16-split"] <= 240
    assert slots["fwd-bf16-short"] <= 150  # unpacks B and C itself


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_the_loop_stays_in_its_registers(compiled):
    """No shuffle, barrier or shared memory, and no exponential more than the definition asks for."""
    for name, case in compiled.items():
        assert case["shared"] == 0, name
        assert not {"SHFL", "BAR", "LDS", "STS", "WARPSYNC"} & set(case["opcodes"]), name
    # 16 states, softplus, and two for the gate; without outputs there is no gate
    assert compiled["selective_scan_fwd-fp32"]["exponentials"] == 16 + 1 + 2
    assert compiled["selective_scan_states-bf16-split"]["exponentials"] == 16 + 1
