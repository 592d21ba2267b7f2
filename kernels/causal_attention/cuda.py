"""`cuda`: flash-attn where it is installed and takes the case, else torch's own fused CUDA kernels.

Torch chooses among flash, cuDNN and memory-efficient, never `math`; float32 is the memory-efficient kernel. Gradients
are those of these packages.
"""

import importlib.util

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.causal_attention.sdpa import sdpa
from kernels.causal_attention.sequences import packed
from kernels.checks import wants_gradient
from kernels.implementations import note

FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def causal_attention_cuda(q, k, v, softmax_scale, return_lse, cu_seqlens=None):
    """Operands and results as `causal_attention_ref`; lse only from flash-attn, which gives it no gradient."""
    if q.dtype == torch.float64:
        raise NotImplementedError(
            "causal_attention: impl 'cuda' takes float32, float16 and bfloat16, got float64; use impl='torch'"
        )
    half = q.dtype in (torch.float16, torch.bfloat16)
    if half and q.shape[3] <= 256 and importlib.util.find_spec("flash_attn"):
        if return_lse and wants_gradient(q, k, v):
            raise NotImplementedError(
                "causal_attention: impl 'cuda' has no gradient through lse, got return_lse=True with operands that "
                "require one; use impl='triton'"
            )
        return _flash_attn(q, k, v, softmax_scale, return_lse, cu_seqlens)
    if return_lse:
        raise NotImplementedError(
            "causal_attention: impl 'cuda' has an lse only from flash-attn (installed, float16 or bfloat16, headdim "
            f"up to 256), got return_lse=True with {q.dtype} and headdim {q.shape[3]}; use impl='triton'"
        )
    return _torch(q, k, v, softmax_scale, return_lse, cu_seqlens)


@packed
def _torch(q, k, v, softmax_scale, return_lse):
    if q.dtype == torch.float32 and q.shape[1] != k.shape[1]:
        # the memory-efficient kernel has no grouped heads
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    with sdpa_kernel(FUSED):
        return sdpa(q, k, v, softmax_scale), None


def _flash_attn(q, k, v, softmax_scale, return_lse, cu_seqlens):
    import flash_attn  # its causal mask is aligned bottom-right since 2.1

    options = {"softmax_scale": softmax_scale, "causal": True, "return_attn_probs": return_lse}
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if cu_seqlens is None:
        note("causal_attention", "flash_attn")
        found = flash_attn.flash_attn_func(q, k, v, **options)
        o, lse = found[:2] if return_lse else (found, None)
        return o.transpose(1, 2), lse
    note("causal_attention", "flash_attn_varlen")
    longest = int(cu_seqlens.diff().max())  # it sizes its grid by this, so the host has to know
    found = flash_attn.flash_attn_varlen_func(
        *(t[0] for t in (q, k, v)), cu_seqlens, cu_seqlens, longest, longest, **options
    )
    o, lse = found[:2] if return_lse else (found, None)
    return o.transpose(0, 1)[None], None if lse is None else lse[None]
