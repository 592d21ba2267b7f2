"""The scan as operators of torch.library: what torch itself checks of them, and torch.compile."""

import pytest
import torch

from kernels.selective_scan import autograd
from kernels.selective_scan.op import selective_scan, selective_state_update
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.problem import StateUpdateProblem

CROSSOVER = torch.ops.crossover
BOUNDS = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
# layout, dtype, bounds of packed sequences, reverse, every how many tokens a state
CASES = [
    ("channel_last", torch.float32, None, False, 0),
    ("time_last", torch.float16, None, True, 2),
    ("channel_last", torch.float32, BOUNDS, True, 2),
]


def operands(layout, dtype, bounds):
    inputs = Problem(1, 5, 4, 2, layout=layout, has_initial_state=True).inputs(dtype)
    if bounds is not None:
        inputs["initial_state"] = inputs["initial_state"].repeat(len(bounds) - 1, 1, 1)
    return inputs


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_the_scan_is_a_sound_operator(impl, case):
    """Its schema, and a fake that agrees in shapes, dtypes and strides."""
    inputs = operands(*case[:3])
    torch.library.opcheck(CROSSOVER.selective_scan, (*inputs.values(), *case[2:], impl))


@pytest.mark.parametrize("impl", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_update_is_a_sound_operator(impl, dtype):
    inputs = StateUpdateProblem(2, 4, 3).inputs(dtype)
    torch.library.opcheck(CROSSOVER.selective_state_update, (*inputs.values(), impl))


@pytest.mark.parametrize("impl", ["cpu", "triton", "torch"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_scan_compiles_into_one_graph(impl, case):
    layout, dtype, bounds, reverse, every = case
    inputs = operands(layout, dtype, bounds)
    if impl == "torch" and bounds is not None:
        pytest.skip("the host reads the bounds, which is outside of a graph")

    def step(**inputs):
        y, *others = selective_scan(
            **inputs, return_last_state=True, cu_seqlens=bounds, reverse=reverse,
            return_states=every or None, impl=impl,
        )  # fmt: skip
        return 2 * y, *others

    expected = step(**inputs)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(**inputs), expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("impl", ["cpu", "triton", "torch"])
def test_the_update_compiles_into_one_graph(impl):
    def step(**inputs):
        y = selective_state_update(**inputs, impl=impl)
        return y + inputs["state"].sum(-1)

    inputs, same = (StateUpdateProblem(2, 4, 3).inputs() for _ in range(2))
    expected = step(**same)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs), expected)
    assert torch.equal(inputs["state"], same["state"])


def test_without_gradients_a_scan_is_called_directly(monkeypatch):
    """A registered operator costs more than a launch."""
    monkeypatch.setattr(autograd, "registered", None)
    inputs = Problem(1, 5, 4, 2).inputs()
    selective_scan(**inputs, impl="cpu")
    inputs["u"].requires_grad_()
    with torch.no_grad():
        selective_scan(**inputs, impl="cpu")
