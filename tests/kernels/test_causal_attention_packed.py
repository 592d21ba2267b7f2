"""Packed sequences: none sees another, whichever implementation computes them."""

import sys
from types import SimpleNamespace

import pytest
import torch

from kernels.causal_attention import cuda
from kernels.causal_attention.op import causal_attention
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.implementations import find_backward, load, recording
from tests.kernels.test_causal_attention import double, place
from tests.kernels.test_causal_attention_backward import check as check_gradients
from tests.kernels.test_causal_attention_backward import small_tiles
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

BOUNDS = [
    [0, 37, 37, 38, 130],  # an empty sequence, one of length 1
    [0, 0, 130],  # one sequence, after an empty one
    [0, 1, 2, 3, 128, 130],
]


def packed(bounds, device):
    return torch.tensor(bounds, dtype=torch.int32, device=device)


def problem_of(bounds, headdim=24):
    return CausalAttentionProblem(1, 4, bounds[-1], headdim, nheads_kv=2)


def check(inputs, cu_seqlens, impl):
    """Both outputs of `impl` against the definition, sequence by sequence."""
    arguments = {"return_lse": True, "cu_seqlens": cu_seqlens}
    actual = causal_attention(**inputs, **arguments, impl=impl)
    baseline = causal_attention(**inputs, **arguments, impl="reference")
    gold = causal_attention(**double(inputs), **arguments, impl="reference")
    for name, *three in zip(("o", "lse"), actual, baseline, gold, strict=True):
        assert_as_accurate(name, *three)


def test_reference_computes_every_sequence_for_itself():
    q, k, v = problem_of(BOUNDS[0]).inputs(torch.float64, "cpu").values()
    o, lse = causal_attention(
        q, k, v, None, True, cu_seqlens=packed(BOUNDS[0], "cpu"), impl="reference"
    )
    for start, end in ((0, 37), (37, 38), (38, 130)):
        piece = (t[:, :, start:end] for t in (q, k, v))
        alone = causal_attention(*piece, None, True, impl="reference")
        assert torch.equal(o[:, :, start:end], alone[0])
        assert torch.equal(lse[:, :, start:end], alone[1])
    assert o.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
def test_definition(impl, bounds, device):
    where = place(impl, device)
    inputs = problem_of(bounds).inputs(torch.float32, where)
    check(inputs, packed(bounds, where), impl)


def test_half_precision(device):
    inputs = problem_of(BOUNDS[0]).inputs(torch.float16, device)
    check(inputs, packed(BOUNDS[0], device), "triton")


@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_gradients(impl, device):
    where = place(impl, device)
    inputs = problem_of(BOUNDS[0]).inputs(torch.float32, where)
    check_gradients(inputs, impl, cu_seqlens=packed(BOUNDS[0], where))


@pytest.mark.parametrize("bounds", [[0, 5, 5, 45, 46, 90], [0, 64, 90]], ids=str)
def test_many_blocks(bounds, device, monkeypatch):
    small_tiles(monkeypatch)
    problem = CausalAttentionProblem(1, 2, bounds[-1], 24, nheads_kv=1)
    inputs = problem.inputs(torch.float32, device)
    cu_seqlens = packed(bounds, device)
    check(inputs, cu_seqlens, "triton")
    check_gradients(inputs, "triton", cu_seqlens=cu_seqlens)


def test_no_sequence_sees_another(device):
    inputs = problem_of(BOUNDS[0]).inputs(torch.float32, device)
    cu_seqlens = packed(BOUNDS[0], device)
    before = causal_attention(**inputs, cu_seqlens=cu_seqlens, impl="triton")
    inputs["k"][:, :, :38] = 1e4
    inputs["v"][:, :, :38] = 1e4
    after = causal_attention(**inputs, cu_seqlens=cu_seqlens, impl="triton")
    assert torch.equal(before[:, :, 38:], after[:, :, 38:])


def test_hf():
    inputs = problem_of(BOUNDS[0]).inputs(torch.float32, "cpu")
    cu_seqlens = packed(BOUNDS[0], "cpu")
    o = causal_attention(**inputs, cu_seqlens=cu_seqlens, impl="hf")
    gold = causal_attention(**double(inputs), cu_seqlens=cu_seqlens, impl="reference")
    baseline = causal_attention(**inputs, cu_seqlens=cu_seqlens, impl="reference")
    assert_as_accurate("o", o, baseline, gold)


@pytest.mark.parametrize("bounds", [[-7, 40, 20, 1000], [9, 9, 9, 9], [2**31 - 1, 0, -(2**31), 5]])
def test_wrong_bounds_on_a_device_stay_inside_of_the_tensors(bounds, device):
    """Nobody reads them on the host there: what comes out is wrong, but nothing outside is touched."""
    backward = find_backward("causal_attention", "triton")
    forward = load("kernels.causal_attention.forward:causal_attention_triton")
    cu_seqlens = packed(bounds, device)
    guarded = [torch.full((1, 2, 60, 16), 7.0, device=device) for _ in range(3)]
    q, k, v = (t[:, :, 20:40].fill_(1.0) for t in guarded)
    o, lse = forward(q, k, v, 0.25, True, cu_seqlens)
    torch.testing.assert_close(o, torch.ones_like(o))  # a mean of ones, whichever were seen
    backward(o, None, q, k, v, o, lse, 0.25, cu_seqlens)


@pytest.mark.parametrize("return_lse", [False, True])
def test_flash_attn_is_given_the_bounds_and_the_longest(return_lse, monkeypatch):
    """Its package is not here: a stand-in computes what its documentation says."""
    cu_seqlens = packed(BOUNDS[0], "cpu")
    inputs = problem_of(BOUNDS[0]).inputs(torch.float16, "cpu")

    def varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, softmax_scale, causal, return_attn_probs):
        assert (longest_q, longest_k, causal) == (92, 92, True)
        assert cu_q is cu_k is cu_seqlens
        operands = (t.transpose(0, 1)[None] for t in (q, k, v))
        o, lse = causal_attention(*operands, softmax_scale, True, cu_seqlens=cu_q, impl="reference")
        o = o[0].transpose(0, 1)
        return (o, lse[0], None) if return_attn_probs else o

    package = SimpleNamespace(flash_attn_varlen_func=varlen, __spec__=object())
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    with recording() as manifest:
        o, lse = cuda.causal_attention_cuda(*inputs.values(), 0.2, return_lse, cu_seqlens)
    assert manifest["causal_attention"].startswith("flash_attn_varlen")
    gold = causal_attention(
        **inputs, softmax_scale=0.2, return_lse=True, cu_seqlens=cu_seqlens, impl="reference"
    )
    assert torch.equal(o, gold[0])
    assert lse is None or torch.equal(lse, gold[1])
