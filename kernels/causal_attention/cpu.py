"""`cpu`: torch's fused attention for CPUs, blocked and with an online softmax; never the unfused `math` form."""

import torch

from kernels.causal_attention.sdpa import log_sum_exp, mask
from kernels.causal_attention.sequences import packed
from kernels.implementations import note
from kernels.layout import laid_out_like


@packed
def causal_attention_cpu(q, k, v, softmax_scale, return_lse):
    """Operands and results as `causal_attention_ref`. Grouped heads are read in place.

    1 < seqlen_q < seqlen_k needs a (seqlen_q, seqlen_k) mask in memory. lse is the kernel's own, unless that has
    errors of half precision or is needed with a gradient, which torch gives to o alone: then a second pass computes it.
    """
    note("causal_attention", "torch.sdpa.flash")
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    bias = None
    if seqlen_q not in (1, seqlen_k):
        seen = mask(seqlen_q, seqlen_k, q.device)
        bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=seqlen_q == seqlen_k, attn_mask=bias, scale=softmax_scale
    )
    if return_lse and (q.dtype in (torch.float16, torch.bfloat16) or o.requires_grad):
        lse = log_sum_exp(q, k, softmax_scale)
    return laid_out_like(q, o), lse
