import pytest
import torch
import torch.nn.functional as F

from kernels.causal_conv1d.cuda import _check_supported
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
PROBLEMS = [
    CausalConv1dProblem(2, 64, 40),
    CausalConv1dProblem(2, 33, 129, 3, channel_last=False),
    CausalConv1dProblem(1, 17, 1),
    CausalConv1dProblem(1, 5, 2, 8, channel_last=False, initial_state=True),
    CausalConv1dProblem(2, 40, 7, 8, initial_state=True),
    CausalConv1dProblem(2, 24, 67, 5, channel_last=False, silu=False, initial_state=True),
    CausalConv1dProblem(
        1, 1030, 34, 2, silu=False
    ),  # one past the cpu form's tile of channels, and of tokens
    CausalConv1dProblem(1, 1, 2049, 4, channel_last=False),  # one past its tile of time
]


def place(impl, device):
    return "cpu" if impl == "cpu" else device


def double(inputs):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def check(inputs, impl):
    """Both outputs of `impl` against the definition; returns y."""
    y, final_state = causal_conv1d(**inputs, return_final_state=True, impl=impl)
    gold, _ = causal_conv1d(**double(inputs), return_final_state=True, impl="reference")
    baseline, last = causal_conv1d(**inputs, return_final_state=True, impl="reference")
    assert_as_accurate("y", y, baseline, gold)
    assert torch.equal(final_state, last)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_definition(impl, problem, dtype, device):
    inputs = problem.inputs(dtype, place(impl, device))
    y = check(inputs, impl)
    if inputs["x"].shape[2] > 1:
        assert y.stride() == inputs["x"].stride()
    assert torch.equal(y, causal_conv1d(**inputs, impl=impl))


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_float64(impl, device):
    inputs = PROBLEMS[0].inputs(torch.float64, device)
    y = causal_conv1d(**inputs, impl=impl)
    torch.testing.assert_close(y, causal_conv1d(**inputs, impl="reference"), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_bias_and_no_activation(impl, device):
    inputs = PROBLEMS[0].inputs(torch.float32, place(impl, device))
    check(inputs | {"bias": None, "activation": None}, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.repeat(1, 2, 1).chunk(2, dim=1)[1],  # half of the channels of a projection
        lambda x: (
            x.transpose(1, 2).repeat(1, 1, 3).transpose(1, 2)[:, 1:14]
        ),  # the same, channel-last
        lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        lambda x: x.repeat_interleave(3, dim=2)[:, :, ::3],
        lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        lambda x: x[:1].expand(3, -1, -1),
        lambda x: x[:, :1].expand(-1, 13, -1),
        lambda x: x[:, :, :1].expand(-1, -1, 9),
        lambda x: x[:, :, 1:],
    ],
)
def test_strides(impl, view, device):
    inputs = CausalConv1dProblem(2, 13, 21, channel_last=False).inputs(
        torch.float32, place(impl, device)
    )
    x = view(inputs["x"])
    channels = x.shape[1]
    check(
        {
            **inputs,
            "x": x,
            "weight": inputs["weight"][:channels],
            "bias": inputs["bias"][:channels],
        },
        impl,
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_parameters_and_state(impl, device):
    inputs = PROBLEMS[4].inputs(torch.float32, place(impl, device))
    for name in ("weight", "bias", "initial_state"):
        inputs[name] = inputs[name].repeat_interleave(2, dim=-1)[..., ::2]
    check(inputs, impl)


@pytest.mark.parametrize("impl", ["cpu", "triton"])
@pytest.mark.parametrize("channel_last", [True, False])
def test_x_is_not_copied(impl, channel_last, device, monkeypatch):
    inputs = CausalConv1dProblem(2, 32, 19, channel_last=channel_last).inputs(
        torch.float32, place(impl, device)
    )
    causal_conv1d(**inputs, impl=impl)  # compiles
    copied = []
    for name in ("contiguous", "clone", "to", "float"):
        method = getattr(torch.Tensor, name)

        def watched(tensor, *args, method=method, **kwargs):
            found = method(tensor, *args, **kwargs)
            if tensor.numel() == inputs["x"].numel() and found.data_ptr() != tensor.data_ptr():
                copied.append(method)
            return found

        monkeypatch.setattr(torch.Tensor, name, watched)
    causal_conv1d(**inputs, impl=impl)
    monkeypatch.undo()
    assert not copied


@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("split", [1, 2, 20])
@pytest.mark.parametrize("impl", IMPLS)
def test_two_parts_are_the_whole(impl, split, channel_last, device):
    problem = CausalConv1dProblem(2, 12, 43, 4, channel_last=channel_last, initial_state=True)
    inputs = problem.inputs(torch.float32, place(impl, device))
    x = inputs.pop("x")
    state = inputs.pop("initial_state")
    parts = []
    for part in (x[:, :, :split], x[:, :, split:]):
        y, state = causal_conv1d(
            part, **inputs, initial_state=state, return_final_state=True, impl=impl
        )
        parts.append(y)
    whole = problem.inputs(torch.float32, place(impl, device))
    gold = causal_conv1d(**double(whole), impl="reference")
    baseline = causal_conv1d(**whole, impl="reference")
    assert_as_accurate("y", torch.cat(parts, dim=2), baseline, gold)
    assert torch.equal(state, whole["x"][:, :, -3:])


@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_the_past_does_not_see_the_future(impl, channel_last, device):
    inputs = CausalConv1dProblem(1, 20, 50, channel_last=channel_last).inputs(
        torch.float32, place(impl, device)
    )
    before = causal_conv1d(**inputs, impl=impl)
    inputs["x"][:, :, 31:] = 1e4
    after = causal_conv1d(**inputs, impl=impl)
    assert torch.equal(before[:, :, :31], after[:, :, :31])
    assert not torch.equal(before[:, :, 31], after[:, :, 31])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_sequence_gives_the_same_in_every_slot_of_the_batch(impl, device):
    inputs = CausalConv1dProblem(1, 20, 50).inputs(torch.float32, place(impl, device))
    alone = causal_conv1d(**inputs, impl=impl)
    noise = 100 * torch.ones_like(inputs["x"])
    x = torch.cat([noise, inputs["x"], noise]).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(causal_conv1d(**{**inputs, "x": x}, impl=impl)[1:2], alone)


@pytest.mark.parametrize("impl", IMPLS)
def test_large_inputs_stay_finite(impl, device):
    inputs = PROBLEMS[0].inputs(torch.float32, place(impl, device))
    inputs["x"] = inputs["x"] * 1e3  # silu far in both tails
    check(inputs, impl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_hf_is_what_transformers_computes(dtype):
    inputs = CausalConv1dProblem(2, 12, 30).inputs(dtype, "cpu")
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    stock = F.silu(F.conv1d(x, weight[:, None], bias, padding=3, groups=12)[..., :30])
    y, state = causal_conv1d(**inputs, return_final_state=True, impl="hf")
    assert torch.equal(y, stock)
    assert torch.equal(state, x[..., -3:])
    with pytest.raises(NotImplementedError, match="initial_state"):
        causal_conv1d(**inputs | {"initial_state": x[..., :3]}, impl="hf")


def test_the_manifest_names_the_kernel(device):
    names = {}
    for impl in (*IMPLS, "hf"):
        with recording() as manifest:
            causal_conv1d(**PROBLEMS[0].inputs(torch.float32, place(impl, device)), impl=impl)
        names[impl] = manifest["causal_conv1d"]
    assert names == {
        "torch": "torch.addcmul",
        "cpu": "numba.causal_conv1d",
        "triton": "triton.causal_conv1d_fwd",
        "hf": "transformers.causal_conv1d_fn",
    }


X, WEIGHT = torch.zeros(2, 6, 9), torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x must have shape \(any, any, any\), got \(6, 9\)"),
        ({"x": X.long()}, TypeError, "x must be one of float32, .* got torch.int64"),
        (
            {"x": X[:, :, :0]},
            ValueError,
            r"x must have at least one element, got shape \(2, 6, 0\)",
        ),
        ({"weight": WEIGHT[:5]}, ValueError, r"weight must have shape \(6, any\), got \(5, 4\)"),
        ({"weight": torch.zeros(6, 9)}, ValueError, "weight must have a width of 2 to 8, got 9"),
        ({"weight": [1.0]}, TypeError, "weight must be a tensor, got list"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(6\), got \(5,\)"),
        (
            {"initial_state": torch.zeros(2, 6, 4)},
            ValueError,
            r"initial_state must have shape \(2, 6, 3\)",
        ),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight must be on cpu, got meta"),
        ({"activation": "gelu"}, ValueError, "activation must be None or 'silu', got 'gelu'"),
        ({"impl": "fast"}, ValueError, "impl must be one of .* got 'fast'"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d(**({"x": X, "weight": WEIGHT, "impl": "torch"} | change))


@pytest.mark.parametrize(
    ("x", "weight", "state", "message"),
    [
        (X.double(), WEIGHT, None, "float64"),
        (X, torch.zeros(6, 5), None, "width 2 to 4, got 5"),
        (X.repeat(1, 1, 2)[:, :, ::2], WEIGHT, None, "adjacent"),
        (X.mT.contiguous().mT, WEIGHT, None, "multiples of 8"),
        (X, WEIGHT, torch.zeros(2, 6, 3), "initial_state only with a channel-last x"),
    ],
)
def test_cuda_says_what_it_cannot_take(x, weight, state, message):
    with pytest.raises(NotImplementedError, match=f"{message}.*; use impl='triton'"):
        _check_supported(x, weight, state)


def test_cpu_takes_no_float64():
    with pytest.raises(NotImplementedError, match="float64; use impl='torch'"):
        causal_conv1d(X.double(), WEIGHT, impl="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("impl", ["torch", "triton", "cuda"])
def test_on_a_gpu(impl, channel_last, dtype):
    if impl == "cuda":
        pytest.importorskip("causal_conv1d")
    for problem in (
        CausalConv1dProblem(2, 1536, 2047, channel_last=channel_last, initial_state=channel_last),
        CausalConv1dProblem(1, 96, 8, channel_last=channel_last),
    ):
        check(problem.inputs(dtype, "cuda"), impl)
