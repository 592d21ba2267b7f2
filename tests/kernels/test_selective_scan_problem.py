"""Sizes, names and costs of the problems of the scan."""

import pytest
import torch

from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.problem import StateUpdateProblem
from tests.kernels.scans import PROBLEMS


def test_problem_costs():
    problem = Problem(batch=2, seqlen=10, dim=8, dstate=4)
    assert problem.elements() == 160
    assert problem.exps() == 160 * (4 + 2 + 2)
    assert problem.flops() == 160 * (7 * 4 + 11)
    states = 2 * 8 * 4
    assert problem.bytes(torch.bfloat16) == 2 * (20 * (4 * 8 + 2 * 4)) + 4 * (states + 8 * 6)
    assert str(problem) == "b2-l10-d8-n4"
    assert len({str(p) for p in PROBLEMS}) == len(PROBLEMS)
    with pytest.raises(ValueError, match="layout"):
        Problem(layout="rows")


def test_backward_costs():
    problem = Problem(batch=2, seqlen=10, dim=8, dstate=4, has_initial_state=True)
    assert problem.backward_exps() == problem.exps()
    assert problem.backward_flops() == 160 * (21 * 4 + 23)
    states, weights = 2 * 2 * 8 * 4, 2 * 8 * 6
    per_token = 7 * 8 + 4 * 4  # u, delta, z, dy, du, ddelta, dz; B, C, dB, dC
    assert problem.backward_bytes(torch.bfloat16) == 2 * 20 * per_token + 4 * (states + weights)
    plain = Problem(2, 10, 8, 4, has_z=False, has_D=False, has_bias=False, delta_softplus=False)
    assert plain.backward_flops() == 160 * (19 * 4 + 4)
    assert plain.backward_bytes() == 4 * (20 * (5 * 8 + 4 * 4) + 2 * 8 * 4)


def test_state_update_costs():
    problem = StateUpdateProblem(batch=3, dim=8, dstate=4)
    assert str(problem) == "b3-d8-n4"
    assert str(StateUpdateProblem(1, 8, 4, 2, has_z=False)) == "b1-d8-n4-g2-no_z"
    assert problem.exps() == 24 * (4 + 2 + 2)
    assert problem.flops() == 24 * (7 * 4 + 11)
    state = 3 * 8 * 4
    assert problem.bytes(torch.bfloat16) == 2 * 3 * (4 * 8 + 2 * 4) + 4 * (2 * state + 8 * 6)
    inputs = problem.inputs(torch.bfloat16)
    assert inputs["state"].dtype == torch.float32
    assert inputs["x"].shape == inputs["dt"].shape == inputs["z"].shape == (3, 8)
    assert inputs["B"].shape == inputs["C"].shape == (3, 1, 4)
    assert all(t.is_contiguous() for t in inputs.values() if isinstance(t, torch.Tensor))
