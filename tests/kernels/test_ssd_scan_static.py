"""Mamba-2's scan in Triton as machine code: what can be known of its speed without a GPU.

Kernels compile in a process of their own, since the interpreter is chosen when they are imported.
"""

import pytest

from tests.kernels.machine_code import by_name, printed

SCRIPT = """
import json, sys
from kernels.ssd_scan import forward
from profiles.machine_code import TENSOR_CORE
from profiles.static import compile_case, facts

target = sys.argv[1]
for case in forward.static_cases():
    if target in case["targets"]:
        compiled = compile_case(case, target)
        print(json.dumps({
            "name": case["name"].removeprefix("ssd_"),
            "spills": compiled.spills,
            "instructions": len(compiled.instructions),
            "stack": compiled.stack_bytes,
            "shared": compiled.shared_bytes,
            "float_atomics": compiled.float_atomics,
            "tensor_core": sum(opcode in TENSOR_CORE for _, opcode, _ in compiled.instructions),
            "asynchronous": sum(opcode == "HGMMA" for opcode in compiled.body.elements()),
            "clocks": facts(compiled, case["work"])["clocks"],
            "held": facts(compiled)["occupancy"],
        }))
"""
CANDIDATES = """
import json
from kernels.ssd_scan import forward

for target in ("sm_80", "sm_90", "sm_100"):
    names = [case["name"] for case in forward.static_candidates(target)]
    configurations = [case["configuration"] for case in forward.static_candidates(target)]
    print(json.dumps([target, names, configurations]))
"""
# sm_80: also fits sm_86 and sm_89
SHARED_BYTES = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}


@pytest.fixture(scope="module")
def compiled(request):
    """(target, {name: facts}) of every default configuration for one target."""
    return request.param, by_name(SCRIPT, request.param)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_80", "sm_90", "sm_100"], indirect=True)
def test_default_configurations(compiled):
    target, cases = compiled
    assert {name for name in cases if not name.startswith("scan_fwd")} == {
        "steps-bf16-n128", "states-bf16-n128", "carry-bf16-n128",
    }  # fmt: skip
    for name, case in cases.items():
        assert case["spills"] == case["stack"] == 0, name
        assert case["instructions"] > 50, (
            name
        )  # what outgrows the tensor memory of sm_100 compiles to a trap
        assert case["shared"] <= SHARED_BYTES[target], name
        assert case["float_atomics"] == 0, name
        assert case["tensor_core"] > 0 or name.startswith(("steps", "carry")), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_clocks_of_32_tokens_of_a_channel(compiled):
    """Mamba-1's kernels take 130 issue slots for 16 states: 1,040 for 128."""
    _, cases = compiled
    for name in ("scan_fwd-bf16-n64", "scan_fwd-bf16-n128", "states-bf16-n128"):
        assert cases[name]["asynchronous"] > 0
        assert cases[name]["held"]["warps"] >= 8  # two programs, of which one can wait
    clocks = {name: max(case["clocks"].values()) for name, case in cases.items()}
    assert clocks["scan_fwd-bf16-n64"] <= 54
    assert clocks["scan_fwd-bf16-n128"] <= 80
    assert clocks["states-bf16-n128"] <= 42
    assert cases["scan_fwd-bf16-n128"]["clocks"]["issue"] <= 38


def test_candidates():
    for target, names, configurations in printed(CANDIDATES):
        assert len(names) == len(set(names)) >= 3, target
        for config in configurations:
            assert config.keys() == configurations[0].keys(), target
