"""A few queries against a long cache, by the kernels that split the keys over programs."""

import pytest
import torch

from kernels.causal_attention.decode import (
    causal_attention_decode,
    is_decoding,
    parts_of,
    splits_of,
)
from kernels.causal_attention.op import causal_attention
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.implementations import recording
from tests.kernels.test_causal_attention import double
from tests.kernels.test_causal_attention_backward import small_tiles
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")


def check(problem, dtype, device, splits=None):
    """Both outputs against the definition; returns them."""
    inputs = problem.inputs(dtype, device)
    found = causal_attention_decode(*inputs.values(), problem.headdim**-0.5, True, splits)
    baseline = causal_attention(**inputs, return_lse=True, impl="reference")
    gold = causal_attention(**double(inputs), return_lse=True, impl="reference")
    for name, *three in zip(("o", "lse"), found, baseline, gold, strict=True):
        assert_as_accurate(name, *three)
    return found


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("seqlen", [1, 127, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_definition(dtype, seqlen, splits, device):
    problem = CausalAttentionProblem(2, 4, seqlen, 40, nheads_kv=2, seqlen_q=1)
    check(problem, dtype, device, splits)


@pytest.mark.parametrize(
    "problem",
    [
        CausalAttentionProblem(1, 2, 515, 64, nheads_kv=1, seqlen_q=16),  # the last part has 3 keys
        CausalAttentionProblem(2, 3, 300, 17, seqlen_q=5, tokens_first=False),
        CausalAttentionProblem(1, 2, 16, 128, seqlen_q=16),
    ],
    ids=str,
)
def test_several_queries(problem, device):
    check(problem, torch.float32, device, splits=8)


def test_many_blocks_and_pieces(device, monkeypatch):
    small_tiles(monkeypatch)
    check(CausalAttentionProblem(1, 4, 100, 40, nheads_kv=2, seqlen_q=3), torch.float16, device, 3)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
        lambda t: t.mT.contiguous().mT,
        lambda t: t[:1].expand(3, -1, -1, -1),
    ],
)
def test_strides(view, device):
    inputs = CausalAttentionProblem(2, 2, 300, 16, seqlen_q=2).inputs(torch.float32, device)
    inputs = {name: view(t) for name, t in inputs.items()}
    gold = causal_attention(**double(inputs), impl="reference")
    baseline = causal_attention(**inputs, impl="reference")
    assert_as_accurate("o", causal_attention(**inputs, impl="triton"), baseline, gold)


def test_repeats_are_bit_identical(device):
    problem = CausalAttentionProblem(1, 2, 600, 16, seqlen_q=1)
    first, second = (check(problem, torch.float32, device, splits=2) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_o_lies_in_memory_as_q(device):
    inputs = CausalAttentionProblem(2, 2, 300, 16, seqlen_q=2).inputs(torch.float32, device)
    assert causal_attention(**inputs, impl="triton").transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("nheads", "seqlen_q", "kernel"),
    [(2, 16, "decode"), (1, 17, "fwd"), (4, 16, "fwd"), (8, 4, "decode")],
)
def test_the_shape_chooses_the_kernel(nheads, seqlen_q, kernel, device):
    problem = CausalAttentionProblem(1, nheads, 40, 16, nheads_kv=1, seqlen_q=seqlen_q)
    assert is_decoding(seqlen_q, nheads) == (kernel == "decode")
    with recording() as manifest:
        causal_attention(**problem.inputs(torch.float32, device), impl="triton")
    assert manifest == {"causal_attention": f"triton.causal_attention_{kernel}"}


def test_parts():
    assert parts_of(1, 8, 64) == (64, 1)
    assert parts_of(128, 8, 64) == (128, 1)  # two blocks at least
    assert parts_of(8192, 33, 64) == (256, 32)
    assert parts_of(8193, 32, 64) == (320, 26)  # none of them empty
    assert splits_of(8, 2 * 132) == 33
    assert splits_of(1, 2 * 132) == 128
    assert splits_of(1000, 2 * 132) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("headdim", [16, 40, 64, 96, 128, 192, 256])
def test_on_a_gpu(headdim, dtype):
    for batch, nheads, nheads_kv, seqlen, seqlen_q in (
        (1, 8, 8, 8192, 1),
        (64, 8, 2, 1000, 1),
        (1, 32, 8, 131072, 1),
        (2, 4, 2, 4097, 16),
    ):
        problem = CausalAttentionProblem(
            batch, nheads, seqlen, headdim, nheads_kv=nheads_kv, seqlen_q=seqlen_q
        )
        check(problem, dtype, "cuda")
