"""The kernels of the attention's statistics as machine code: what can be known of their speed without a GPU."""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, sys
from profiles.machine_code import TENSOR_CORE
from profiles.static import all_cases, compile_case

for case in all_cases(sys.argv[1], ["attention_statistics"]):
    compiled = compile_case(case, sys.argv[1])
    loops = [
        loop.total() for loop in compiled.innermost_loops if any(op in TENSOR_CORE for op in loop)
    ]
    print(json.dumps({
        "name": case["name"].removeprefix("attention_statistics_"),
        "spills": compiled.spills,
        "stack": compiled.stack_bytes,
        "shared": compiled.shared_bytes,
        "float_atomics": compiled.float_atomics,
        # of 32 scores, in every loop with a product, in order of address
        "slots": [n * case["num_warps"] * 32 / case["work"]["scores"] for n in loops],
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
    assert len(cases) == 12
    for name, case in cases.items():
        assert case["spills"] == case["stack"] == 0, name
        assert case["shared"] <= SHARED_BYTES[target], name
        assert case["float_atomics"] == 0, name
        assert len(case["slots"]) == (3 if name.startswith("rows") else 2), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", ["sm_90"], indirect=True)
def test_issue_slots_of_32_scores(compiled):
    """A multiprocessor issues 4 a clock; attention's forward takes 11. The first walk counts every round of the top k.

    Loops: rows of all keys, rows on the diagonal, search for the span; keys on the diagonal, keys of all queries.
    """
    slots = {name: case["slots"] for name, case in compiled[1].items()}
    for headdim in (64, 128):
        rows, _, search = slots[f"rows-bf16-d{headdim}"]
        _, received = slots[f"received-bf16-d{headdim}"]
        assert rows <= 42
        assert search <= 9
        assert received <= 8
