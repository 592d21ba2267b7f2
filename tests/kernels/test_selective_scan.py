"""Selective scan: every implementation against the definition in float64, and what needs no tolerance."""

import dataclasses
import functools

import pytest
import torch

from kernels.implementations import interpreted, recording
from kernels.selective_scan.op import selective_scan
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from tests.kernels.scans import (
    DTYPES,
    OURS,
    PROBLEMS,
    assert_defined,
    home,
    impls_and_dtypes,
    triton_in_segments,
)

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")


@pytest.mark.parametrize(("impl", "dtype"), list(impls_and_dtypes()))
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_accuracy(problem, impl, dtype, device):
    inputs = problem.inputs(dtype, home(impl, device))
    y, last_state = selective_scan(**inputs, return_last_state=True, impl=impl)
    assert_defined(inputs, (y, last_state))
    assert torch.equal(selective_scan(**inputs, impl=impl), y)  # and it is deterministic


@pytest.mark.parametrize("segments", [2, 3])
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[3], PROBLEMS[5]], ids=str)
def test_split_sequence(problem, segments, device):
    inputs = problem.inputs(device=device)
    assert_defined(inputs, triton_in_segments(inputs, segments))


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e3])
@pytest.mark.parametrize("rate", [-1e-6, -1.0])
def test_extreme_steps(impl, delta, rate, device):
    problem = Problem(1, 9, 20, 4, has_initial_state=True, has_bias=False, delta_softplus=False)
    inputs = problem.inputs(device=home(impl, device))
    inputs["delta"].fill_(delta)
    inputs["A"].mul_(-rate)
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl=impl))


@pytest.mark.parametrize(
    ("impl", "before_softplus"),
    [(impl, x) for impl in OURS for x in (-80.0, -12.0, -5.0, 12.0, 100.0)],
)
def test_softplus_keeps_small_and_large_steps(impl, before_softplus, device):
    if impl == "triton" and interpreted() and before_softplus < -5:
        pytest.skip("the interpreter rounds a fused multiply-add twice, which costs the last bits")
    problem = Problem(1, 3, 40, 2, has_D=False, has_z=False, has_bias=False)
    inputs = problem.inputs(device=home(impl, device))
    inputs["delta"].mul_(0.5).add_(before_softplus)
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl=impl))


@pytest.mark.parametrize("impl", OURS)
def test_two_halves_are_the_whole(impl, device):
    inputs = PROBLEMS[0].inputs(device=home(impl, device))
    halves, state = [], inputs["initial_state"]
    for time in (slice(0, 8), slice(8, None)):
        part = {
            k: v[..., time] if k in ("u", "delta", "z", "B", "C") else v for k, v in inputs.items()
        }
        part["initial_state"] = state
        y, state = selective_scan(**part, return_last_state=True, impl=impl)
        halves.append(y)
    assert_defined(inputs, (torch.cat(halves, 2), state))


@pytest.mark.parametrize("name", ["u", "delta", "z", "B", "C"])
@pytest.mark.parametrize("impl", [*OURS, "split"])
def test_the_future_does_not_change_the_past(impl, name, device):
    problem = Problem(1, 17, 6, 3)
    inputs = problem.inputs(device=home(impl, device))
    changed = inputs[name].clone()
    changed[..., 9] += 1
    if impl == "split":
        run = lambda **operands: triton_in_segments(inputs | operands, 3)[0]
    else:
        run = lambda **operands: selective_scan(**(inputs | operands), impl=impl)
    before, after = run(), run(**{name: changed})
    assert torch.equal(before[..., :9], after[..., :9])
    assert not torch.equal(before[..., 9], after[..., 9])


@pytest.mark.parametrize("impl", OURS)
def test_a_sequence_does_not_depend_on_its_slot_in_the_batch(impl, device):
    inputs = Problem(3, 18, 20, 4, has_initial_state=True).inputs(device=home(impl, device))
    rows = ("u", "delta", "z", "B", "C", "initial_state")
    last = {k: v[2:] if k in rows else v for k, v in inputs.items()}
    assert torch.equal(selective_scan(**inputs, impl=impl)[2:], selective_scan(**last, impl=impl))


@pytest.mark.parametrize("impl", OURS)
def test_strided_views(impl, device):
    """Slices of wider tensors, as a model makes them: halves of a projection, B and C side by side."""
    inputs = Problem(2, 6, 16, 4).inputs(device=home(impl, device))
    u, z = torch.cat([inputs["u"], inputs["z"]], 1).transpose(1, 2).contiguous().chunk(2, -1)
    B, C = torch.cat([inputs["B"], inputs["C"]], 2).transpose(2, 3).contiguous().chunk(2, -1)
    every_other = torch.stack([inputs["delta"], inputs["delta"]], -1)[..., 0]
    views = {
        "u": u.transpose(1, 2),
        "z": z.transpose(1, 2),
        "B": B.transpose(2, 3),
        "C": C.transpose(2, 3),
        "delta": every_other,
        "A": torch.stack([inputs["A"]] * 3, -1)[..., 1],
        "D": torch.stack([inputs["D"]] * 2, -1)[..., 0],
        "delta_bias": torch.stack([inputs["delta_bias"]] * 2, -1)[..., 0],
    }
    assert not any(t.is_contiguous() for t in views.values())
    y, last_state = selective_scan(**(inputs | views), return_last_state=True, impl=impl)
    assert y.stride() == (6 * 16, 1, 16)  # dense, channel-last like u
    assert_defined(inputs, (y, last_state))


def test_one_group_needs_no_group_axis():
    inputs = Problem(2, 3, 4, 2).inputs()
    flat = inputs | {"B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(selective_scan(**flat, impl="cpu"), selective_scan(**inputs, impl="cpu"))


@pytest.mark.parametrize("impl", [*OURS, "reference"])
@pytest.mark.parametrize("layout", ["channel_last", "time_last"])
def test_output_has_the_layout_of_the_input(impl, layout, device):
    inputs = Problem(2, 5, 6, 2, layout=layout).inputs(device=home(impl, device))
    assert selective_scan(**inputs, impl=impl).stride() == inputs["u"].stride()


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_operands_of_other_dtypes(impl, dtype, device):
    inputs = Problem(1, 5, 8, 4).inputs(dtype, home(impl, device))
    inputs["delta"], inputs["B"] = inputs["delta"].float(), inputs["B"].half()
    inputs["z"], inputs["D"] = inputs["z"].half(), inputs["D"].half()
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl=impl))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hf_is_the_stock_function(dtype, monkeypatch):
    """Bit for bit, and still so when a kernel package has put its own function in the place."""
    from transformers.models.mamba import modeling_mamba

    inputs = Problem(2, 9, 8, 4).inputs(dtype)
    flat = inputs | {"B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    del flat["initial_state"]
    stock = modeling_mamba.mamba_selective_scan
    y, last_state = stock(flat.pop("u"), flat.pop("delta"), **flat, return_last_state=True)

    @functools.wraps(stock)
    def package(*args, **kwargs):
        raise AssertionError("the package's kernel was called")

    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", package)
    ours = selective_scan(**inputs, return_last_state=True, impl="hf")
    assert torch.equal(ours[0], y.to(dtype))
    assert torch.equal(ours[1], last_state.float())
    if dtype == torch.float32:
        assert_defined(inputs, ours)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"has_initial_state": True}, "initial_state.*impl='torch'"),
        ({"ngroups": 2}, "one group.*impl='torch'"),
    ],
)
def test_hf_says_what_it_cannot_do(changed, message):
    problem = dataclasses.replace(Problem(1, 2, 4, 2), **changed)
    with pytest.raises(NotImplementedError, match=message):
        selective_scan(**problem.inputs(), impl="hf")


def test_hf_has_no_states_in_between():
    with pytest.raises(NotImplementedError, match=r"return_states.*impl='torch'"):
        selective_scan(**Problem(1, 2, 4, 2).inputs(), return_states=3, impl="hf")


def test_triton_says_that_it_has_no_float64(device):
    with pytest.raises(NotImplementedError, match="float64"):
        selective_scan(**Problem(1, 2, 4, 2).inputs(torch.float64, device), impl="triton")


@pytest.mark.parametrize(
    ("impl", "kernel"),
    [
        ("torch", "torch.selective_scan"),
        ("cpu", "numba.selective_scan"),
        ("hf", "transformers.mamba_selective_scan"),
        ("triton", "triton.selective_scan_fwd"),
        ("reference", "reference.selective_scan"),
    ],
)
def test_the_manifest_names_the_kernel(impl, kernel, device):
    with recording() as manifest:
        selective_scan(**Problem(1, 2, 4, 2).inputs(device=home(impl, device)), impl=impl)
    assert manifest == {"selective_scan": kernel}


X = torch.zeros(2, 8, 3)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"u": [1.0]}, TypeError, "u must be a tensor"),
        ({"u": X[0]}, ValueError, r"u must have shape \(any, any, any\)"),
        ({"u": X.long()}, TypeError, "u must be one of"),
        ({"u": X[..., :0]}, ValueError, "u must have at least one"),
        ({"delta": X[..., :2]}, ValueError, r"delta must have shape \(2, 8, 3\), got \(2, 8, 2\)"),
        ({"A": torch.zeros(7, 4)}, ValueError, r"A must have shape \(8, any\)"),
        ({"A": torch.zeros(8, 257)}, ValueError, "A must have 1 to 256 states"),
        ({"A": torch.zeros(8, 4).cfloat()}, TypeError, "A must be one of"),
        ({"A": torch.zeros(8, 4, device="meta")}, ValueError, "A must be on cpu"),
        ({"B": torch.zeros(2, 5, 3)}, ValueError, r"B must have shape \(2, 4, 3\)"),
        ({"B": torch.zeros(2, 3, 4, 3)}, ValueError, "B must have a number of groups that divides"),
        ({"C": torch.zeros(2, 2, 4, 3)}, ValueError, "C must have as many groups as B"),
        ({"D": torch.zeros(9)}, ValueError, r"D must have shape \(8\)"),
        ({"z": X[:1]}, ValueError, "z must have shape"),
        ({"delta_bias": "no"}, TypeError, "delta_bias must be a tensor"),
        ({"delta_softplus": 1}, TypeError, "delta_softplus must be True or False"),
        ({"initial_state": torch.zeros(2, 4, 8)}, ValueError, "initial_state must have shape"),
        ({"initial_state": torch.zeros(2, 8, 4).half()}, TypeError, "initial_state must be one of"),
        ({"reverse": 1}, TypeError, "reverse must be True or False"),
        ({"return_states": 0}, ValueError, "return_states must be None or every how many"),
        ({"return_states": 2.0}, ValueError, "return_states must be None or every how many"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
    ],
)
def test_bad_arguments(changed, error, message):
    inputs = Problem(2, 3, 8, 4).inputs() | {"impl": "torch"} | changed
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


@pytest.mark.parametrize("impl", OURS)
def test_nan_is_not_hidden(impl, device):
    inputs = Problem(1, 5, 4, 2).inputs(device=home(impl, device))
    inputs["delta"][0, 1, 2] = torch.nan
    y = selective_scan(**inputs, impl=impl)
    assert y[0, 1, 2:].isnan().all()
    assert not y[0, 1, :2].isnan().any()
    assert not y[0, [0, 2, 3]].isnan().any()


def test_cpu_uses_the_threads_of_torch():
    import numba

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        selective_scan(**Problem(1, 2, 4, 2).inputs(), impl="cpu")
        assert numba.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_accuracy(dtype):
    pytest.importorskip("selective_scan_cuda")
    for problem in (Problem(2, 130, 64, 16), Problem(1, 1, 64, 16, has_initial_state=True)):
        inputs = problem.inputs(dtype, "cuda")
        y, last_state = selective_scan(**inputs, return_last_state=True, impl="cuda")
        assert y.stride() == inputs["u"].stride()
        # its fp32 uses fast-math exponentials: held to the rule in 16 bits, shown in float32
        if dtype != torch.float32:
            assert_defined(inputs, (y, last_state))


@pytest.mark.gpu
def test_triton_fills_the_gpu():
    """The default choice of segments, on lengths around it, in bfloat16."""
    for problem in (Problem(1, 2050, 200, 16), Problem(4, 515, 1000, 16, has_initial_state=True)):
        inputs = problem.inputs(torch.bfloat16, "cuda")
        assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl="triton"))
