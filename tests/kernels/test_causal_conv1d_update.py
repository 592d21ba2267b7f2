"""One token of the convolution, in place."""

import pytest
import torch

from kernels.causal_conv1d import autograd
from kernels.causal_conv1d.cuda import causal_conv1d_update_cuda
from kernels.causal_conv1d.op import causal_conv1d, causal_conv1d_update
from kernels.causal_conv1d.problem import ConvUpdateProblem
from kernels.implementations import recording
from tests.tolerance import assert_as_accurate

pytestmark = [
    pytest.mark.usefixtures("poison_uninitialised_memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning"),
]

IMPLS = ["torch", "cpu", "triton", "hf"]
PROBLEMS = [
    ConvUpdateProblem(3, 33),
    ConvUpdateProblem(1, 1, 2, state_len=1, silu=False),
    ConvUpdateProblem(2, 17, 3, state_len=7),
    ConvUpdateProblem(1, 1030, 8),
]


def place(impl, device):
    return "cpu" if impl == "cpu" else device


def double(inputs):
    return {k: v.double() if torch.is_tensor(v) else v for k, v in inputs.items()}


def step(inputs, impl):
    """y, and the state that is left."""
    state = inputs["conv_state"].clone(memory_format=torch.preserve_format)
    y = causal_conv1d_update(**(inputs | {"conv_state": state}), impl=impl)
    return y, state


def check(inputs, impl):
    y, state = step(inputs, impl)
    (gold, _), (baseline, expected) = (
        step(double(inputs), "reference"),
        step(inputs, "reference"),
    )
    assert_as_accurate("y", y, baseline, gold)
    assert torch.equal(state, expected)
    again = step(inputs, impl)
    assert torch.equal(y, again[0])
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_definition(impl, problem, dtype, device):
    inputs = problem.inputs(dtype, place(impl, device))
    check(inputs, impl)
    check(inputs | {"bias": None, "activation": None}, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", range(2, 9))
def test_tokens_one_by_one_are_the_sequence(impl, width, device):
    inputs = ConvUpdateProblem(2, 6, width).inputs(torch.float32, place(impl, device))
    state, weights = inputs["conv_state"], (inputs["weight"], inputs["bias"])
    x = torch.randn(2, 6, 10, device=state.device)
    whole = causal_conv1d(x, *weights, state[..., 1:], activation="silu", impl="reference")
    gold = causal_conv1d(
        *(t.double() for t in (x, *weights, state[..., 1:])), activation="silu", impl="reference"
    )
    ys = [
        causal_conv1d_update(x[..., t], state, *weights, activation="silu", impl=impl)
        for t in range(10)
    ]
    assert_as_accurate("y", torch.stack(ys, 2), whole, gold)
    assert torch.equal(state, x[..., -width:])


@pytest.mark.parametrize("impl", IMPLS)
def test_strides(impl, device):
    inputs = ConvUpdateProblem(3, 10).inputs(torch.float32, place(impl, device))
    wide = inputs["x"].repeat_interleave(2, dim=1)[:, ::2]
    for view in (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),  # channels together
        lambda t: t.repeat_interleave(2, dim=2)[..., ::2],
        lambda t: t.repeat(1, 2, 1)[:, 10:],
        lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        state = view(inputs["conv_state"])
        expected = step(inputs, "reference")[1]
        y = causal_conv1d_update(**(inputs | {"x": wide, "conv_state": state}), impl=impl)
        assert torch.equal(y, step(inputs, impl)[0])
        assert torch.equal(state, expected)


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
def test_a_state_of_another_dtype(impl, device):
    inputs = ConvUpdateProblem(3, 10).inputs(torch.float16, place(impl, device))
    check(inputs | {"conv_state": inputs["conv_state"].float()}, impl)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_float64(impl, device):
    inputs = PROBLEMS[0].inputs(torch.float64, device)
    torch.testing.assert_close(
        step(inputs, impl), step(inputs, "reference"), rtol=1e-13, atol=1e-13
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("impl", autograd.OPAQUE)
def test_registration_and_compile(impl, device):
    inputs = ConvUpdateProblem(2, 6).inputs(torch.float32, place(impl, device))
    x, state, weight, bias, activation = inputs.values()
    op = torch.ops.crossover.causal_conv1d_update.default
    torch.library.opcheck(op, (x, state.clone(), weight, bias, activation, impl))
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda state: causal_conv1d_update(x, state, weight, bias, activation, impl=impl),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    mine = state.clone()
    y, expected = step(inputs, impl)
    assert torch.equal(compiled(mine), y)
    assert torch.equal(mine, expected)


def test_the_manifest_names_the_kernel(device):
    names = {}
    for impl in IMPLS:
        with recording() as manifest:
            step(PROBLEMS[0].inputs(torch.float32, place(impl, device)), impl)
        names[impl] = manifest
    assert names == {
        "torch": {"causal_conv1d_update": "torch.sum"},
        "cpu": {"causal_conv1d_update": "numba.causal_conv1d_update"},
        "triton": {"causal_conv1d_update": "triton.causal_conv1d_update"},
        "hf": {"causal_conv1d_update": "transformers.causal_conv1d_update"},
    }


X, STATE, WEIGHT = torch.zeros(2, 6), torch.zeros(2, 6, 4), torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x must have shape \(any, any\), got \(6,\)"),
        ({"x": X[:0]}, ValueError, "x must have at least one element"),
        (
            {"conv_state": STATE[:1]},
            ValueError,
            r"conv_state must have shape \(2, 6, any\), got \(1, 6, 4\)",
        ),
        (
            {"conv_state": STATE[..., :2]},
            ValueError,
            "conv_state must hold at least 3 inputs, got 2",
        ),
        ({"conv_state": None}, TypeError, "conv_state must be a tensor"),
        ({"weight": torch.zeros(6, 9)}, ValueError, "width of 2 to 8, got 9"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(6\)"),
        ({"activation": "gelu"}, ValueError, "activation must be None or 'silu', got 'gelu'"),
        ({"impl": "fast"}, ValueError, "impl must be one of .* got 'fast'"),
        ({"weight": WEIGHT.clone().requires_grad_()}, NotImplementedError, "backward"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d_update(
            **({"x": X, "conv_state": STATE, "weight": WEIGHT, "impl": "torch"} | change)
        )


def test_what_implementations_cannot_take():
    for state, x, message in ((STATE, X.double(), "float64"), (STATE.half(), X, "dtype of x")):
        with pytest.raises(NotImplementedError, match=f"{message}.*; use impl='triton'"):
            causal_conv1d_update_cuda(x, state, WEIGHT, None, None)
    with pytest.raises(NotImplementedError, match="float64; use impl='torch'"):
        causal_conv1d_update(X.double(), STATE, WEIGHT, impl="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", ["triton", "cuda", "torch"])
def test_on_a_gpu(impl, dtype):
    if impl == "cuda":
        pytest.importorskip("causal_conv1d")
    inputs = ConvUpdateProblem(8, 1536).inputs(dtype, "cuda")
    check(inputs, impl)
    rows = inputs["conv_state"].transpose(1, 2).contiguous().transpose(1, 2)
    check(inputs | {"conv_state": rows}, impl)
