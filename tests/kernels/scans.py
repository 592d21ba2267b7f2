"""What the tests of the scan share: problems, implementations and dtypes, and the comparison with the definition."""

import pytest
import torch

from kernels.selective_scan.forward import plan, run
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.reference import selective_scan_ref
from tests.tolerance import assert_as_accurate

PROBLEMS = [
    Problem(2, 17, 40, 16, has_initial_state=True),  # everything, one token past a tile and a chunk
    Problem(1, 1, 3, 1),  # one token, one state
    Problem(1, 2, 7, 5, has_z=False),  # odd channels and states, fewer tokens than are loaded ahead
    Problem(2, 9, 24, 6, ngroups=3, has_D=False),
    Problem(1, 7, 21, 16, ngroups=3, layout="time_last", has_bias=False),
    Problem(
        1, 6, 5, 40, delta_softplus=False, has_initial_state=True
    ),  # more states than registers
    Problem(1, 4, 4, 64, layout="time_last", has_bias=False, has_D=False, has_z=False),
]
OURS = ["torch", "cpu", "triton"]
# Triton's interpreter truncates float32 to bfloat16 where a GPU rounds: bfloat16 is proven on a GPU
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def impls_and_dtypes():
    for impl in OURS:
        for dtype in DTYPES:
            marks = [pytest.mark.gpu] if (impl, dtype) == ("triton", torch.bfloat16) else []
            yield pytest.param(impl, dtype, id=f"{impl}-{str(dtype)[6:]}", marks=marks)
    for impl in ("torch", "cpu"):
        yield pytest.param(impl, torch.float64, id=f"{impl}-float64")


def home(impl, device):
    return "cpu" if impl == "cpu" else device


def widened(inputs):
    """The inputs with every floating tensor in float64."""
    wide = lambda v: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
    return {k: wide(v) for k, v in inputs.items()}


def definition(inputs):
    """(gold, baseline): the reference in float64 and in the dtype of the inputs; each (y, last_state, states)."""
    return selective_scan_ref(**widened(inputs)), selective_scan_ref(**inputs)


def assert_defined(inputs, actual):
    """`actual` = (y, last_state), or with states, is as accurate as the reference."""
    gold, baseline = definition(inputs)
    assert len(actual) == 2 + (gold[2] is not None)
    for name, *three in zip(("y", "last_state", "states"), actual, baseline, gold, strict=False):
        if three[-1].numel() == 0:
            assert three[0].shape == three[-1].shape
        else:
            assert_as_accurate(name, *three)


def triton_in_segments(inputs, segments):
    """What the Triton scan gives when its time is cut into `segments`: (y, last_state), or with states."""
    y, last_state, states, launches = plan(**inputs, segments=segments)
    run(launches, inputs["u"])
    return (y, last_state) if states is None else (y, last_state, states)
