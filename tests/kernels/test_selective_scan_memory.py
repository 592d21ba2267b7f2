"""Memory of the scan: what is read in place, what is held, what is said when it runs out, and offsets of 2^31."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.selective_scan.forward import plan
from kernels.selective_scan.op import selective_scan, selective_state_update
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from kernels.selective_scan.problem import StateUpdateProblem


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
    inputs = Problem(2, 64, 96, 8).inputs(device=device)
    y, _, _, [(_, _, args)] = plan(**inputs, segments=1)
    for name in ("u", "delta", "B", "C", "z"):
        assert args[f"{name}_ptr"].data_ptr() == inputs[name].data_ptr(), name
    assert args["y_ptr"] is y


@pytest.mark.parametrize("options", [{}, {"return_states": 16}, {"cu_seqlens": 40}], ids=str)
def test_torch_holds_one_block_of_states_whatever_is_asked(options):
    problem = Problem(1, 64, 32, 16)
    if "cu_seqlens" in options:
        options = {"cu_seqlens": torch.tensor([0, 40, 64], dtype=torch.int32), "return_states": 16}
    with NewTensors() as new:
        selective_scan(**problem.inputs(), **options, reverse=True, impl="torch")
    assert max(new.sizes) <= 16 * problem.dim * problem.dstate


def test_running_out_of_workspace_names_it(device, monkeypatch):
    """What, how many bytes, and what would need less; the type of the exception is that of torch."""
    inputs = Problem(1, 64, 8, 4).inputs(device=device)
    allocate = torch.empty

    def small(shape, **kwargs):
        if len(shape) == 4:  # the states between segments
            raise torch.OutOfMemoryError("no memory")
        return allocate(shape, **kwargs)

    monkeypatch.setattr(torch, "empty", small)
    numbers = 8 * (4 * 4 + 3)
    with pytest.raises(torch.OutOfMemoryError, match=f"states between.*{4 * numbers} bytes.*fewer"):
        plan(**inputs, segments=4)


# twice this step is more than 2^31 elements, which the products must hold; the step itself fits in 32 bits
STEP = (1 << 30) + 8


def spread(t, axis):
    """`t` with STEP elements between neighbours along `axis`; only the pages that it lies on become memory."""
    strides = list(t.stride())
    strides[axis] = STEP
    try:
        memory = torch.empty((t.shape[axis] - 1) * STEP + t.numel(), dtype=t.dtype)
    except RuntimeError:
        pytest.skip("this machine does not promise so much memory")
    return memory.as_strided(t.shape, strides).copy_(t)


no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="memory of a GPU is not given page by page"
)


@no_gpu
@pytest.mark.parametrize(
    ("name", "axis"),
    [("u", 0), ("delta", 1), ("z", 2), ("B", 0), ("C", 1), ("A", 0), ("initial_state", 2)],
)
def test_triton_offsets_of_more_than_32_bits(name, axis):
    problem = Problem(3, 3, 3, 3, ngroups=3, has_initial_state=True)
    inputs = problem.inputs(torch.float16)
    inputs["A"] = inputs["A"].half()
    expected = selective_scan(**inputs, return_last_state=True, impl="triton")
    if name == "initial_state":
        inputs[name] = inputs[name].float()
    inputs[name] = spread(inputs[name], axis)
    actual = selective_scan(**inputs, return_last_state=True, impl="triton")
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@no_gpu
@pytest.mark.parametrize(
    ("name", "axis"), [("state", 0), ("state", 1), ("state", 2), ("x", 1), ("B", 1), ("A", 1)]
)
def test_triton_offsets_of_an_update(name, axis):
    inputs = StateUpdateProblem(3, 3, 3, ngroups=3).inputs(torch.float16)
    inputs |= {"A": inputs["A"].half(), "state": inputs["state"].half()}
    far = inputs | {name: spread(inputs[name], axis)}
    far |= {"state": far["state"] if name == "state" else inputs["state"].clone()}
    expected = selective_state_update(**inputs, impl="triton")
    assert torch.equal(selective_state_update(**far, impl="triton"), expected)
    assert torch.equal(far["state"], inputs["state"])
