"""The Triton backward as machine code. Kernels compile in a process of their own, as the forward's do."""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, re, sys
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.backward import static_cases
from kernels.selective_scan.backward_kernels import RUN_UNROLL
from profiles.static import compile_case

def loops(code):
    "Addresses of (start, end), by start; of an unrolled loop of one trip nothing is left."
    found = []
    for at, opcode, operands in code.instructions:
        jump = re.search("0x([0-9a-f]+)", operands) if opcode == "BRA" else None
        if jump and int(jump.group(1), 16) < at:
            found.append((int(jump.group(1), 16), at))
    return sorted(found)

def inside(found, outer):
    return [loop for loop in found if loop != outer and outer[0] <= loop[0] and loop[1] <= outer[1]]

def size(code, loop, opcodes=None):
    return sum(loop[0] <= at <= loop[1] and (not opcodes or op in opcodes) for at, op, _ in code.instructions)

def issued(code, found, loop, trips):
    "Slots of all trips of a loop; trips: those of it and of the loops inside, the outermost first."
    inner = inside(found, loop)
    if not inner:
        return size(code, loop) * trips[-1]
    (nested,) = [one for one in inner if not any(one in inside(inner, other) for other in inner)]
    return (size(code, loop) - size(code, nested)) * trips[0] + issued(code, found, nested, trips[1:])

for case in static_cases():
    if len(sys.argv) > 2 and not re.search(sys.argv[2], case["name"]):
        continue
    code = compile_case(case, sys.argv[1])
    lanes = case["work"]["channels"] / 32
    found = loops(code)
    longest = max(found, key=lambda loop: loop[1] - loop[0])
    if "_bwd-" in case["name"]:
        known = {case["kernel"].arg_names[path[0]]: value for path, value in case["constexprs"].items()}
        chunks, passes = CHECKPOINT // known["TOKENS"], known["PADDED"] // known["STATES"]
        # of a segment: the steps, the way forward, and the chunks with their groups of states
        steps, run, back = [
            loop for loop in inside(found, longest)
            if not any(loop in inside(found, other) for other in inside(found, longest))
        ]
        trips = passes * (chunks - 1)
        on_way = [passes] * (passes > 1) + [trips] + [trips * known["TOKENS"] // RUN_UNROLL.value]
        groups = known["PADDED"] // known["GROUP"]
        slots = size(code, longest) - sum(size(code, loop) for loop in (steps, run, back))
        slots += issued(code, found, steps, [chunks]) + issued(code, found, run, on_way)
        slots += issued(code, found, back, [chunks, chunks * groups])
        slots /= CHECKPOINT * lanes
        spills = sum(size(code, loop, ("LDL", "STL")) for loop in (steps, run, back))
    else:
        spills = code.spills
        slots = size(code, longest) / case["work"]["tokens"] / lanes
    print(json.dumps({
        "name": case["name"],
        "spills": code.spills,
        "spills in loops over tokens": spills,
        "slots": slots,
        "shared": code.shared_bytes,
        "atomics": [op for _, op, _ in code.instructions if op in ("RED", "ATOM", "ATOMG", "ATOMS")],
    }))
"""


@pytest.fixture(scope="module")
def compiled(request):
    """{name: facts} of the default configurations for one target."""
    return by_name(SCRIPT, *request.param)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "compiled", [["sm_80", "fp32$|split"], ["sm_90"], ["sm_100", "fp32$|split"]], indirect=True
)
def test_no_spills_no_atomics(compiled):
    assert len(compiled) >= 3
    for name, case in compiled.items():
        assert case["spills"] == case["shared"] == 0, name
        assert case["atomics"] == [], name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", [["sm_90"]], indirect=True)
def test_issue_slots_per_token_and_32_channels(compiled):
    """All kernels, every trip of every loop counted."""
    slots = {name.removeprefix("selective_scan_"): case["slots"] for name, case in compiled.items()}
    assert 300 < slots["bwd-fp32"] <= 400
    assert slots["bwd-fp32-n32-ragged"] <= 2 * 400
    assert slots["adjoint-bf16-split"] + slots["bwd-bf16-split"] <= 540
