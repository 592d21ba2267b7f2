"""`hf`: transformers' eager attention: repeated keys, the whole matrix of scores and of probabilities in memory."""

from types import SimpleNamespace

import torch

from kernels.causal_attention.sequences import packed
from kernels.implementations import note


@packed
def causal_attention_hf(q, k, v, softmax_scale, return_lse):
    """Operands and results as `causal_attention_ref`, in transformers' arithmetic; there is no lse."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    if return_lse:
        raise NotImplementedError(
            "causal_attention: impl 'hf' has no lse, got return_lse=True; use impl='torch'"
        )
    note("causal_attention", "transformers.eager")
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    mask = _additive_mask(q.shape[2], k.shape[2], q.dtype, q.device)
    o, _ = eager_attention_forward(module, q, k, v, mask, scaling=softmax_scale)
    return o.transpose(1, 2), None


def _additive_mask(seqlen_q, seqlen_k, dtype, device):
    """As transformers builds it: zero where a key is seen, the dtype's most negative number elsewhere."""
    position = torch.arange(seqlen_k, device=device)
    hidden = position[None, :] > position[seqlen_k - seqlen_q :, None]
    mask = torch.zeros(seqlen_q, seqlen_k, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[None, None]
