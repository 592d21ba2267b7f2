"""The Triton scan and update as machine code: what can be known of their speed without a GPU.

Kernels compile in a process of their own, since the interpreter is chosen when they are imported.
"""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, math, sys
from kernels.selective_scan import decode, forward
from profiles.static import compile_case

for case in (*forward.static_cases(), *decode.static_cases()):
    compiled = compile_case(case, sys.argv[1])
    work, loop = case["work"], compiled.body
    units = math.prod(work.values()) / case["num_warps"]
    print(json.dumps({
        "name": case["name"],
        "spills": compiled.spills,
        "stack": compiled.stack_bytes,
        "registers": compiled.registers,
        "shared": compiled.shared_bytes,
        "slots": loop.total() * 32 / units if work else 0,
        "opcodes": sorted(loop),
        "exponentials": loop["MUFU"] * 32 / units if work else 0,
        "wide": sum(op in ("LDG", "STG") and ".128" in rest for _, op, rest in compiled.instructions),
    }))
"""


@pytest.fixture(scope="module")
def compiled(request):
    """{name: facts} of every default configuration for one target."""
    return by_name(SCRIPT, request.param)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_80", "sm_90", "sm_100"], indirect=True)
def test_no_default_configuration_spills(compiled):
    assert len(compiled) == 14
    for name, case in compiled.items():
        assert case["spills"] == case["stack"] == 0, name
        assert case["registers"] <= 255, name  # which leave two warps to each scheduler


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_issue_slots_per_token_and_32_channels(compiled):
    """dstate 16: one pass within 130, the two passes of a split sequence within 240."""
    slots = {name.removeprefix("selective_scan_"): case["slots"] for name, case in compiled.items()}
    assert 80 < slots["fwd-fp32"] <= 130
    assert 80 < slots["fwd-bf16-split"] <= 130
    assert slots["states-bf16-split"] > 64
    assert slots["states-bf16-split"] + slots["fwd-bf16-split"] <= 240
    assert slots["fwd-bf16-short"] <= 150  # unpacks B and C itself
    # what packed sequences and states for a backward add lies outside of the loop
    assert 80 < slots["fwd-bf16-train"] <= 130
    assert slots["states-bf16-packed-split"] + slots["fwd-bf16-packed-split"] <= 240


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_the_loop_stays_in_its_registers(compiled):
    """No shuffle, barrier or shared memory, and no exponential more than the definition asks for."""
    for name, case in compiled.items():
        if "state_update" in name:
            continue
        assert case["shared"] == 0, name
        assert not {"SHFL", "BAR", "LDS", "STS", "WARPSYNC"} & set(case["opcodes"]), name
    # 16 states, softplus, and two for the gate, of which two are polynomials; without outputs there is no gate
    assert compiled["selective_scan_fwd-fp32"]["exponentials"] == 16 + 1 + 2 - 2
    assert compiled["selective_scan_states-bf16-split"]["exponentials"] == 16 + 1 - 3
    for name in (
        "fwd-fp32",
        "fwd-bf16-split",
        "states-bf16-split",
    ):  # rows of B and C, 16 bytes a load
        assert compiled[f"selective_scan_{name}"]["wide"] >= 4 * 8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_an_update_moves_states_in_full_width(compiled):
    """16 bytes a lane, each state once in and once out, whichever axis of the states is dense."""
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        for layout in ("states-inside", "channels-inside"):
            case = compiled[f"selective_state_update-{dtype}-{layout}"]
            # 512 states of a warp: in, out, and their rates in float32
            assert case["wide"] >= 2 * size + 4
            assert case["slots"] <= 30
            assert case["exponentials"] <= 1.25  # one a state, and four a channel of 16
