"""The Triton attention as machine code: what can be known of its speed without a GPU.

Kernels compile in a process of their own, since the interpreter is chosen when they are imported.
"""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, sys
from kernels.causal_attention import backward, decode, forward
from profiles.machine_code import TENSOR_CORE
from profiles.static import all_cases, compile_case

for case in all_cases(sys.argv[1], ["causal_attention"]):
    compiled = compile_case(case, sys.argv[1])
    on_tensor_cores = lambda loop: sum(n for opcode, n in loop.items() if opcode in TENSOR_CORE)
    loops = compiled.innermost_loops
    most = max(map(on_tensor_cores, loops), default=0)
    trip = min((loop.total() for loop in loops if on_tensor_cores(loop) == most), default=0)
    print(json.dumps({
        "name": case["name"].removeprefix("causal_attention_"),
        "spills": compiled.spills,
        "stack": compiled.stack_bytes,
        "shared": compiled.shared_bytes,
        "float_atomics": compiled.float_atomics,
        "tensor_core": most,
        "asynchronous": sum(opcode == "HGMMA" for _, opcode, _ in compiled.instructions),
        "waits": sum(
            opcode == "WARPGROUP" and "DEPBAR" in rest for _, opcode, rest in compiled.instructions
        ),
        # of 32 scores, in the loop without a mask
        "slots": trip * case["num_warps"] * 32 / case["work"].get("scores", 1),
    }))
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
    assert len(cases) >= 28
    for name, case in cases.items():
        assert case["spills"] == case["stack"] == 0, name
        assert case["shared"] <= SHARED_BYTES[target], name
        assert case["float_atomics"] == 0, name
        assert case["tensor_core"] > 0 or name.startswith("combine"), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_products_are_asynchronous(compiled):
    """ptxas can serialise them, with a wait after each; here several are on their way."""
    for name, case in compiled[1].items():
        if name.startswith(("fwd", "bwd")) and "bf16" in name:
            assert case["asynchronous"] > 0, name
            assert 3 * case["waits"] <= case["asynchronous"], name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_issue_slots_of_32_scores(compiled):
    """A multiprocessor issues 4 a clock; at headdim 128, one product of 32 scores takes its tensor cores 2 clocks."""
    slots = {name: case["slots"] for name, case in compiled[1].items()}
    assert slots["fwd-bf16-d64"] <= 11
    assert slots["fwd-bf16-d128"] <= 12
    assert slots["bwd_dq-bf16-d128"] <= 10
    assert slots["bwd_dkdv-bf16-d128"] <= 15
