"""What the forms that stand on torch share: its attention with a bottom-right mask, and a log-sum-exp beside it."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from kernels.implementations import is_recording, note
from kernels.layout import laid_out_like

BLOCK = 512  # query rows of scores in memory at a time, for the log-sum-exp


def sdpa(q, k, v, softmax_scale):
    """Attention by the kernel that torch chooses among those that are enabled; the manifest gets its name."""
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    arguments = {
        "attn_mask": None if seqlen_q in (1, seqlen_k) else mask(seqlen_q, seqlen_k, q.device),
        "is_causal": seqlen_q == seqlen_k > 1,
        "scale": softmax_scale,
        "enable_gqa": q.shape[1] != k.shape[1],
    }
    if is_recording():
        choice = SDPBackend(torch._fused_sdp_choice(q, k, v, **arguments))
        name = choice.name.lower().removesuffix("_attention")
        note("causal_attention", f"torch.sdpa.{name}")
    return laid_out_like(q, F.scaled_dot_product_attention(q, k, v, **arguments))


def mask(seqlen_q, seqlen_k, device):
    """(seqlen_q, seqlen_k), true where the query sees the key; torch's own `is_causal` is aligned top-left."""
    seen = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=device)
    return seen.tril_(seqlen_k - seqlen_q)


def log_sum_exp(q, k, softmax_scale):
    """The lse of `causal_attention_ref`, (batch, nheads, seqlen_q), in blocks of query rows."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    queries = q.unflatten(1, (k.shape[1], -1))
    position = torch.arange(seqlen_k, device=q.device)
    lse = []
    for first in range(0, seqlen_q, BLOCK):
        rows = queries[..., first : first + BLOCK, :].to(dtype) * softmax_scale
        last = seqlen_k - seqlen_q + first + rows.shape[3]
        scores = rows @ k[:, :, None, :last].to(dtype).mT
        hidden = position[:last] > position[last - rows.shape[3] : last, None]
        lse.append(torch.logsumexp(scores.masked_fill(hidden, float("-inf")), dim=-1))
    return torch.cat(lse, dim=3).flatten(1, 2)
