"""`hf`: what a user of transformers does: take the whole matrix of weights from eager attention, then reduce it."""

from types import SimpleNamespace

import torch

from kernels.attention_statistics.reference import AttentionStatistics, dense_statistics
from kernels.implementations import note


def attention_statistics_hf(q, k, softmax_scale, top_k, span_threshold, positions):
    """Operands and results as `attention_statistics_ref`; (batch, nheads, seqlen_q, seqlen_k) weights are in memory.

    The weights have the dtype of `q`, as `output_attentions=True` returns them: half precision rounds them.
    """
    from transformers.models.llama.modeling_llama import eager_attention_forward

    note("attention_statistics", "transformers.eager")
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    hidden = torch.arange(k.shape[2], device=q.device) > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device)
    mask = mask.masked_fill_(hidden, torch.finfo(q.dtype).min)[None, None]
    # the weighted values are not needed: one channel of anything stands for them
    _, p = eager_attention_forward(module, q, k, k[..., :1], mask, scaling=softmax_scale)
    p = p.to(torch.promote_types(q.dtype, torch.float32))
    rows = dense_statistics(p, positions, top_k, span_threshold)
    return AttentionStatistics(*rows, p.sum(-2))
