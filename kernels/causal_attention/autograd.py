"""Attention as operators of torch.library, for implementations that torch cannot see into: gradients, torch.compile.

    crossover::causal_attention            o, lse
    crossover::causal_attention_backward   dq, dk, dv

Eager calls without gradients go to the implementation directly: a registered operator costs more than a launch.
"""

import functools

import torch

from kernels.implementations import TABLE, find_backward, load
from kernels.layout import dense_like, empty_like
from profiles.ranges import annotate


def registered(impl):
    """`causal_attention` of `impl` through torch's dispatcher; the gradient needs lse, so it is always formed."""
    return functools.partial(_call, impl)


def _call(impl, q, k, v, softmax_scale, return_lse, cu_seqlens):
    o, lse = torch.ops.crossover.causal_attention(q, k, v, softmax_scale, cu_seqlens, impl)
    return o, lse if return_lse else None


@torch.library.custom_op("crossover::causal_attention", mutates_args=())
def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float,
    cu_seqlens: torch.Tensor | None, impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`causal_attention_ref` by `impl`."""
    return load(TABLE["causal_attention"][impl])(q, k, v, softmax_scale, True, cu_seqlens)


@causal_attention.register_fake
def _(q, k, v, softmax_scale, cu_seqlens, impl):
    wide = torch.promote_types(q.dtype, torch.float32)
    return empty_like(q), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("crossover::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    do: torch.Tensor, dlse: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    o: torch.Tensor, lse: torch.Tensor, softmax_scale: float, cu_seqlens: torch.Tensor | None, impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of q, k and v, each `kernels.layout.dense_like` its operand, from both results of the forward."""
    backward = find_backward("causal_attention", impl)
    with annotate("op/causal_attention.backward", payload=k.shape[2]):
        return backward(do, dlse, q, k, v, o, lse, softmax_scale, cu_seqlens)


@causal_attention_backward.register_fake
def _(do, dlse, q, k, v, o, lse, softmax_scale, cu_seqlens, impl):
    return dense_like(q), dense_like(k), dense_like(v)


def _save(ctx, inputs, output):
    q, k, v, softmax_scale, cu_seqlens, impl = inputs
    ctx.set_materialize_grads(False)
    ctx.options = (softmax_scale, impl)
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx, do, dlse):
    q, k, v, o, lse, cu_seqlens = ctx.saved_tensors
    softmax_scale, impl = ctx.options
    do = torch.zeros_like(o) if do is None else do
    gradients = causal_attention_backward(
        do, dlse, q, k, v, o, lse, softmax_scale, cu_seqlens, impl
    )
    return *gradients, None, None, None


causal_attention.register_autograd(_differentiate, setup_context=_save)
