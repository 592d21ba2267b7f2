"""Packed sequences, the reverse direction and states in between: each is what plain scans give piece by piece."""

import itertools
import math

import pytest
import torch

from kernels.selective_scan.forward import choose_segments, plan, run
from kernels.selective_scan.op import selective_scan
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from tests.kernels.scans import OURS, assert_defined, home, triton_in_segments, widened
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

SEQLEN = 23
# in three segments, which begin at 0, 8 and 16: bounds on their edges and inside, empty sequences at the ends and in
# the middle, one of a single token, one over two edges
BOUNDS = [[0, 0, 8, 8, 9, 16, 20, 23, 23], [0, 23], [0, 5, 23], [0, 1, 2, 3, 23]]


def packed(bounds, device="cpu", dtype=torch.float32, **changed):
    """Inputs of SEQLEN packed tokens, with an initial state for each sequence if they have any."""
    problem = Problem(1, SEQLEN, 12, 3, **({"ngroups": 2, "has_initial_state": True} | changed))
    inputs = problem.inputs(dtype, device) | {"cu_seqlens": bounds_on(device, bounds)}
    if problem.has_initial_state:
        gen = torch.Generator().manual_seed(1)
        states = torch.randn(len(bounds) - 1, problem.dim, problem.dstate, generator=gen)
        inputs["initial_state"] = states.to(device, inputs["A"].dtype)
    return inputs


def bounds_on(device, bounds):
    return torch.tensor(bounds, dtype=torch.int32, device=device)


def scan_in_pieces(inputs, impl):
    """(y, last_state, states) of plain scans of every sequence; `states` after every token."""
    found = []
    for i, (start, end) in enumerate(itertools.pairwise(inputs["cu_seqlens"].tolist())):
        time = slice(start, end)
        piece = {
            k: v[..., time] if k in ("u", "delta", "z", "B", "C") else v for k, v in inputs.items()
        }
        del piece["cu_seqlens"]
        first = piece.pop("initial_state")
        first = inputs["A"].new_zeros(1, 12, 3) if first is None else first[i : i + 1]
        if start < end:
            found.append(
                selective_scan(
                    **piece, initial_state=first, return_last_state=True, return_states=1, impl=impl
                )
            )
        else:
            found.append((inputs["u"][..., :0], first, first[:, None][:, :0]))
    ys, lasts, states = zip(*found, strict=True)
    return torch.cat(ys, 2), torch.cat(lasts), torch.cat(states, 1)


@pytest.mark.parametrize("has_initial_state", [True, False])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_definition_of_packed_sequences(bounds, has_initial_state):
    inputs = packed(bounds, has_initial_state=has_initial_state)
    gold, baseline = (scan_in_pieces(i, "reference") for i in (widened(inputs), inputs))
    for k in (1, 4, SEQLEN):
        y, last_state, states = selective_scan(
            **inputs, return_last_state=True, return_states=k, impl="reference"
        )
        assert_as_accurate("y", y, baseline[0], gold[0])
        assert_as_accurate("last_state", last_state, baseline[1], gold[1])
        assert_as_accurate("states", states, *(one[2][:, k - 1 :: k] for one in (baseline, gold)))


@pytest.mark.parametrize("bounds", [None, BOUNDS[0]], ids=str)
def test_the_definition_of_reverse(bounds):
    """A scan of flipped tokens, whose results are flipped back."""
    inputs = packed(bounds or [0, SEQLEN])
    inputs |= {"cu_seqlens": None} if bounds is None else {}
    flipped = {
        k: v.flip(-1) if k in ("u", "delta", "z", "B", "C") else v for k, v in inputs.items()
    }
    if bounds is not None:
        flipped["cu_seqlens"] = SEQLEN - inputs["cu_seqlens"].flip(0)
        flipped["initial_state"] = inputs["initial_state"].flip(0)
    options = {"return_last_state": True, "return_states": 5, "impl": "reference"}
    y, last_state, states = selective_scan(**inputs, **options, reverse=True)
    plain = selective_scan(**flipped, **options)
    assert torch.equal(y, plain[0].flip(2))
    assert torch.equal(last_state, plain[1] if bounds is None else plain[1].flip(0))
    assert torch.equal(states, plain[2].flip(1))


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("bounds", BOUNDS[:3], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("impl", OURS)
def test_packed(impl, dtype, bounds, reverse, device):
    home_device = home(impl, device)
    inputs = packed(bounds, home_device, dtype, has_initial_state=bounds is not BOUNDS[2])
    inputs |= {"reverse": reverse, "return_states": 4}
    found = selective_scan(**inputs, return_last_state=True, impl=impl)
    assert_defined(inputs, found)
    assert found[0].stride() == inputs["u"].stride()
    for one, again in zip(
        found, selective_scan(**inputs, return_last_state=True, impl=impl), strict=True
    ):
        assert torch.equal(one, again)


@pytest.mark.parametrize("layout", ["channel_last", "time_last"])
@pytest.mark.parametrize("impl", OURS)
def test_reverse(impl, layout, device):
    """Of whole sequences, with strides of every kind, and the states of a length that k does not divide."""
    problem = Problem(2, 19, 20, 18, ngroups=2, layout=layout, has_initial_state=True)
    inputs = problem.inputs(device=home(impl, device)) | {"reverse": True, "return_states": 7}
    inputs["delta"] = torch.stack([inputs["delta"]] * 2, -1)[..., 0]
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl=impl))


@pytest.mark.parametrize("every", [1, 4, 6, 17, 18])
@pytest.mark.parametrize("impl", OURS)
def test_states_in_between(impl, every, device):
    problem = Problem(2, 17, 20, 5, has_initial_state=True, has_z=False)
    inputs = problem.inputs(device=home(impl, device)) | {"return_states": every}
    y, last_state, states = selective_scan(**inputs, return_last_state=True, impl=impl)
    assert_defined(inputs, (y, last_state, states))
    assert states.shape == (2, 17 // every, 20, 5)
    if 17 % every == 0:
        assert torch.equal(states[:, -1], last_state)
    without = selective_scan(**inputs | {"return_states": None}, impl=impl)
    assert torch.equal(y, without)


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_states_over_many_blocks(impl):
    inputs = Problem(1, 70, 6, 4).inputs() | {"return_states": 9}
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl=impl))


@pytest.mark.parametrize("every", [0, 1, 5])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("bounds", [None, *BOUNDS[:3]], ids=str)
def test_split_sequences(bounds, reverse, every, device):
    """Segments of eight tokens, whatever the sequences are."""
    inputs = packed(bounds or [0, SEQLEN], device, has_initial_state=bounds != BOUNDS[2])
    inputs |= {"cu_seqlens": None} if bounds is None else {}
    inputs |= {"reverse": reverse, "return_states": every}
    assert_defined(inputs, triton_in_segments(inputs, 3))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy, of infinities
@pytest.mark.parametrize("segments", [1, 3])
def test_nothing_leaks_from_one_sequence_into_the_next(segments, device):
    """Not even a state that explodes: positive rates, long steps and infinite tokens from 9 to 16."""
    inputs = packed(BOUNDS[0], device)
    inputs["A"] = -inputs["A"]
    plain, last_state = triton_in_segments(inputs, segments)
    inputs["u"][..., 9:16] = math.inf
    inputs["delta"][..., 9:16] = 1e5
    y, wild_state = triton_in_segments(inputs, segments)
    assert not y[..., 9:16].isfinite().any()
    assert torch.equal(y[..., :9], plain[..., :9])
    assert torch.equal(y[..., 16:], plain[..., 16:])
    assert not wild_state[4].isfinite().any()
    others = [0, 1, 2, 3, 5, 6, 7]
    assert torch.equal(wild_state[others], last_state[others])


@pytest.mark.parametrize("bounds", [[30, 5, -7, 12, 40], [9, 9, 9], [0, 100], [-5, 3, 23]], ids=str)
@pytest.mark.parametrize("segments", [1, 3])
def test_wrong_bounds_do_not_leave_the_tensors(bounds, segments, monkeypatch):
    """Bounds on a GPU are not checked, which would wait for it: the kernels stay inside whatever they are."""
    guard = 4096

    def guarded(shape, dtype=torch.float32, device=None):
        size = math.prod(shape)
        memory = torch.full((size + 2 * guard,), 7.0, dtype=dtype)
        kept.append((memory, size))
        return memory[guard : guard + size].view(shape)

    kept = []
    inputs = packed(bounds) | {"return_states": 4}
    with monkeypatch.context() as patch:
        patch.setattr("torch.empty", guarded)
        launches = plan(**inputs, segments=segments)[-1]
    assert len(kept) == 3 if segments == 1 else 5
    run(launches, inputs["u"])
    for memory, size in kept:
        assert (memory[:guard] == 7).all()
        assert (memory[guard + size :] == 7).all()


def test_packed_by_transformers():
    inputs = packed(BOUNDS[0], ngroups=1, has_initial_state=False) | {"reverse": True}
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl="hf"))


def test_gradient_through_states():
    """Only `torch` has it: that of the reference, with packed sequences from right to left."""
    weights = torch.randn(1, SEQLEN // 4, 12, 3, generator=torch.Generator().manual_seed(2))

    def gradients(impl, inputs):
        operands = [inputs[k].requires_grad_() for k in ("u", "delta", "A", "B", "initial_state")]
        _, states = selective_scan(**inputs, reverse=True, return_states=4, impl=impl)
        return torch.autograd.grad(states, operands, weights.to(states.dtype))

    inputs = packed(BOUNDS[0])
    gold, baseline = gradients("reference", widened(inputs)), gradients("reference", inputs)
    for three in zip(gradients("torch", inputs), baseline, gold, strict=True):
        assert_as_accurate("gradient", *three, slack=3.0)


def test_number_of_segments():
    assert choose_segments(programs=5000, seqlen=2048, sm_count=132) == 1  # the machine is full
    assert choose_segments(programs=16, seqlen=1, sm_count=132) == 1  # nothing to cut
    assert choose_segments(programs=16, seqlen=2048, sm_count=132) == 64  # limited by the length
    assert choose_segments(programs=16, seqlen=131072, sm_count=132) == 66  # by the machine
    assert choose_segments(programs=16, seqlen=2048, sm_count=0) == 1  # no GPU


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ([0, 24], ValueError, "cu_seqlens must rise from 0 to 23"),
        ([0, 9, 8, 23], ValueError, "cu_seqlens must rise"),
        ([1, 23], ValueError, "cu_seqlens must rise"),
        ([23], ValueError, "at least two bounds"),
    ],
)
def test_bad_bounds(bounds, error, message):
    inputs = packed([0, SEQLEN], has_initial_state=False)
    with pytest.raises(error, match=message):
        selective_scan(**inputs | {"cu_seqlens": bounds_on("cpu", bounds)}, impl="torch")


def test_bad_operands_of_packed_sequences():
    inputs = packed([0, 5, SEQLEN])
    with pytest.raises(TypeError, match="cu_seqlens must be one of int32"):
        selective_scan(**inputs | {"cu_seqlens": inputs["cu_seqlens"].long()}, impl="torch")
    with pytest.raises(ValueError, match=r"initial_state must have shape \(2, 12, 3\)"):
        selective_scan(**inputs | {"initial_state": torch.zeros(1, 12, 3)}, impl="torch")
    pairs = Problem(2, SEQLEN, 12, 3).inputs() | {"cu_seqlens": inputs["cu_seqlens"]}
    with pytest.raises(ValueError, match="cu_seqlens needs the sequences packed into a batch of 1"):
        selective_scan(**pairs, impl="torch")


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_packed_on_a_gpu(reverse):
    """The default choice of segments, in bfloat16, over sequences of very different lengths."""
    inputs = Problem(1, 4100, 200, 16).inputs(torch.bfloat16, "cuda")
    inputs |= {"cu_seqlens": bounds_on("cuda", [0, 1, 1, 700, 4000, 4100]), "reverse": reverse}
    inputs |= {"return_states": 64}
    assert_defined(inputs, selective_scan(**inputs, return_last_state=True, impl="triton"))
