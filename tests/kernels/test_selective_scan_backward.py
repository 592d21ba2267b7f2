"""Gradients of the scan: every implementation with kernels of its own against the definition in float64."""

import dataclasses
import importlib

import pytest
import torch

from kernels import tuning
from kernels.layout import dense_like
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.op import selective_scan
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.reference import selective_scan_ref
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

OPERANDS = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
STATE = {"has_initial_state": True}
PROBLEMS = [
    Problem(2, 9, 10, 16, **STATE),  # everything; not a whole number of chunks
    Problem(1, 1, 3, 1),
    Problem(1, 6, 40, 3, ngroups=2, layout="time_last", has_z=False),  # ragged blocks of channels
    Problem(1, 5, 4, 20, ngroups=2, has_D=False, **STATE),  # two parts of the states
    Problem(1, 5, 3, 33, has_bias=False, delta_softplus=False),
    *(Problem(1, seqlen, 5, 2, **STATE) for seqlen in (31, 32, 33, 65)),
]
SPLIT = Problem(2, 4 * CHECKPOINT + 3, 6, 3, **STATE)
BOUNDS = [
    0,
    0,
    5,
    5,
    32,
    50,
    70,
    70,
]  # empty first, in the middle and last; one ends with a segment
PACKED = Problem(1, BOUNDS[-1], 5, 3)


def operands(inputs):
    return {name: inputs[name] for name in OPERANDS if inputs[name] is not None}


def packed(dtype, device):
    inputs = PACKED.inputs(dtype, device)
    inputs["cu_seqlens"] = torch.tensor(BOUNDS, dtype=torch.int32, device=device)
    gen = torch.Generator().manual_seed(2)
    state = torch.randn(len(BOUNDS) - 1, PACKED.dim, PACKED.dstate, generator=gen)
    inputs["initial_state"] = state.to(device)
    return inputs


def incoming(inputs, with_last=True):
    """Gradients of y and of the last state."""
    gen = torch.Generator().manual_seed(1)
    u, A, bounds = inputs["u"], inputs["A"], inputs.get("cu_seqlens")
    sequences = len(u) if bounds is None else len(bounds) - 1
    dy = torch.randn(u.shape, generator=gen).to(u)
    dlast = torch.randn(sequences, *A.shape, generator=gen).to(u.device)
    return dy, dlast if with_last else None


def differentiate(scan, inputs, dy, dlast, wide=False):
    """{operand: gradient} through autograd; in float64 if `wide`."""
    cast = lambda t: t.double() if wide and t.is_floating_point() else t
    inputs = {k: cast(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    leaves = {name: t.detach().requires_grad_() for name, t in operands(inputs).items()}
    y, last_state = scan(**(inputs | leaves))[:2]
    outputs = [(y, dy)] if dlast is None else [(y, dy), (last_state, dlast)]
    found = torch.autograd.grad(
        [t for t, _ in outputs], list(leaves.values()), [g.to(t.dtype) for t, g in outputs]
    )
    return dict(zip(leaves, found, strict=True))


def assert_gradients(inputs, actual, dy, dlast):
    gold = differentiate(selective_scan_ref, inputs, dy, dlast, wide=True)
    baseline = differentiate(selective_scan_ref, inputs, dy, dlast)
    assert actual.keys() == gold.keys()
    for name in gold:
        assert_as_accurate(f"d{name}", actual[name], baseline[name], gold[name], slack=3.0)


def in_pieces(inputs, dy, dlast, pieces):
    """{operand: gradient} by the Triton kernels, the sequence shared out among `pieces` programs."""
    backward = importlib.import_module("kernels.selective_scan.backward")
    inputs = {"cu_seqlens": None, "reverse": False} | inputs
    checkpoints = selective_scan_ref(**inputs, return_states=CHECKPOINT)[2]
    launches, finish = backward.plan(dy, dlast, **inputs, checkpoints=checkpoints, pieces=pieces)
    for kernel, grid, args in launches:
        kernel[grid](**args)
    found = [t for t in finish() if t is not None]
    return dict(zip(operands(inputs), found, strict=True))


def by(impl):
    return lambda **inputs: selective_scan(**inputs, return_last_state=True, impl=impl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradients(problem, dtype, device):
    if dtype == torch.float16 and problem.seqlen > 9:
        pytest.skip("lengths are proven in float32")
    inputs = problem.inputs(dtype, device)
    dy, dlast = incoming(inputs, with_last=problem.has_initial_state)
    actual = differentiate(by("triton"), inputs, dy, dlast)
    assert_gradients(inputs, actual, dy, dlast)
    for name, t in operands(inputs).items():
        assert actual[name].stride() == dense_like(t).stride(), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("pieces", [2, 3])
def test_split_sequence(pieces, reverse, device):
    inputs = SPLIT.inputs(device=device) | {"reverse": reverse}
    dy, dlast = incoming(inputs)
    assert_gradients(inputs, in_pieces(inputs, dy, dlast, pieces), dy, dlast)


@pytest.mark.parametrize("shape", [(4, 128, 2), (2, 64, 4), (8, 32, 8)])
def test_other_configurations(shape, device):
    """Ragged blocks whose lanes take their states in every order; states that are no whole number of groups."""
    config = dict(zip(("TOKENS", "BLOCK_D", "GROUP"), shape, strict=True)) | {"STATES": 4}
    inputs = Problem(1, CHECKPOINT + 3, 150, 6, **STATE).inputs(device=device)
    dy, dlast = incoming(inputs)
    with tuning.using(selective_scan_bwd=config):
        assert_gradients(inputs, in_pieces(inputs, dy, dlast, 2), dy, dlast)


def test_candidates_begin_with_the_default():
    backward = importlib.import_module("kernels.selective_scan.backward")
    default, *more = backward.candidates("selective_scan_bwd", Problem(8, 4096), torch.bfloat16, 9)
    assert default == backward.default_configuration(1024, 16, torch.bfloat16)
    assert 8 <= len(more) < 24
    assert default not in more
    assert all(one.keys() == default.keys() for one in more)


def test_reverse(device):
    inputs = Problem(2, 37, 5, 3, **STATE).inputs(device=device) | {"reverse": True}
    dy, dlast = incoming(inputs)
    assert_gradients(inputs, differentiate(by("triton"), inputs, dy, dlast), dy, dlast)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_states", [False, True])
def test_packed_sequences(with_states, reverse, device):
    inputs = packed(torch.float32, device) | {"reverse": reverse}
    if not with_states:
        inputs["initial_state"] = None
    dy, dlast = incoming(inputs, with_states)
    assert_gradients(inputs, differentiate(by("triton"), inputs, dy, dlast), dy, dlast)
    assert_gradients(inputs, in_pieces(inputs, dy, dlast, 2), dy, dlast)


def test_bounds_beyond_the_tokens_stay_inside(device):
    """A GPU's bounds are not checked by the host: wrong ones may give wrong numbers, but touch no other memory."""
    inputs = packed(torch.float32, device)
    dy, dlast = incoming(inputs)
    for bounds in ([0, 900, -5, 7, 1 << 30, 3, 2, 70], [70] * 8, [-9] * 8):
        backward = importlib.import_module("kernels.selective_scan.backward")
        owner = backward._owner(torch.tensor(bounds, dtype=torch.int32), PACKED.seqlen, False)
        assert owner.min() >= 0
        assert owner.max() < len(BOUNDS) - 1
    assert dy.shape == inputs["u"].shape
    assert dlast.shape[0] == len(BOUNDS) - 1


def test_strided_operands(device):
    inputs = Problem(2, 6, 5, 3, **STATE).inputs(device=device)
    wide = {name: torch.stack([t, t + 1], -1) for name, t in operands(inputs).items()}
    inputs |= {name: t[..., 0] for name, t in wide.items()}
    dy, dlast = incoming(inputs)
    dy = dy[:, :, :1].expand(inputs["u"].shape)  # as from a sum
    assert_gradients(inputs, differentiate(by("triton"), inputs, dy, dlast), dy, dlast)


def test_operands_of_other_dtypes(device):
    inputs = Problem(1, 5, 6, 4).inputs(torch.float16, device)
    inputs["delta"], inputs["C"] = inputs["delta"].float(), inputs["C"].float()
    inputs["D"] = inputs["D"].half()
    dy, _ = incoming(inputs, with_last=False)
    assert_gradients(inputs, differentiate(by("triton"), inputs, dy, None), dy, None)


@pytest.mark.parametrize("before_gate", [-80.0, 80.0])
@pytest.mark.parametrize("before_softplus", [-20.0, 30.0])
def test_extreme_values(before_softplus, before_gate, device):
    inputs = Problem(1, 5, 6, 2, **STATE).inputs(device=device)
    inputs["delta"][..., 2] += before_softplus
    inputs["z"][..., 1] = before_gate
    dy, dlast = incoming(inputs)
    assert_gradients(inputs, differentiate(by("triton"), inputs, dy, dlast), dy, dlast)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_same_bits_every_time(pieces, device):
    inputs = dataclasses.replace(SPLIT, seqlen=2 * CHECKPOINT + 5).inputs(device=device)
    dy, dlast = incoming(inputs)
    first, second = (in_pieces(inputs, dy, dlast, pieces) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_nan_stays_in_its_sequence(device):
    inputs = packed(torch.float32, device)
    dy, dlast = incoming(inputs)
    dy[0, 1, 20] = torch.nan  # of the sequence of tokens 5 to 31
    found = in_pieces(inputs, dy, dlast, 1)
    assert found["u"][0, 1, 5:21].isnan().all()
    for name in ("u", "delta", "z"):
        assert not found[name][..., :5].isnan().any(), name
        assert not found[name][..., 21:].isnan().any(), name


def test_float64_is_refused(device):
    inputs = Problem(1, 2, 3, 2).inputs(torch.float64, device)
    inputs["A"].requires_grad_()
    with pytest.raises(NotImplementedError, match="impl='torch'"):
        selective_scan(**inputs, impl="triton")
    backward = importlib.import_module("kernels.selective_scan.backward")
    inputs |= {"cu_seqlens": None, "reverse": False, "checkpoints": None}
    with pytest.raises(NotImplementedError, match="impl='torch'"):
        backward.selective_scan_backward_triton(inputs["u"], None, **inputs)


def test_no_memory_for_a_workspace_is_said(device, monkeypatch):
    backward = importlib.import_module("kernels.selective_scan.backward")
    inputs = Problem(1, 7, 64, 16).inputs(device=device)
    dy, _ = incoming(inputs)
    checkpoints = dy.new_empty(1, 0, 64, 16)
    empty = torch.empty

    def full(*shape, **options):
        if len(shape[0]) == 5:
            raise torch.OutOfMemoryError("no memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"sums of dB and dC \([\d,]+ bytes\)"):
        backward.plan(dy, None, **inputs, cu_seqlens=None, reverse=False, checkpoints=checkpoints)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bounds", [None, [0, 2, 2, 5]])
def test_gradcheck_of_the_reference(bounds, reverse):
    inputs = Problem(1, 5, 4, 2, ngroups=2).inputs(torch.float64)
    sequences = 1 if bounds is None else len(bounds) - 1
    inputs["initial_state"] = torch.randn(sequences, 4, 2, dtype=torch.float64)
    leaves = {name: t.requires_grad_() for name, t in operands(inputs).items()}
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)

    def scan(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return selective_scan_ref(
            **named, delta_softplus=True, cu_seqlens=cu_seqlens, reverse=reverse, return_states=2
        )

    assert torch.autograd.gradcheck(scan, list(leaves.values()))


def test_opcheck(device):
    inputs = Problem(1, 5, 3, 2, **STATE).inputs(device=device)
    leaves = {name: t.requires_grad_() for name, t in operands(inputs).items()}
    arguments = [(inputs | leaves)[name] for name in OPERANDS[:8]]
    arguments += [True, leaves["initial_state"], None, False, 0, "triton"]
    torch.library.opcheck(torch.ops.crossover.selective_scan, arguments)


def test_compiled_as_one_graph(device):
    inputs = Problem(1, 5, 3, 2, **STATE).inputs(device=device)
    dy, dlast = incoming(inputs)
    compiled = torch.compile(by("triton"), fullgraph=True, backend="aot_eager")
    found = differentiate(compiled, inputs, dy, dlast)
    eager = differentiate(by("triton"), inputs, dy, dlast)
    for name in eager:
        assert torch.equal(found[name], eager[name]), name
