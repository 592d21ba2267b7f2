"""The convolution's kernels as machine code: what can be known of their speed on a GPU with no GPU here."""

import pytest

from tests.kernels.machine_code import printed

SCRIPT = """
import json, sys
from profiles.static import all_cases, compile_case

found = []
for case in all_cases(sys.argv[1], ["causal_conv1d"]):
    c = compile_case(case, sys.argv[1])
    count = lambda name, kind="": sum(
        opcode == name and kind in operands for _, opcode, operands in c.instructions
    )
    found.append(
        dict(
            name=c.name, spills=c.spills, stack=c.stack_bytes, registers=c.registers, shared=c.shared_bytes,
            loads=count("LDG"), wide_loads=count("LDG", ".128"), stores=count("STG"), wide_stores=count("STG", ".128"),
            atomics=count("RED") + count("ATOM") + count("ATOMG"),
            slots=32 * case["num_warps"] * c.main_loop.total() / next(iter(case["work"].values())),
        )
    )
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["sm_80", "sm_90", "sm_100"])
def kernels(request):
    return printed(SCRIPT, request.param)[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_kernel_spills_or_adds_to_memory(kernels):
    stages = {kernel["name"].split("-")[0] for kernel in kernels}
    assert stages == {"causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"}
    for kernel in kernels:
        assert (kernel["spills"], kernel["stack"], kernel["atomics"]) == (0, 0, 0), kernel
        assert kernel["shared"] <= 4096, kernel


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tokens_move_in_wide_pieces(kernels):
    for kernel in kernels:
        if kernel["name"].startswith("causal_conv1d_fwd"):
            assert kernel["wide_loads"] >= 4, kernel
            # the rest keeps the final state
            assert kernel["stores"] - kernel["wide_stores"] <= 6, kernel
        elif kernel["name"].endswith("bwd-bf16-time-last"):
            assert (kernel["wide_loads"], kernel["wide_stores"]) >= (4, 2), kernel
        elif kernel["name"].endswith("width-inner"):
            assert (kernel["loads"], kernel["stores"]) == (4, 2), kernel


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_backward_is_near_the_bandwidth(kernels):
    """An H200 issues 42 warp instructions while the 6 bytes of 32 bf16 elements (x, dy, dx) pass at 4.8 TB/s."""
    for kernel in kernels:
        if kernel["name"].startswith("causal_conv1d_bwd"):
            assert kernel["slots"] <= (46 if "packed" not in kernel["name"] else 48), kernel
