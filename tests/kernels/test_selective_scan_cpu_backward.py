"""Gradients of the scan under `cpu` against the definition in float64."""

import dataclasses
import importlib

import pytest
import torch

from kernels.layout import dense_like
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.op import selective_scan
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from tests.kernels.test_selective_scan_backward import (
    BOUNDS,
    OPERANDS,
    STATE,
    assert_gradients,
    differentiate,
    incoming,
    operands,
)

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [
    Problem(2, 33, 10, 16, **STATE),  # everything; one token past a segment
    Problem(1, 1, 3, 1),
    Problem(1, 70, 40, 3, ngroups=2, layout="time_last", has_z=False),  # ragged blocks of channels
    Problem(1, 5, 6, 20, ngroups=3, has_D=False, **STATE),
    Problem(1, 31, 5, 16, has_bias=False, delta_softplus=False),
    Problem(1, 9, 5, 3, has_z=False, has_D=False, has_bias=False, delta_softplus=False),
    Problem(1, 9, 5, 3, layout="time_last", **STATE),
    Problem(1, 32, 19, 16, **STATE),
    Problem(2, 70, 133, 2, **STATE),  # 128 channels and 5
    Problem(1, 3, 40, 256),  # more states than keep a wide block in the cache
]
EVERYTHING = Problem(2, 2 * CHECKPOINT + 6, 21, 3, ngroups=3, **STATE)


@pytest.fixture
def module():
    return importlib.import_module("kernels.selective_scan.cpu_backward")


def cpu(**inputs):
    return selective_scan(**inputs, return_last_state=True, impl="cpu")


def packed(dtype=torch.float32, **changes):
    """Inputs of packed sequences: empty ones first, in the middle and last, one that ends with a segment."""
    inputs = Problem(1, BOUNDS[-1], 5, 3, **changes).inputs(dtype)
    gen = torch.Generator().manual_seed(2)
    state = torch.randn(len(BOUNDS) - 1, 5, 3, generator=gen)
    return inputs | {
        "cu_seqlens": torch.tensor(BOUNDS, dtype=torch.int32),
        "initial_state": state.to(inputs["A"]),
    }


def assert_differentiated(inputs, dy, dlast):
    assert_gradients(inputs, differentiate(cpu, inputs, dy, dlast), dy, dlast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradients(problem, dtype):
    inputs = problem.inputs(dtype)
    dy, dlast = incoming(inputs, with_last=problem.has_initial_state)
    actual = differentiate(cpu, inputs, dy, dlast)
    assert_gradients(inputs, actual, dy, dlast)
    for name, t in operands(inputs).items():
        assert actual[name].stride() == dense_like(t).stride(), name


@pytest.mark.parametrize("layout", ["channel_last", "time_last"])
def test_reverse(layout):
    inputs = dataclasses.replace(EVERYTHING, layout=layout).inputs() | {"reverse": True}
    assert_differentiated(inputs, *incoming(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_states", [False, True])
def test_packed_sequences(with_states, reverse, dtype):
    inputs = packed(dtype) | {"reverse": reverse}
    if not with_states:
        inputs["initial_state"] = None
    assert_differentiated(inputs, *incoming(inputs, with_states))


@pytest.mark.parametrize("bounds", [[0, 3], [0, 0, 3], [0, 2, 2, 2, 3]])
def test_packed_sequences_shorter_than_a_segment(bounds):
    inputs = Problem(1, 3, 4, 2, layout="time_last").inputs()
    inputs["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    assert_differentiated(inputs, *incoming(inputs))


def test_gradient_of_the_last_state_alone():
    inputs = EVERYTHING.inputs()
    leaves = {name: t.detach().requires_grad_() for name, t in operands(inputs).items()}
    dy, dlast = incoming(inputs)
    found = torch.autograd.grad(cpu(**(inputs | leaves))[1], list(leaves.values()), dlast)
    actual = dict(zip(leaves, found, strict=True))
    assert_gradients(inputs, actual, torch.zeros_like(dy), dlast)


def test_strided_operands():
    inputs = EVERYTHING.inputs()
    wide = {name: torch.stack([t, t + 1], -1) for name, t in operands(inputs).items()}
    inputs |= {name: t[..., 0] for name, t in wide.items()}
    dy, dlast = incoming(inputs)
    dy = dy[:, :, :1].expand(inputs["u"].shape)  # as from a sum
    assert_differentiated(inputs, dy, dlast.transpose(1, 2).contiguous().transpose(1, 2))


def test_checkpoints_of_any_strides(module):
    inputs = EVERYTHING.inputs()
    dy, dlast = incoming(inputs)
    states = selective_scan(**inputs, return_states=CHECKPOINT, impl="cpu")[1]
    first, second = (
        module.selective_scan_backward_cpu(
            dy, dlast, **inputs, cu_seqlens=None, reverse=False, checkpoints=checkpoints
        )
        for checkpoints in (states, states.contiguous())
    )
    assert not states.is_contiguous()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_operands_of_other_dtypes():
    inputs = Problem(1, 5, 6, 4).inputs(torch.float16)
    inputs["delta"], inputs["C"] = inputs["delta"].float(), inputs["C"].float()
    inputs["D"] = inputs["D"].half()
    assert_differentiated(inputs, *incoming(inputs, with_last=False))


@pytest.mark.parametrize("before_gate", [-80.0, 80.0])
@pytest.mark.parametrize("before_softplus", [-20.0, 30.0])
def test_extreme_values(before_softplus, before_gate):
    inputs = Problem(1, 5, 6, 2, **STATE).inputs()
    inputs["delta"][..., 2] += before_softplus
    inputs["z"][..., 1] = before_gate
    assert_differentiated(inputs, *incoming(inputs))


@pytest.mark.parametrize("layout", ["channel_last", "time_last"])
def test_the_same_bits_every_time(layout):
    inputs = Problem(2, 70, 150, 16, layout=layout, **STATE).inputs()
    dy, dlast = incoming(inputs)
    first, second = (differentiate(cpu, inputs, dy, dlast) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_stays_in_its_sequence(reverse):
    inputs = packed() | {"reverse": reverse}
    dy, dlast = incoming(inputs)
    dy[0, 1, 20] = torch.nan  # of the sequence of tokens 5 to 31
    found = differentiate(cpu, inputs, dy, dlast)
    reached = slice(20, 32) if reverse else slice(5, 21)
    for name in ("u", "delta", "z"):
        assert found[name][0, 1, 20].isnan(), name
        found[name][0, 1, reached] = 0
        assert not found[name].isnan().any(), name
    assert found["u"].shape == inputs["u"].shape


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bounds", [None, [0, 2, 2, 5]])
def test_gradcheck(bounds, reverse):
    """In float64 all through: differences of the forward, whose 10th digits count."""
    inputs = Problem(1, 5, 4, 2, ngroups=2).inputs(torch.float64)
    sequences = 1 if bounds is None else len(bounds) - 1
    inputs["initial_state"] = torch.randn(sequences, 4, 2, dtype=torch.float64)
    leaves = {name: t.requires_grad_() for name, t in operands(inputs).items()}
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)

    def scan(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return cpu(**named, delta_softplus=True, cu_seqlens=cu_seqlens, reverse=reverse)

    assert torch.autograd.gradcheck(scan, list(leaves.values()))


def test_no_memory_for_a_workspace_is_said(module, monkeypatch):
    inputs = Problem(1, 7, 64, 16).inputs()
    dy, _ = incoming(inputs)
    empty = torch.empty

    def full(*shape, **options):
        if len(shape[0]) == 5:
            raise RuntimeError("can't allocate memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"sums of dB and dC \([\d,]+ bytes\)"):
        module.selective_scan_backward_cpu(
            dy, None, **inputs, cu_seqlens=None, reverse=False, checkpoints=dy.new_empty(1, 0, 64, 16)
        )  # fmt: skip


def test_states_have_no_gradient():
    inputs = Problem(1, 5, 4, 2).inputs()
    inputs["u"].requires_grad_()
    _, states = selective_scan(**inputs, return_states=2, impl="cpu")
    with pytest.raises(NotImplementedError, match="use impl='torch'"):
        states.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bounds", [None, [0, 2, 2, 5]])
def test_opcheck(bounds, dtype):
    inputs = Problem(1, 5, 3, 2, layout="time_last" if bounds else "channel_last").inputs(dtype)
    sequences = 1 if bounds is None else len(bounds) - 1
    inputs["initial_state"] = torch.randn(sequences, 3, 2)
    leaves = {name: t.requires_grad_() for name, t in operands(inputs).items()}
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    arguments = [leaves[name] for name in OPERANDS[:8]]
    arguments += [True, leaves["initial_state"], cu_seqlens, bounds is not None, 0, "cpu"]
    torch.library.opcheck(torch.ops.crossover.selective_scan, arguments)


def test_compiled_as_one_graph():
    inputs = Problem(1, 5, 3, 2, **STATE).inputs()
    dy, dlast = incoming(inputs)
    compiled = torch.compile(cpu, fullgraph=True, backend="aot_eager")
    found = differentiate(compiled, inputs, dy, dlast)
    eager = differentiate(cpu, inputs, dy, dlast)
    for name in eager:
        assert torch.equal(found[name], eager[name]), name
        assert found[name].stride() == eager[name].stride(), name
