"""Gradients of the scan in plain PyTorch: `torch` against the reference, and the reference against differences."""

import functools

import pytest
import torch

from kernels.selective_scan.portable import scan_blocks
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.reference import selective_scan_ref
from tests.kernels.scans import assert_defined, widened
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

OPERANDS = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]


def leaves(inputs):
    return [inputs[name].requires_grad_() for name in OPERANDS if inputs[name] is not None]


@pytest.mark.parametrize("chunks", [1, 2, 32])
@pytest.mark.parametrize(
    "problem",
    [
        Problem(2, 35, 12, 4, ngroups=2, has_initial_state=True),
        Problem(1, 5, 6, 3, layout="time_last", has_z=False, has_D=False, has_bias=False),
    ],
    ids=str,
)
def test_gradients_of_torch(problem, chunks):
    def gradients(scan, inputs):
        y, last_state, _ = scan(**inputs)
        gen = torch.Generator().manual_seed(1)
        dy, dlast = (torch.randn(t.shape, generator=gen).to(t.dtype) for t in (y, last_state))
        return torch.autograd.grad([y, last_state], leaves(inputs), [dy, dlast])

    def inputs(wide=False):
        return widened(problem.inputs()) if wide else problem.inputs()

    first = inputs()
    leaves(first)
    blocks = functools.partial(scan_blocks, chunks=chunks)
    assert_defined_in_blocks(inputs(), blocks)
    actual = gradients(blocks, first)
    wide, same = inputs(wide=True), inputs()
    leaves(wide), leaves(same)
    for name, *three in zip(
        [n for n in OPERANDS if first[n] is not None],
        actual, gradients(selective_scan_ref, same), gradients(selective_scan_ref, wide),
        strict=True,
    ):  # fmt: skip
        assert_as_accurate(f"d{name}", *three, slack=3.0)


def assert_defined_in_blocks(inputs, blocks):
    with torch.no_grad():
        assert_defined(inputs, blocks(**inputs)[:2])


def test_gradcheck_of_the_reference():
    problem = Problem(1, 3, 4, 2, ngroups=2, has_initial_state=True)
    inputs = problem.inputs(torch.float64)
    operands = [inputs[name].requires_grad_() for name in OPERANDS]

    def scan(*operands):
        named = dict(zip(OPERANDS, operands, strict=True))
        return selective_scan_ref(**named, delta_softplus=True)[:2]

    assert torch.autograd.gradcheck(scan, operands)
