"""Causal attention over a sequence that is cut over ranks: keys and values are gathered, queries stay where they are.

Each rank computes all keys and values up to the end of each of its pieces with its queries there: the mask is aligned
bottom-right, so that is one call of the operator a piece, exact and with any implementation, without merging parts by
their log-sum-exp. Llama 3's training gathers so, too (Dubey et al. 2024): with few key heads it is little memory,
2 x batch x seqlen x nheads_kv x headdim numbers for one layer at a time.

torch's own `torch.distributed.tensor.experimental.context_parallel` replaces scaled_dot_product_attention on CUDA
devices alone ("does not have a sharding strategy registered" for the CPU's), and wants pieces of equal length.
"""

import torch

from kernels.causal_attention.op import causal_attention
from models.huggingface import transformers

NAME = "crossover-parallel"


def register():
    """Make it known to transformers' models under NAME; they get `ranks` and `impl` with their forward."""
    hf = transformers()
    hf.AttentionInterface.register(NAME, _attend)
    hf.AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # the operator masks


def parallel_attention(q, k, v, ranks, softmax_scale=None, *, impl):
    """`kernels.causal_attention` of the queries of this rank.

    Args:
        q: (batch, nheads, tokens of this rank, headdim), in the order of its pieces.
        k, v: (batch, nheads_kv, tokens of this rank, headdim) likewise.

    Returns:
        o: (batch, nheads, tokens of this rank, headdim).
    """
    k, v = ranks.gather_sequence(torch.stack([k, v]), dim=3)
    found, at = [], 0
    for start, stop in ranks.mine:
        rows = q[:, :, at : at + stop - start]
        found.append(
            causal_attention(rows, k[:, :, :stop], v[:, :, :stop], softmax_scale, impl=impl)
        )
        at += stop - start
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _attend(module, query, key, value, attention_mask, *, scaling, ranks, impl, **kwargs):
    o = parallel_attention(query, key, value, ranks, scaling, impl=impl)
    return o.transpose(1, 2), None
