"""The Triton attention as machine code: what can be known of its speed without a GPU.

Kernels compile in a process of their own, since the interpreter is chosen when they are imported.
"""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, sys
from kernels.causal_attention import backward, decode, forward
from profiles.machine_code import TENSOR_CORE
from profiles.static import all_cases, compile_case, facts

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
        "clocks": facts(compiled, case["work"])["clocks"],
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
    assert slots["fwd-bf16-d128"] <= 9
    assert slots["bwd_dq-bf16-d128"] <= 10
    assert slots["bwd_dkdv-bf16-d128"] <= 15


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_bounds(compiled):
    """Clocks of a scheduler for 32 scores: what the unit that has most to do takes."""
    bounds = {name: case["clocks"] for name, case in compiled[1].items()}
    assert max(bounds["fwd-bf16-d64"].values()) <= 10
    assert max(bounds["fwd-bf16-d128"], key=bounds["fwd-bf16-d128"].get) == "tensor core"
    assert max(bounds["fwd-fp32-d64"].values()) <= 64  # of which the tensor cores 48
    assert max(bounds["fwd-fp32-d128"].values()) <= 150  # of which the tensor cores 96
    for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
        for headdim in (64, 128, 256):
            # 16 rows a key; a scheduler has a quarter of the 18.5 bytes a clock that an H200 gives a multiprocessor
            of_memory = 2 * 2 * headdim * itemsize / (18.5 / 4)
            assert max(bounds[f"decode-{dtype}-d{headdim}"].values()) < of_memory


CANDIDATES = """
import json, re, sys
from kernels.causal_attention import forward
from profiles.static import compile_case

for case in forward.static_candidates("sm_90"):
    if not re.search(sys.argv[1], case["name"]):
        continue
    compiled = compile_case(case, "sm_90")
    loop = [(opcode, rest.split()) for _, opcode, rest in compiled.body_instructions]
    exponentials = [i for i, (opcode, _) in enumerate(loop) if opcode == "MUFU"]
    # p v reads p from registers, q k' reads q from shared memory
    values = [i for i, (opcode, words) in enumerate(loop) if opcode == "HGMMA" and words[2].startswith("R")]
    print(json.dumps({
        "name": case["name"],
        "spills": compiled.spills,
        "shared": compiled.shared_bytes,
        "late": values[0] < exponentials[0] or values[-1] < exponentials[-1],
        "registers_moved": sum(opcode == "USETMAXREG" for _, opcode, _ in compiled.instructions),
        "copies": sum(opcode == "UTMALDG" for _, opcode, _ in compiled.instructions),
    }))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_variants():
    """Each does in machine code what it is for, without spills."""
    found = by_name(CANDIDATES, "bf16-d(64|128)-m128-n128-.*-s2.*")
    assert len(found) == 8
    for name, case in found.items():
        assert case["spills"] == 0, name
        assert case["shared"] <= SHARED_BYTES["sm_90"], name
        assert case["late"] == ("late-values" in name), name
        assert (case["copies"] > 0) == ("descriptors" in name), name
        assert (case["registers_moved"] > 0) == ("warp-specialize" in name), name
