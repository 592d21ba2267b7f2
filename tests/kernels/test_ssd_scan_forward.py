"""Mamba-2's scan as matrix products in Triton: accuracy, segments, dtypes, and what is left to other kernels."""

import dataclasses

import pytest
import torch

from kernels.implementations import recording
from kernels.ssd_scan.forward import choose_segments, plan
from kernels.ssd_scan.op import ssd_scan
from kernels.ssd_scan.problem import SsdScanProblem as Problem
from kernels.ssd_scan.reference import ssd_scan_ref
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [
    Problem(2, 70, 4, 16, 8, has_initial_state=True),  # a chunk and a part of one
    Problem(1, 1, 2, 8, 16),
    Problem(1, 17, 6, 5, 3, ngroups=3, has_D=False, has_bias=False),  # nothing is a power of two
    Problem(1, 128, 2, 20, 64, ngroups=2, dt_softplus=False, has_initial_state=True),
    Problem(1, 150, 3, 64, 24),
]
# Triton's interpreter truncates float32 to bfloat16 where a GPU rounds: bfloat16 is proven on a GPU
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def wide(inputs):
    return {k: t.double() if isinstance(t, torch.Tensor) else t for k, t in inputs.items()}


def in_segments(inputs, segments):
    y, last_state, launches = plan(**inputs, segments=segments)
    for kernel, grid, args in launches:
        kernel[grid](**args)
    return y, last_state


def assert_defined(inputs, found):
    gold, baseline = ssd_scan_ref(**wide(inputs)), ssd_scan_ref(**inputs)
    assert_as_accurate("y", found[0], baseline[0], gold[0])
    assert_as_accurate("last_state", found[1], baseline[1], gold[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_accuracy(problem, dtype, device):
    inputs = problem.inputs(dtype, device)
    with recording() as kernels:
        found = ssd_scan(**inputs, return_last_state=True, impl="triton")
    assert_defined(inputs, found)
    assert kernels == {"ssd_scan": "triton.ssd_scan_fwd"}
    again = ssd_scan(**inputs, return_last_state=True, impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("segments", [2, 3])
def test_segments(segments, dtype, device):
    """The last segment is ragged, or the only one that is."""
    for problem in (PROBLEMS[0], PROBLEMS[4]):
        inputs = problem.inputs(dtype, device)
        assert_defined(inputs, in_segments(inputs, segments))


def test_weights_have_two_parts_in_half_precision(device):
    """Rounded once they err more than y may, where few tokens make a y and D x does not hide them."""
    problem = Problem(1, 67, 6, 8, 16, ngroups=3, has_D=False, has_bias=False)
    inputs = problem.inputs(torch.float16, device)
    assert_defined(inputs, ssd_scan(**inputs, return_last_state=True, impl="triton"))


def test_choice_of_segments():
    assert choose_segments(programs=24, chunks=64, wanted=264) == 11
    assert choose_segments(programs=24, chunks=4, wanted=264) == 4
    assert choose_segments(programs=192, chunks=64, wanted=264) == 1
    assert choose_segments(programs=2, chunks=64, wanted=0) == 1


def test_two_parts_are_the_whole(device):
    inputs = PROBLEMS[0].inputs(device=device)
    parts, state = [], inputs["initial_state"]
    for time in (slice(0, 5), slice(5, None)):
        part = {k: t[:, time] if k in ("x", "dt", "B", "C") else t for k, t in inputs.items()}
        part["initial_state"] = state
        y, state = ssd_scan(**part, return_last_state=True, impl="triton")
        parts.append(y)
    assert_defined(inputs, (torch.cat(parts, 1), state))


@pytest.mark.parametrize("step", [0.0, 1e-6, 1e3])
def test_extreme_steps(step, device):
    inputs = dataclasses.replace(PROBLEMS[3], seqlen=40).inputs(device=device)
    inputs["dt"].fill_(step)
    assert_defined(inputs, ssd_scan(**inputs, return_last_state=True, impl="triton"))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_large_step_costs_the_next_ones_no_digits(dtype, device):
    """It wipes the state, and what follows starts anew: sums that hold it would round the small steps away."""
    inputs = dataclasses.replace(PROBLEMS[3], seqlen=40, has_D=False).inputs(dtype, device)
    inputs["dt"].fill_(1e-2)
    inputs["dt"][:, 7] = 6e4
    inputs["B"] *= 1e-2  # within the range of float16
    inputs["dt"][:, 21] = 4.0
    inputs["x"][:, 7] = 0
    assert_defined(inputs, ssd_scan(**inputs, return_last_state=True, impl="triton"))


def test_any_strides(device):
    inputs = PROBLEMS[0].inputs(device=device)
    expected = ssd_scan(**inputs, return_last_state=True, impl="triton")
    spread = lambda t: torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]
    outer = lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)
    for change in (spread, outer):
        names = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")
        strided = {k: change(t) if k in names and t.dim() > 1 else t for k, t in inputs.items()}
        found = ssd_scan(**strided, return_last_state=True, impl="triton")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_operands_of_several_dtypes(device):
    """Products have the widest dtype of x, B and C, and y has that of x."""
    inputs = PROBLEMS[2].inputs(torch.float16, device)
    inputs |= {name: inputs[name].float() for name in ("B", "dt")}
    y, last_state = ssd_scan(**inputs, return_last_state=True, impl="triton")
    gold, baseline = ssd_scan_ref(**wide(inputs)), ssd_scan_ref(**inputs)
    assert y.dtype == torch.float16
    assert_as_accurate("y", y, baseline[0], gold[0])
    assert_as_accurate("last_state", last_state, baseline[1], gold[1])


def test_what_is_left_to_the_kernels_of_mamba_1(device):
    inputs = Problem(1, 5, 2, 8, 65).inputs(device=device)
    with recording() as kernels:
        found = ssd_scan(**inputs, return_last_state=True, impl="triton")
    assert_defined(inputs, found)
    assert kernels["ssd_scan"].startswith("triton.selective_scan")
    inputs = PROBLEMS[2].inputs(device=device)
    inputs["x"].requires_grad_()
    with recording() as kernels:
        ssd_scan(**inputs, impl="triton").sum().backward()
    assert inputs["x"].grad is not None
    assert kernels["ssd_scan"].startswith("triton.selective_scan")


def test_float64_is_refused(device):
    with pytest.raises(NotImplementedError, match="got float64; use impl='torch'"):
        ssd_scan(**PROBLEMS[1].inputs(torch.float64, device), impl="triton")


def test_registered_operator(device):
    operands = tuple(PROBLEMS[1].inputs(device=device).values())
    torch.library.opcheck(
        torch.ops.crossover.ssd_scan, operands, test_utils=("test_schema", "test_faketensor")
    )
