"""Gradients of causal attention, and attention as a registered operator."""

import importlib

import pytest
import torch

from kernels.causal_attention import autograd
from kernels.causal_attention.backward import DKDV_KERNEL, DQ_KERNEL, candidates
from kernels.causal_attention.op import causal_attention
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_attention.tiles import workspace
from kernels.implementations import recording
from kernels.tuning import asking, using
from tests.kernels.test_causal_attention import double, place
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [
    CausalAttentionProblem(1, 3, 1, 16),
    CausalAttentionProblem(2, 2, 129, 64),
    CausalAttentionProblem(1, 4, 200, 40, nheads_kv=2, seqlen_q=37),
    CausalAttentionProblem(1, 4, 140, 128, nheads_kv=1, seqlen_q=1, tokens_first=False),
    CausalAttentionProblem(1, 2, 300, 16, nheads_kv=1, seqlen_q=261),
]


def gradients(inputs, impl, through=("o", "lse"), **kwargs):
    """dq, dk, dv of a sum of o and lse with weights that every dtype represents."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    o, lse = causal_attention(**leaves, return_lse=True, impl=impl, **kwargs)
    total = 0
    for result in (t for name, t in (("o", o), ("lse", lse)) if name in through):
        weights = torch.linspace(-1, 1, result.numel(), device=result.device).half()
        total = total + (result * weights.to(result.dtype).view(result.shape)).sum()
    return torch.autograd.grad(total, leaves.values(), materialize_grads=True)


def check(inputs, impl, **kwargs):
    """Every gradient of `impl` against the definition; returns them."""
    actual = gradients(inputs, impl, **kwargs)
    baseline = gradients(inputs, "reference", **kwargs)
    gold = gradients(double(inputs), "reference", **kwargs)
    for name, *three in zip(inputs, actual, baseline, gold, strict=True):
        assert_as_accurate(f"d{name}", *three, slack=3.0)
    return actual


def small_tiles(monkeypatch, **tile):
    """Tiles as on a GPU, many to a head: the interpreter's own are as large as the operands."""
    tile = {"BLOCK_M": 32, "BLOCK_N": 16, "PIECE": 16, "num_warps": 1, "num_stages": 1} | tile
    for name in ("forward", "backward", "decode"):
        module = importlib.import_module(f"kernels.causal_attention.{name}")
        monkeypatch.setattr(module, "tile_for", lambda *_: dict(tile))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize(
    ("impl", "dtype"),
    [
        ("torch", torch.float32),
        ("cpu", torch.float32),
        ("triton", torch.float32),
        ("triton", torch.float16),
    ],
    ids=str,
)
def test_gradients(impl, dtype, problem, device):
    inputs = problem.inputs(dtype, place(impl, device))
    dq, _, dk = check(inputs, impl)
    if impl == "triton" and problem.tokens_first:
        assert dq.transpose(1, 2).is_contiguous()
        assert dk.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("dtype", "block_m"), [(torch.float32, 32), (torch.float16, 16)], ids=str)
def test_many_blocks_and_pieces(dtype, block_m, device, monkeypatch):
    small_tiles(monkeypatch, BLOCK_M=block_m)
    problem = CausalAttentionProblem(1, 2, 75, 40, nheads_kv=1, seqlen_q=60)
    check(problem.inputs(dtype, device), "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dk_and_dv_apart(dtype, device):
    """The same bits as from one launch, in blocks of another size for each kernel."""
    problem = CausalAttentionProblem(1, 2, 45, 24, nheads_kv=1, seqlen_q=37)
    inputs = problem.inputs(dtype, device)
    blocks = {"BLOCK_M": 32, "BLOCK_N": 16, "PIECE": 16}
    with using(causal_attention_bwd_dkdv=blocks, causal_attention_bwd_dq={"BLOCK_M": 16}):
        together = gradients(inputs, "triton")
    with using(causal_attention_bwd_dkdv=blocks | {"SPLIT": True}), asking() as asked:
        _, dk, dv = check(inputs, "triton")
    assert torch.equal(dk, together[1])
    assert torch.equal(dv, together[2])
    for kernel in (DQ_KERNEL, DKDV_KERNEL):
        assert asked[kernel]["same"]["headdim"] == 24


@pytest.mark.parametrize("kernel", [DQ_KERNEL, DKDV_KERNEL])
def test_candidates_are_complete_and_differ(kernel):
    for headdim in (16, 64, 96, 128, 192, 256):
        for dtype in (torch.bfloat16, torch.float32):
            for generation in (8, 9, 10):
                found = candidates(
                    kernel, CausalAttentionProblem(headdim=headdim), dtype, generation
                )
                assert 1 <= len(found) <= 24
                assert len({tuple(sorted(tile.items())) for tile in found}) == len(found)
                for tile in found:
                    assert tile.keys() >= {"BLOCK_M", "BLOCK_N", "PIECE", "num_warps", "num_stages"}
    assert len(candidates(kernel, CausalAttentionProblem(headdim=128), torch.bfloat16, 9)) > 1


@pytest.mark.parametrize("through", ["o", "lse"])
def test_one_of_the_results(through, device):
    inputs = CausalAttentionProblem(1, 2, 40, 16).inputs(torch.float32, device)
    check(inputs, "triton", through=(through,))


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.repeat(1, 1, 1, 3).chunk(3, dim=3)[1],  # one of three packed in a projection
        lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
        lambda t: t.mT.contiguous().mT,
        lambda t: t[:1].expand(3, -1, -1, -1),
    ],
)
def test_strides(view, device):
    inputs = CausalAttentionProblem(2, 2, 70, 16).inputs(torch.float32, device)
    check({name: view(t) for name, t in inputs.items()}, "triton")


def test_gradient_of_a_sum_comes_without_strides(device):
    inputs = CausalAttentionProblem(1, 2, 33, 16).inputs(torch.float32, device)

    def of_the_sum(inputs, impl):
        leaves = [t.detach().requires_grad_() for t in inputs.values()]
        return torch.autograd.grad(causal_attention(*leaves, impl=impl).sum(), leaves)

    found = of_the_sum(inputs, "triton"), of_the_sum(inputs, "reference")
    for three in zip(inputs, *found, of_the_sum(double(inputs), "reference"), strict=True):
        assert_as_accurate(*three, slack=3.0)


@pytest.mark.parametrize("softmax_scale", [1.0, 0.0, -0.5])
def test_softmax_scale(softmax_scale, device):
    inputs = CausalAttentionProblem(1, 2, 40, 16).inputs(torch.float32, device)
    check(inputs, "triton", softmax_scale=softmax_scale)


def test_repeats_are_bit_identical(device):
    inputs = CausalAttentionProblem(1, 4, 140, 16, nheads_kv=2).inputs(torch.float16, device)
    first, second = gradients(inputs, "triton"), gradients(inputs, "triton")
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_half_precision_gradient_of_huge_scores_is_finite(device):
    inputs = CausalAttentionProblem(1, 2, 70, 16).inputs(torch.float16, device)
    inputs["q"] *= 100
    inputs["k"] *= 100
    assert all(t.isfinite().all() for t in gradients(inputs, "triton", through=("o",)))


def test_the_manifest_names_both_directions(device):
    inputs = PROBLEMS[0].inputs(torch.float32, device)
    with recording() as manifest:
        gradients(inputs, "triton")
    assert manifest == {
        "causal_attention": "triton.causal_attention_decode",
        "causal_attention_backward": "triton.causal_attention_bwd",
    }


def test_without_gradients_there_is_no_dispatcher(device, monkeypatch):
    inputs = PROBLEMS[0].inputs(torch.float32, device)
    monkeypatch.delattr(autograd, "registered")
    causal_attention(**inputs, impl="triton")
    inputs["v"].requires_grad_()
    with torch.no_grad():
        causal_attention(**inputs, impl="triton")
    with pytest.raises(AttributeError, match="registered"):
        causal_attention(**inputs, impl="triton")


def test_opcheck(device):
    problem = CausalAttentionProblem(1, 2, 21, 16, nheads_kv=1)
    for tokens_first, bounds in ((True, None), (False, [0, 8, 21])):
        inputs = problem.inputs(torch.float32, device).values()
        q, k, v = (t if tokens_first else t.contiguous() for t in inputs)
        cu_seqlens = bounds and torch.tensor(bounds, dtype=torch.int32, device=device)
        leaves = [t.requires_grad_() for t in (q, k, v)]
        torch.library.opcheck(
            torch.ops.crossover.causal_attention, (*leaves, 0.25, cu_seqlens, "triton")
        )
        o, lse = torch.ops.crossover.causal_attention(q, k, v, 0.25, cu_seqlens, "triton")
        operands = [t.detach() for t in (o, lse, q, k, v, o, lse)]
        torch.library.opcheck(
            torch.ops.crossover.causal_attention_backward, (*operands, 0.25, cu_seqlens, "triton")
        )


@pytest.mark.parametrize("packed", [False, True])
def test_compiled(packed, device):
    inputs = CausalAttentionProblem(1, 2, 21, 16, nheads_kv=1).inputs(torch.float32, device)
    cu_seqlens = torch.tensor([0, 8, 21], dtype=torch.int32, device=device) if packed else None

    def attention(q, k, v):
        return causal_attention(q, k, v, None, True, cu_seqlens=cu_seqlens, impl="triton")

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = []
    for function in (attention, compiled):
        leaves = [t.detach().requires_grad_() for t in inputs.values()]
        o, lse = function(*leaves)
        gradients = torch.autograd.grad(o.square().sum() + lse.sum(), leaves)
        found.append((o, lse, *gradients))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    with torch.no_grad():
        assert torch.equal(compiled(*inputs.values())[0], o)


class Full:
    """A device without memory."""

    def new_empty(self, shape, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_is_reported_with_what_it_was_for():
    message = "no memory for delta of the gradients, 240 bytes; CUDA out of memory"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        workspace("delta of the gradients", Full(), 2, 3, 10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("headdim", [16, 40, 64, 96, 128, 192, 256])
def test_on_a_gpu(headdim, dtype):
    for problem in (
        CausalAttentionProblem(2, 4, 1025, headdim, nheads_kv=2),
        CausalAttentionProblem(1, 2, 1000, headdim, seqlen_q=300, tokens_first=False),
    ):
        inputs = problem.inputs(dtype, "cuda")
        first, second = check(inputs, "triton"), gradients(inputs, "triton")
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.gpu
def test_offsets_beyond_31_bits():
    inputs = CausalAttentionProblem(2, 2, 300, 64, tokens_first=False).inputs(torch.half, "cuda")
    far = {}
    for name, t in inputs.items():
        memory = torch.empty(2**31 + t[0].numel(), dtype=t.dtype, device="cuda")
        far[name] = memory.as_strided(t.shape, (2**31, *t.stride()[1:])).copy_(t)
    check(far, "triton")
