"""The Triton backward as machine code. Kernels compile in a process of their own, as the forward's do."""

import pytest

from tests.kernels.machine_code import by_name

SCRIPT = """
import json, re, sys
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.backward import static_cases
from profiles.static import compile_case

def loops(code):
    "Addresses of (start, end), the outermost first."
    found = []
    for at, opcode, operands in code.instructions:
        jump = re.search("0x([0-9a-f]+)", operands) if opcode == "BRA" else None
        if jump and int(jump.group(1), 16) < at:
            found.append((int(jump.group(1), 16), at))
    return sorted(found, key=lambda loop: loop[0] - loop[1])

def size(code, loop, opcodes=None):
    return sum(loop[0] <= at <= loop[1] and (not opcodes or op in opcodes) for at, op, _ in code.instructions)

for case in static_cases():
    if len(sys.argv) > 2 and not re.search(sys.argv[2], case["name"]):
        continue
    code = compile_case(case, sys.argv[1])
    work = case["work"]
    lanes = work["channels"] / 32
    found = loops(code)
    if "_bwd-" in case["name"]:
        # per segment: what is outside of the inner loops, the chunks on the way forward, all chunks on the way back
        segment, *inner = found
        inner = sorted(inner, key=lambda loop: -size(code, loop))[:2]
        spills = sum(size(code, loop, ("LDL", "STL")) for loop in inner)
        back, forward = (size(code, loop) for loop in inner)
        chunks = CHECKPOINT // work["tokens"]
        once = size(code, segment) - back - forward
        slots = (once + (chunks - 1) * forward + chunks * back) / CHECKPOINT / lanes
    else:
        spills = code.spills
        slots = size(code, found[0]) / work["tokens"] / lanes
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
    "compiled", [["sm_80", "split"], ["sm_90"], ["sm_100", "split"]], indirect=True
)
def test_loops_over_tokens_do_not_spill(compiled):
    """A few registers are saved around them, once in a segment or once in all: less than one slot in a hundred."""
    assert len(compiled) >= 2
    for name, case in compiled.items():
        assert case["spills in loops over tokens"] == case["shared"] == 0, name
        assert case["atomics"] == [], name
        assert case["spills"] <= (8 if "n32" not in name else 48), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled", [["sm_90"]], indirect=True)
def test_issue_slots_per_token_and_32_channels(compiled):
    """dstate 16, all kernels, every trip of every loop counted."""
    slots = {name.removeprefix("selective_scan_"): case["slots"] for name, case in compiled.items()}
    assert 300 < slots["bwd-fp32"] <= 500
    assert slots["adjoint-bf16-split"] + slots["bwd-bf16-split"] <= 600
