"""Gradients of the convolution, packed sequences, and both under torch.compile."""

import itertools
import sys

import pytest
import torch

from kernels.causal_conv1d import autograd
from kernels.causal_conv1d.op import causal_conv1d
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.implementations import recording
from tests.tolerance import assert_as_accurate

pytestmark = [
    pytest.mark.usefixtures("poison_uninitialised_memory"),
    # e^-x of a large negative x is infinite and silu 0; NumPy, under the interpreter, says so
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning"),
]

IMPLS = ["torch", "cpu", "triton"]
OURS = ["cpu", "triton"]
OPERANDS = ("x", "weight", "bias", "initial_state")
PROBLEMS = [
    CausalConv1dProblem(2, 33, 300, initial_state=True),  # two pieces of tiles, and a rest
    CausalConv1dProblem(2, 20, 129, 3, channel_last=False),
    CausalConv1dProblem(1, 17, 1),
    CausalConv1dProblem(1, 5, 2, 8, channel_last=False, initial_state=True),
    CausalConv1dProblem(1, 260, 131, 2, silu=False),  # one past the tile of the cpu form
    CausalConv1dProblem(2, 7, 67, 5, channel_last=False, silu=False, initial_state=True),
    CausalConv1dProblem(1, 1030, 9, 6, initial_state=True),  # one past the tile of channels
]
WIDTHS = [CausalConv1dProblem(1, 6, 21, width, initial_state=True) for width in range(2, 9)]
BOUNDS = [
    [0, 70],
    [0, 3, 3, 17, 18, 70],  # one empty, one shorter than the filter
    [0, 0, 32, 64, 70, 70],  # on the borders of tiles, and empty ends
]


def place(impl, device):
    return "cpu" if impl == "cpu" else device


def double(inputs):
    return {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def gradients(inputs, impl, through=("y", "final_state")):
    """Gradients by operand of a loss with other weights for every element of y and of the final state."""
    leaves = {n: inputs[n].detach().requires_grad_() for n in OPERANDS if inputs[n] is not None}
    y, final_state = causal_conv1d(**(inputs | leaves), return_final_state=True, impl=impl)
    loss = 0
    for name, t in (("y", y), ("final_state", final_state)):
        if name in through:
            weights = torch.linspace(-1, 2, t.numel(), dtype=t.dtype, device=t.device).view(t.shape)
            loss = loss + (t * weights).sum()
    found = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    return {
        n: torch.zeros_like(inputs[n]) if g is None else g
        for n, g in zip(leaves, found, strict=True)
    }


def check_gradients(inputs, impl, **through):
    gold = gradients(double(inputs), "reference", **through)
    baseline = gradients(inputs, "reference", **through)
    actual = gradients(inputs, impl, **through)
    for name in gold:
        assert_as_accurate(name, actual[name], baseline[name], gold[name], slack=3.0)
    return actual


def packed(bounds, dtype, device, channel_last, initial_state=True, width=4):
    problem = CausalConv1dProblem(1, 12, bounds[-1], width, channel_last, initial_state=False)
    inputs = problem.inputs(dtype, device)
    if initial_state:
        generator = torch.Generator(device).manual_seed(1)
        shape = (len(bounds) - 1, 12, width - 1)
        inputs["initial_state"] = torch.randn(shape, generator=generator, device=device).to(dtype)
    return inputs | {"cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients(impl, problem, dtype, device):
    inputs = problem.inputs(dtype, place(impl, device))
    actual = check_gradients(inputs, impl)
    if impl in OURS and problem.seqlen > 1:
        assert actual["x"].stride() == inputs["x"].stride()
    again = gradients(inputs, impl)
    assert all(torch.equal(actual[name], again[name]) for name in actual)


@pytest.mark.parametrize("problem", WIDTHS, ids=str)
@pytest.mark.parametrize("impl", OURS)
def test_gradients_of_every_width(impl, problem, device):
    check_gradients(problem.inputs(torch.float32, place(impl, device)), impl)


def test_gradients_in_float64(device):
    inputs = PROBLEMS[0].inputs(torch.float64, device)
    expected = gradients(inputs, "reference")
    for name, found in gradients(inputs, "triton").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("through", ["y", "final_state"])
@pytest.mark.parametrize("impl", OURS)
def test_a_gradient_may_come_through_one_output_alone(impl, through, device):
    inputs = CausalConv1dProblem(2, 6, 9, initial_state=True).inputs(
        torch.float32, place(impl, device)
    )
    check_gradients(inputs, impl, through=(through,))


@pytest.mark.parametrize("impl", OURS)
def test_gradients_without_bias_and_state(impl, device):
    inputs = CausalConv1dProblem(2, 6, 19).inputs(torch.float32, place(impl, device))
    check_gradients(inputs | {"bias": None}, impl)


@pytest.mark.parametrize("impl", OURS)
def test_gradients_far_in_both_tails(impl, device):
    inputs = CausalConv1dProblem(2, 6, 19).inputs(torch.float32, place(impl, device))
    check_gradients(inputs | {"x": inputs["x"] * 1e3}, impl)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.repeat(1, 2, 1).chunk(2, dim=1)[1],
        lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
        lambda t: t.repeat_interleave(3, dim=2)[:, :, ::3],
        lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ],
)
@pytest.mark.parametrize("impl", OURS)
def test_strides(impl, view, device):
    inputs = CausalConv1dProblem(2, 6, 11, channel_last=False).inputs(
        torch.float32, place(impl, device)
    )
    inputs["x"] = view(inputs["x"])
    for name in ("weight", "bias"):
        inputs[name] = inputs[name].repeat_interleave(2, dim=-1)[..., ::2]
    actual = check_gradients(inputs, impl)
    # an expanded gradient, as of a sum, and one in the other layout
    x = inputs["x"].detach().requires_grad_()
    for dy in (x.new_ones(1, 1, 1).expand(x.shape), x.new_ones(x.shape).mT.contiguous().mT):
        y = causal_conv1d(**(inputs | {"x": x}), impl=impl)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert dx.shape == actual["x"].shape
        gold = double(inputs) | {"x": x.detach().double().requires_grad_()}
        (expected,) = torch.autograd.grad(causal_conv1d(**gold, impl="reference").sum(), gold["x"])
        torch.testing.assert_close(dx.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_packed_sequences_are_separate_ones(impl, bounds, channel_last, device):
    inputs = packed(bounds, torch.float32, place(impl, device), channel_last)
    y, final_states = causal_conv1d(**inputs, return_final_state=True, impl=impl)
    assert y.stride() == inputs["x"].stride()
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        alone = inputs | {
            "x": inputs["x"][..., start:end], "initial_state": inputs["initial_state"][i : i + 1], "cu_seqlens": None,
        }  # fmt: skip
        if start == end:
            assert torch.equal(final_states[i : i + 1], alone["initial_state"])
            continue
        expected, final_state = causal_conv1d(**alone, return_final_state=True, impl=impl)
        assert torch.equal(y[..., start:end], expected)
        assert torch.equal(final_states[i : i + 1], final_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("impl", OURS)
def test_gradients_of_packed_sequences(impl, bounds, dtype, device):
    for channel_last, state, width in ((True, True, 4), (False, True, 8), (True, False, 3)):
        check_gradients(
            packed(bounds, dtype, place(impl, device), channel_last, state, width), impl
        )


def test_wrong_bounds_stay_inside_of_the_tensors(device, monkeypatch):
    """Bounds on a GPU are not read by the host: whatever they are, a kernel writes no token outside of x."""
    op = sys.modules[causal_conv1d.__module__]
    monkeypatch.setattr(op, "check_cu_seqlens", lambda *_: None)
    inputs = packed([0, 20, 40], torch.float32, device, True)
    room = torch.zeros(1, 3, 40, 12, device=device).transpose(2, 3)
    room[:, 1] = inputs["x"]
    for bounds in ([0, 50, 40], [-7, 20, 90], [30, 10, 20]):
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
        x = room[:, 1].detach().requires_grad_()
        y = causal_conv1d(**(inputs | {"x": x, "cu_seqlens": cu_seqlens}), impl="triton")
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(room[:, 1], inputs["x"])
    assert not room[:, [0, 2]].any()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 9, 5], "must rise from 0 to 5"),
        ([0, 4], "must rise from 0 to 5"),
        ([0], "at least two bounds"),
    ],
)
def test_bad_bounds(bounds, message):
    x, weight = torch.zeros(1, 3, 5), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=message):
        causal_conv1d(x, weight, cu_seqlens=torch.tensor(bounds, dtype=torch.int32), impl="torch")
    bounds = torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="batch of 1, got 2"):
        causal_conv1d(x.expand(2, -1, -1), weight, cu_seqlens=bounds, impl="torch")
    with pytest.raises(ValueError, match=r"initial_state must have shape \(1, 3, 3\)"):
        causal_conv1d(x, weight, None, torch.zeros(2, 3, 3), cu_seqlens=bounds, impl="torch")


@pytest.mark.parametrize("seqlen", [1, 6])
def test_gradcheck_of_the_reference(seqlen):
    inputs = CausalConv1dProblem(1, 2, seqlen, 3, initial_state=True).inputs(torch.float64, "cpu")
    leaves = [inputs[n].requires_grad_() for n in OPERANDS]

    def reference(x, weight, bias, initial_state):
        return causal_conv1d(x, weight, bias, initial_state, True, "silu", impl="reference")

    assert torch.autograd.gradcheck(reference, leaves)


def operands(impl, device, cu_seqlens=None, **changes):
    inputs = CausalConv1dProblem(1, 6, 20, initial_state=True).inputs(
        torch.float32, place(impl, device)
    )
    inputs |= changes
    return [
        *(None if t is None else t.requires_grad_() for t in (inputs[n] for n in OPERANDS)),
        inputs["activation"], cu_seqlens, impl,
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("impl", autograd.OPAQUE)
def test_the_operators_are_registered_as_torch_wants(impl, device):
    op = torch.ops.crossover.causal_conv1d.default
    torch.library.opcheck(op, operands(impl, device))
    bounds = torch.tensor([0, 20], dtype=torch.int32, device=place(impl, device))
    torch.library.opcheck(op, operands(impl, device, bounds, bias=None, activation=None))
    backward = torch.ops.crossover.causal_conv1d_backward.default
    *tensors, activation, cu_seqlens, impl = operands(impl, device)
    tensors = [t.detach() for t in tensors]
    dy = torch.ones_like(tensors[0])
    torch.library.opcheck(backward, (dy, None, *tensors, activation, cu_seqlens, impl))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("impl", OURS)
def test_under_compile(impl, device):
    inputs = CausalConv1dProblem(2, 6, 19, initial_state=True).inputs(
        torch.float32, place(impl, device)
    )
    torch._dynamo.reset()

    def step(inputs):
        y, final_state = causal_conv1d(**inputs, return_final_state=True, impl=impl)
        return (y * y).sum() + final_state.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = []
    for function in (step, compiled):
        leaves = {n: inputs[n].detach().requires_grad_() for n in OPERANDS}
        found.append(torch.autograd.grad(function(inputs | leaves), leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("impl", OURS)
def test_the_manifest_names_the_kernels(impl, device):
    inputs = CausalConv1dProblem(1, 4, 9).inputs(torch.float32, place(impl, device))
    with recording() as manifest:
        gradients(inputs, impl)
    prefix = {"cpu": "numba", "triton": "triton"}[impl]
    assert manifest["causal_conv1d"].startswith(f"{prefix}.causal_conv1d")
    assert manifest["causal_conv1d_backward"].startswith(f"{prefix}.causal_conv1d_b")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_on_a_gpu(impl, channel_last, dtype):
    if impl == "cuda":
        pytest.importorskip("causal_conv1d")
    for problem in (
        CausalConv1dProblem(2, 1536, 2047, channel_last=channel_last, initial_state=channel_last),
        CausalConv1dProblem(1, 96, 8, channel_last=channel_last),
    ):
        check_gradients(problem.inputs(dtype, "cuda"), impl)
    check_gradients(packed([0, 3, 3, 1000, 1024], dtype, "cuda", True), "triton")
