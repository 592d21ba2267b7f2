"""The public operator `causal_attention`: checks, then the implementation that the caller named."""

import torch

from kernels import checks
from kernels.causal_attention import autograd
from kernels.implementations import BACKWARD, find
from kernels.observation import tell
from profiles.ranges import annotate


def causal_attention(
    q, k, v, softmax_scale=None, return_lse=False, *, cu_seqlens=None, impl="triton"
):
    """o = softmax(softmax_scale q k' + causal mask) v, head by head.

    Args:
        q: (batch, nheads, seqlen_q, headdim), any strides.
        k, v: (batch, nheads_kv, seqlen_k, headdim), any strides, in the dtype of `q`; nheads % nheads_kv == 0 and
            query head h reads key head h // (nheads // nheads_kv).
        softmax_scale: factor of the scores; headdim**-0.5 if None.
        return_lse: also return the log-sum-exp of the scores.
        cu_seqlens: int32 (n + 1,), bounds of n sequences packed along seqlen with batch 1 and seqlen_q == seqlen_k:
            none sees another, and they may be empty.
        impl: triton, cuda, torch, cpu, hf or reference.

    seqlen_q <= seqlen_k and the mask is aligned bottom-right: the last query sees every key, as in decoding and
    chunked prefill. float32 is computed as float32, unless `torch.backends.cuda.matmul.allow_tf32` allows TF32.
    Differentiable in q, k and v, through o and through lse.

    Returns:
        o (batch, nheads, seqlen_q, headdim) in the dtype of `q`, in memory (batch, seqlen_q, nheads, headdim) if q
        is; with return_lse, (o, lse) where lse is (batch, nheads, seqlen_q), natural logarithm, float32 (float64
        for float64 inputs).

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        kernels.implementations.Unavailable: `impl` cannot run here.
        NotImplementedError: `impl` cannot compute this case; the message names one that can.
    """
    checks.check_tensor("q", q, (None, None, None, None), q)
    batch, nheads, seqlen_q, headdim = q.shape
    if q.numel() == 0:
        raise ValueError(f"q must have at least one element, got shape {tuple(q.shape)}")
    checks.check_tensor("k", k, (batch, None, None, headdim), q, dtypes=(q.dtype,))
    _, nheads_kv, seqlen_k, _ = k.shape
    checks.check_tensor("v", v, (batch, nheads_kv, seqlen_k, headdim), q, dtypes=(q.dtype,))
    if nheads_kv == 0 or nheads % nheads_kv:
        raise ValueError(
            f"k must have a number of heads that divides the {nheads} heads of q, got {nheads_kv}"
        )
    if seqlen_q > seqlen_k:
        raise ValueError(
            f"k must have at least as many tokens as q, got {seqlen_k} for {seqlen_q}: "
            "the first queries would see no key"
        )
    if cu_seqlens is not None and seqlen_q != seqlen_k:
        raise ValueError(
            f"cu_seqlens needs as many keys as queries, got {seqlen_k} tokens in k for {seqlen_q} in q"
        )
    checks.check_cu_seqlens(cu_seqlens, q, seqlen_q)
    if softmax_scale is None:
        softmax_scale = headdim**-0.5
    checks.check_scale("softmax_scale", softmax_scale)
    if softmax_scale <= 0:
        # fused kernels, torch's too, mask and take the maximum before they scale: the scale must keep the order
        q, softmax_scale = q * (-1.0 if softmax_scale < 0 else 0.0), abs(softmax_scale) or 1.0
    compute = find("causal_attention", impl, q.device)
    tell("causal_attention", q=q, k=k, v=v, softmax_scale=softmax_scale)
    differentiate = checks.wants_gradient(q, k, v)
    if impl in BACKWARD["causal_attention"] and (differentiate or torch.compiler.is_compiling()):
        compute = autograd.registered(impl)
    with annotate("op/causal_attention", payload=seqlen_k):
        o, lse = compute(q, k, v, float(softmax_scale), return_lse, cu_seqlens)
    return (o, lse) if return_lse else o
