"""Causal softmax attention. This file is the specification.

    o_i = sum_{j <= i + seqlen_k - seqlen_q} p_ij v_j        p_ij = exp(softmax_scale q_i k_j - lse_i)

The mask is aligned bottom-right: the last query sees every key.
"""

import torch

from kernels.causal_attention.sequences import packed
from kernels.implementations import note
from kernels.layout import laid_out_like

BLOCK = 128  # query rows at a time: memory is BLOCK x seqlen_k, so whole models can be checked at long lengths


@packed
def causal_attention_ref(q, k, v, softmax_scale=None, return_lse=True):
    """Exact softmax over all keys that a query may see, in at least float32, rounded once at the end.

    Args:
        q: (batch, nheads, seqlen_q, headdim) queries.
        k, v: (batch, nheads_kv, seqlen_k, headdim) keys and values; nheads % nheads_kv == 0, and query head h reads
            key head h // (nheads // nheads_kv). seqlen_q <= seqlen_k.
        softmax_scale: factor of the scores; headdim**-0.5 if None.
        return_lse: this form always returns it.
        cu_seqlens: bounds of packed sequences, each computed for itself.

    Returns:
        o, shape and dtype of `q`, and lse (batch, nheads, seqlen_q), the natural logarithm of the row sums of
        exp(scores), float32 (float64 for float64 inputs).
    """
    note("causal_attention", "reference.causal_attention")
    dtype = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    softmax_scale = q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale
    queries = q.to(dtype).unflatten(
        1, (-1, groups)
    )  # (batch, nheads_kv, groups, seqlen_q, headdim)
    keys, values = k.to(dtype)[:, :, None], v.to(dtype)[:, :, None]
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    position = torch.arange(seqlen_k, device=q.device)
    o, lse = [], []
    for first in range(0, seqlen_q, BLOCK):
        rows = queries[..., first : first + BLOCK, :]
        last = seqlen_k - seqlen_q + first + rows.shape[3]  # keys that any row of this block sees
        scores = softmax_scale * (rows @ keys[..., :last, :].mT)
        seen = position[:last] <= position[last - rows.shape[3] : last, None]
        scores = scores.masked_fill(~seen, float("-inf"))
        lse.append(torch.logsumexp(scores, dim=-1))
        o.append(torch.softmax(scores, dim=-1) @ values[..., :last, :])
    o, lse = torch.cat(o, dim=3).flatten(1, 2), torch.cat(lse, dim=3).flatten(1, 2)
    return laid_out_like(q, o.to(q.dtype)), lse
