"""One token of the scan: every implementation against the definition in float64, and as a step of the scan."""

import functools

import pytest
import torch

from kernels.implementations import interpreted, recording
from kernels.selective_scan.op import selective_scan, selective_state_update
from kernels.selective_scan.problem import SelectiveScanProblem
from kernels.selective_scan.problem import StateUpdateProblem as Problem
from tests.kernels.scans import DTYPES, OURS, home, impls_and_dtypes, widened
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [
    Problem(3, 70, 16),
    Problem(1, 1, 1),
    Problem(2, 7, 5, has_z=False),  # odd channels and states
    Problem(2, 24, 6, ngroups=3, has_D=False),
    Problem(1, 5, 256, has_bias=False),
    Problem(1, 6, 33, dt_softplus=False),
]


def update(inputs, impl):
    """(y, state after); the inputs are kept."""
    state = inputs["state"].clone(memory_format=torch.preserve_format)
    return selective_state_update(**inputs | {"state": state}, impl=impl), state


def assert_defined(inputs, actual):
    gold, baseline = update(widened(inputs), "reference"), update(inputs, "reference")
    for name, *three in zip(("y", "state"), actual, baseline, gold, strict=True):
        assert_as_accurate(name, *three)


@pytest.mark.parametrize(("impl", "dtype"), list(impls_and_dtypes()))
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_accuracy(problem, impl, dtype, device):
    inputs = problem.inputs(dtype, home(impl, device))
    y, state = update(inputs, impl)
    assert_defined(inputs, (y, state))
    again = update(inputs, impl)
    assert torch.equal(again[0], y)
    assert torch.equal(again[1], state)


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_keeps_its_dtype(impl, dtype, device):
    """It is rounded once, when it is written; y comes from the state before that."""
    if impl == "triton" and interpreted() and dtype == torch.bfloat16:
        pytest.skip("the interpreter truncates float32 to bfloat16")
    inputs = PROBLEMS[0].inputs(torch.float32, home(impl, device))
    inputs["state"] = inputs["state"].to(dtype)
    assert_defined(inputs, update(inputs, impl))


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0), (1, 0, 2)], ids=str)
def test_any_strides(impl, order, device):
    """A state with channels or sequences inside, one of many layers, and operands that are parts of projections."""
    inputs = Problem(3, 20, 6).inputs(device=home(impl, device))
    before = inputs["state"].permute(order)
    back = tuple(order.index(i) for i in range(3))
    every = torch.stack([before, before + 1], 0)
    state = every[1].permute(back)
    x, z = torch.cat([inputs["x"], inputs["z"]], 1).chunk(2, 1)
    B, C = torch.stack([inputs["B"], inputs["C"]], -1).unbind(-1)
    dt = inputs["dt"].t().contiguous().t()
    views = {"x": x, "z": z, "B": B, "C": C, "dt": dt, "A": inputs["A"].t().contiguous().t()}
    views |= {k: torch.stack([inputs[k]] * 2, -1)[..., 0] for k in ("D", "dt_bias")}
    assert not any(t.is_contiguous() for t in views.values())
    expected = update(inputs | {"state": state.contiguous()}, "reference")
    gold = update(widened(inputs) | {"state": state.double().contiguous()}, "reference")
    y = selective_state_update(**inputs | views | {"state": state}, impl=impl)
    assert_as_accurate("y", y, expected[0], gold[0])
    assert_as_accurate("state", state, expected[1], gold[1])
    assert torch.equal(every[0], before)  # the other layer
    assert y.is_contiguous()


@pytest.mark.parametrize("impl", [*OURS, "reference"])
def test_updates_are_a_scan(impl, device):
    scan = SelectiveScanProblem(2, 5, 12, 4, ngroups=2, has_initial_state=True)
    inputs = scan.inputs(device=home(impl, device))
    state, ys = inputs["initial_state"].clone(), []
    for t in range(scan.seqlen):
        x, dt, B, C, z = (inputs[k][..., t] for k in ("u", "delta", "B", "C", "z"))
        weights = {"D": inputs["D"], "dt_bias": inputs["delta_bias"], "dt_softplus": True}
        ys.append(
            selective_state_update(state, x, dt, inputs["A"], B, C, z=z, **weights, impl=impl)
        )
    expected, gold = (
        selective_scan(**i, return_last_state=True, impl="reference")
        for i in (inputs, widened(inputs))
    )
    assert_as_accurate("y", torch.stack(ys, 2), expected[0], gold[0])
    assert_as_accurate("state", state, expected[1], gold[1])


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("dt", [0.0, 1e-6, 1e3])
def test_extreme_steps(impl, dt, device):
    inputs = Problem(1, 20, 4, has_bias=False, dt_softplus=False).inputs(device=home(impl, device))
    inputs["dt"].fill_(dt)
    assert_defined(inputs, update(inputs, impl))


@pytest.mark.parametrize("impl", OURS)
def test_nan_is_not_hidden(impl, device):
    inputs = Problem(2, 5, 3).inputs(device=home(impl, device))
    inputs["x"][1, 2] = torch.nan
    y, state = update(inputs, impl)
    assert y[1, 2].isnan()
    assert state[1, 2].isnan().all()
    assert y.isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hf_is_the_stock_function(dtype, monkeypatch):
    from transformers.models.mamba import modeling_mamba

    inputs = Problem(2, 8, 4).inputs(dtype)
    flat = inputs | {k: inputs[k][:, 0] for k in ("B", "C")} | {"state": inputs["state"].clone()}
    flat["hidden_states"] = flat.pop("x")
    stock = modeling_mamba.mamba_selective_state_update
    y = stock(**flat)

    @functools.wraps(stock)
    def package(*args, **kwargs):
        raise AssertionError("the package's kernel was called")

    monkeypatch.setattr(modeling_mamba, "mamba_selective_state_update", package)
    ours = update(inputs, "hf")
    assert torch.equal(ours[0], y)
    assert torch.equal(ours[1], flat["state"])
    if dtype == torch.float32:
        assert_defined(inputs, ours)


def test_what_implementations_cannot_do(device):
    with pytest.raises(NotImplementedError, match=r"one group.*impl='torch'"):
        selective_state_update(**Problem(1, 4, 2, ngroups=2).inputs(), impl="hf")
    with pytest.raises(NotImplementedError, match=r"float64.*impl='torch'"):
        selective_state_update(**Problem(1, 4, 2).inputs(torch.float64, device), impl="triton")


@pytest.mark.parametrize("impl", [*OURS, "hf", "reference"])
def test_a_gradient_is_refused(impl, device):
    """A state that is overwritten has none."""
    inputs = Problem(1, 4, 2).inputs(device=home(impl, device))
    inputs["A"].requires_grad_()
    with pytest.raises(NotImplementedError, match="selective_state_update"):
        selective_state_update(**inputs, impl=impl)
    with torch.no_grad():
        selective_state_update(**inputs, impl=impl)


@pytest.mark.parametrize(
    ("impl", "kernel"),
    [
        ("torch", "torch.selective_state_update"),
        ("cpu", "numba.selective_state_update"),
        ("hf", "transformers.mamba_selective_state_update"),
        ("triton", "triton.selective_state_update"),
        ("reference", "reference.selective_state_update"),
    ],
)
def test_the_manifest_names_the_kernel(impl, kernel, device):
    with recording() as manifest:
        update(Problem(1, 4, 2).inputs(device=home(impl, device)), impl)
    assert manifest == {"selective_state_update": kernel}


X = torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"x": X[0]}, ValueError, r"x must have shape \(any, any\)"),
        ({"x": X[:0]}, ValueError, "x must have at least one"),
        ({"dt": X[:1]}, ValueError, r"dt must have shape \(2, 8\), got \(1, 8\)"),
        ({"A": torch.zeros(8, 257)}, ValueError, "A must have 1 to 256 states"),
        ({"state": torch.zeros(2, 8, 3)}, ValueError, r"state must have shape \(2, 8, 4\)"),
        ({"state": torch.zeros(2, 8, 4).long()}, TypeError, "state must be one of"),
        ({"B": torch.zeros(2, 5)}, ValueError, "B must have shape"),
        ({"B": torch.zeros(2, 3, 4)}, ValueError, "B must have a number of groups that divides"),
        ({"C": torch.zeros(2, 2, 4)}, ValueError, "C must have as many groups as B"),
        ({"D": torch.zeros(9)}, ValueError, r"D must have shape \(8\)"),
        ({"z": X[:1]}, ValueError, "z must have shape"),
        ({"dt_bias": "no"}, TypeError, "dt_bias must be a tensor"),
        ({"dt_softplus": 1}, TypeError, "dt_softplus must be True or False"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
    ],
)
def test_bad_arguments(changed, error, message):
    inputs = Problem(2, 8, 4).inputs() | {"impl": "torch"} | changed
    with pytest.raises(error, match=message):
        selective_state_update(**inputs)


def test_one_group_needs_no_group_axis():
    inputs = Problem(2, 4, 2).inputs()
    flat = inputs | {"B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(update(flat, "cpu")[0], update(inputs, "cpu")[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_accuracy(dtype):
    pytest.importorskip("mamba_ssm")
    for problem in PROBLEMS[:4]:
        inputs = problem.inputs(dtype, "cuda")
        found = update(inputs, "cuda")
        if dtype != torch.float32:  # its fp32 uses fast-math exponentials
            assert_defined(inputs, found)
