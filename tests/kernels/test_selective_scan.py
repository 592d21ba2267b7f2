"""Selective scan: every implementation against the definition in float64, and what needs no tolerance."""

import dataclasses
import functools
import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.implementations import interpreted, recording
from kernels.selective_scan.op import selective_scan
from kernels.selective_scan.portable import scan_blocks
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.reference import selective_scan_ref
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

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


def definition(inputs):
    """(gold, baseline): the reference in float64 and in the dtype of the inputs; each (y, last_state)."""
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    return selective_scan_ref(**wide), selective_scan_ref(**inputs)


def assert_defined(inputs, actual):
    """`actual` = (y, last_state) is as accurate as the reference."""
    for name, a, baseline, gold in zip(
        ("y", "last_state"), actual, *reversed(definition(inputs)), strict=True
    ):
        assert_as_accurate(name, a, baseline, gold)


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
    assert_defined(problem.inputs(device=device), triton_in_segments(problem, segments, device))


def triton_in_segments(problem, segments, device, **changed):
    forward = importlib.import_module("kernels.selective_scan.forward")
    inputs = problem.inputs(device=device) | changed
    y, last_state, launches = forward.plan(**inputs, segments=segments)
    forward.run(launches, inputs["u"])
    return y, last_state


def test_number_of_segments():
    choose = importlib.import_module("kernels.selective_scan.forward").choose_segments
    assert choose(programs=5000, seqlen=2048, sm_count=132) == 1  # the machine is full
    assert choose(programs=16, seqlen=1, sm_count=132) == 1  # nothing to cut
    assert choose(programs=16, seqlen=2048, sm_count=132) == 64  # limited by the length
    assert choose(programs=16, seqlen=131072, sm_count=132) == 66  # limited by the machine
    assert choose(programs=16, seqlen=2048, sm_count=0) == 1  # no GPU


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
        run = lambda **operands: triton_in_segments(problem, 3, device, **operands)[0]
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


class NewTensors(TorchDispatchMode):
    """Records the element counts of all memory that operations allocate."""

    def __init__(self):
        super().__init__()
        self.sizes, self._seen = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {
            t.untyped_storage()._cdata
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in known:
                self.sizes.append(t.untyped_storage().nbytes() // t.element_size())
        return result


def test_cpu_reads_views_in_place():
    problem = Problem(2, 64, 96, 8)
    inputs = problem.inputs()
    with NewTensors() as new:
        selective_scan(**inputs, impl="cpu")
    assert sorted(new.sizes)[-1] == problem.elements()  # y
    assert sorted(new.sizes)[-2] <= problem.batch * problem.dim * problem.dstate  # the last state


def test_triton_reads_views_in_place(device):
    plan = importlib.import_module("kernels.selective_scan.forward").plan
    inputs = Problem(2, 64, 96, 8).inputs(device=device)
    y, _, [(_, _, args)] = plan(**inputs, segments=1)
    for name in ("u", "delta", "B", "C", "z"):
        assert args[f"{name}_ptr"].data_ptr() == inputs[name].data_ptr(), name
    assert args["y_ptr"] is y


def test_torch_holds_one_block_of_states():
    problem = Problem(1, 64, 32, 16)
    inputs = problem.inputs()
    with NewTensors() as new:
        selective_scan(**inputs, impl="torch")
    assert max(new.sizes) <= 16 * problem.dim * problem.dstate


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
        y, last_state = scan(**inputs)
        gen = torch.Generator().manual_seed(1)
        dy, dlast = (torch.randn(t.shape, generator=gen).to(t.dtype) for t in (y, last_state))
        return torch.autograd.grad([y, last_state], leaves(inputs), [dy, dlast])

    def inputs(wide=False):
        found = problem.inputs()
        if wide:
            return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in found.items()}
        return found

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
        assert_defined(inputs, blocks(**inputs))


def test_gradcheck_of_the_reference():
    problem = Problem(1, 3, 4, 2, ngroups=2, has_initial_state=True)
    inputs = problem.inputs(torch.float64)
    operands = [inputs[name].requires_grad_() for name in OPERANDS]

    def scan(*operands):
        named = dict(zip(OPERANDS, operands, strict=True))
        return selective_scan_ref(**named, delta_softplus=True)

    assert torch.autograd.gradcheck(scan, operands)


@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_without_backward_a_gradient_is_refused(impl, device):
    inputs = Problem(1, 2, 4, 2).inputs(device=home(impl, device))
    inputs["A"].requires_grad_()
    with pytest.raises(NotImplementedError, match="no backward"):
        selective_scan(**inputs, impl=impl)
    with torch.no_grad():
        selective_scan(**inputs, impl=impl)


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
        ({"has_initial_state": True}, "initial_state"),
        ({"ngroups": 2}, "one group"),
    ],
)
def test_hf_says_what_it_cannot_do(changed, message):
    problem = dataclasses.replace(Problem(1, 2, 4, 2), **changed)
    with pytest.raises(NotImplementedError, match=message):
        selective_scan(**problem.inputs(), impl="hf")


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
