"""Mamba-2's scan: every implementation against the definition in float64, and what needs no tolerance."""

import dataclasses

import pytest
import torch

from kernels.implementations import recording
from kernels.selective_scan.op import selective_state_update
from kernels.ssd_scan.op import ssd_scan
from kernels.ssd_scan.problem import SsdScanProblem as Problem
from tests.kernels.scans import home
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [
    Problem(2, 150, 4, 16, 8, has_initial_state=True),
    Problem(1, 64, 2, 5, 3),
    Problem(1, 1, 2, 8, 16),
    Problem(1, 67, 6, 8, 16, ngroups=3, has_D=False, has_bias=False),
    Problem(1, 33, 3, 7, 2, dt_softplus=False, has_initial_state=True),
]
IMPLS = ["torch", "cpu"]
INTERPRETED = Problem(1, 17, 2, 8, 4, ngroups=2, has_initial_state=True)


def wide(inputs):
    return {k: t.double() if isinstance(t, torch.Tensor) else t for k, t in inputs.items()}


def assert_defined(inputs, found):
    gold = ssd_scan(**wide(inputs), return_last_state=True, impl="reference")
    baseline = ssd_scan(**inputs, return_last_state=True, impl="reference")
    for name, *values in zip(("y", "last_state"), found, baseline, gold, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_accuracy(problem, impl, dtype, device):
    inputs = problem.inputs(dtype, home(impl, device))
    found = ssd_scan(**inputs, return_last_state=True, impl=impl)
    assert_defined(inputs, found)
    assert torch.equal(ssd_scan(**inputs, impl=impl), found[0])


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_transformers_computes_the_same(problem, device):
    """To torch's own tolerance: its sums in chunks of 256 tokens err more than the recurrence does."""
    inputs = problem.inputs(device=device)
    with recording() as kernels:
        found = ssd_scan(**inputs, return_last_state=True, impl="hf")
    expected = ssd_scan(**inputs, return_last_state=True, impl="reference")
    torch.testing.assert_close(found, expected)
    assert kernels["ssd_scan"] == "transformers.mamba2_chunk_scan"


def test_accuracy_of_triton(device):
    inputs = INTERPRETED.inputs(device=device)
    with recording() as kernels:
        found = ssd_scan(**inputs, return_last_state=True, impl="triton")
    assert_defined(inputs, found)
    assert kernels["ssd_scan"] == "triton.ssd_scan_fwd"


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_gradients(impl, device):
    inputs = PROBLEMS[0].inputs(device=home(impl, device))
    leaves = [name for name, t in inputs.items() if isinstance(t, torch.Tensor)]

    def gradients(inputs, impl):
        inputs = {
            k: t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t
            for k, t in inputs.items()
        }
        y, last_state = ssd_scan(**inputs, return_last_state=True, impl=impl)
        (y.square().sum() + last_state.square().sum()).backward()
        return {name: inputs[name].grad for name in leaves}

    actual, baseline, gold = (
        gradients(inputs, impl), gradients(inputs, "reference"), gradients(wide(inputs), "reference"),
    )  # fmt: skip
    for name in leaves:
        assert_as_accurate(name, actual[name], baseline[name], gold[name], slack=3)


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_two_parts_are_the_whole(impl):
    inputs = PROBLEMS[0].inputs()
    parts, state = [], inputs["initial_state"]
    for time in (slice(0, 65), slice(65, None)):
        part = {k: t[:, time] if k in ("x", "dt", "B", "C") else t for k, t in inputs.items()}
        y, state = ssd_scan(**part | {"initial_state": state}, return_last_state=True, impl=impl)
        parts.append(y)
    assert_defined(inputs, (torch.cat(parts, 1), state))


def test_one_token_is_a_state_update():
    problem = Problem(2, 1, 4, 6, 8, ngroups=2, has_initial_state=True)
    inputs = problem.inputs(torch.float64)
    y, last_state = ssd_scan(**inputs, return_last_state=True, impl="reference")
    channels = lambda t: t.repeat_interleave(problem.headdim, dim=-1)
    state = inputs["initial_state"].flatten(1, 2).clone()
    token = selective_state_update(
        state, inputs["x"][:, 0].flatten(1), channels(inputs["dt"][:, 0]),
        channels(inputs["A"])[:, None].expand(-1, problem.dstate), inputs["B"][:, 0], inputs["C"][:, 0],
        D=channels(inputs["D"]), dt_bias=channels(inputs["dt_bias"]), dt_softplus=True, impl="reference",
    )  # fmt: skip
    torch.testing.assert_close(token, y[:, 0].flatten(1))
    torch.testing.assert_close(state, last_state.flatten(1, 2))


@pytest.mark.parametrize("impl", ["torch", "cpu"])
@pytest.mark.parametrize("step", [0.0, 1e-6, 1e3])
def test_extreme_steps(impl, step):
    problem = dataclasses.replace(PROBLEMS[4], seqlen=70)
    inputs = problem.inputs()
    inputs["dt"].fill_(step)
    assert_defined(inputs, ssd_scan(**inputs, return_last_state=True, impl=impl))


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_any_strides(impl):
    inputs = PROBLEMS[3].inputs()
    found = ssd_scan(**inputs, return_last_state=True, impl=impl)
    spread = lambda t: torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]
    strided = {k: spread(t) if k in ("x", "dt", "B", "C") else t for k, t in inputs.items()}
    for actual, expected in zip(
        ssd_scan(**strided, return_last_state=True, impl=impl), found, strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("x", torch.zeros(2, 3), ValueError, "x must have shape"),
        ("x", torch.zeros(1, 0, 3, 7), ValueError, "at least one batch, token"),
        ("dt", torch.zeros(1, 33, 4), ValueError, "dt must have shape"),
        ("A", torch.zeros(3, 2), ValueError, "A must have shape"),
        ("B", torch.zeros(1, 33, 2, 2), ValueError, "divides nheads=3, got 2"),
        ("B", torch.zeros(1, 33, 1, 300), ValueError, "1 to 256 states"),
        ("C", torch.zeros(1, 33, 1, 3), ValueError, "C must have shape"),
        ("D", [1.0], TypeError, "D must be a tensor"),
        ("dt_softplus", 1, TypeError, "dt_softplus must be True or False"),
        ("initial_state", torch.zeros(1, 3, 7, 3), ValueError, "initial_state must have shape"),
        ("impl", "fast", ValueError, "impl"),
    ],
)
def test_wrong_arguments(name, value, error, says):
    with pytest.raises(error, match=says):
        ssd_scan(**PROBLEMS[4].inputs() | {"impl": "torch"} | {name: value})
