"""Statistics of the weights of causal softmax attention. This file is the specification.

    p_ij = exp(s_ij - lse_i)        s_ij = softmax_scale q_i k_j        lse_i = ln sum_j exp(s_ij)        j <= t_i

    entropy_i  = -sum_j p_ij ln p_ij                            nats, at most ln(t_i + 1)
    distance_i = sum_j (t_i - j) p_ij                           tokens; attention to itself counts with distance 0
    top_mass_i = sum of the top_k largest p_ij                  1 where a query sees no more than top_k keys
    span_i     = t_i - min{j : p_ij > span_threshold}           tokens; 0 where no weight exceeds the threshold
    received_j = sum_i p_ij                                     over the queries that are given

t_i is the position of query i among the keys, the last key that it sees. Entropy as by Clark et al. (2019), distance as
by Vig and Belinkov (2019), span as in arXiv 2601.01237. A span compares a weight with a threshold: a rounding can move
it by any number of tokens where a weight lies within rounding of it; the other four are continuous.
"""

from typing import NamedTuple

import torch

from kernels.implementations import note

BLOCK = 128  # query rows at a time: memory is BLOCK x seqlen_k, so whole models can be checked at long lengths


class AttentionStatistics(NamedTuple):
    """float32 (float64 for float64 inputs): (batch, nheads, seqlen_q) each, received (batch, nheads, seqlen_k)."""

    entropy: torch.Tensor
    distance: torch.Tensor
    top_mass: torch.Tensor
    span: torch.Tensor
    received: torch.Tensor


def attention_statistics_ref(q, k, softmax_scale, top_k, span_threshold, positions):
    """The dense softmax over all keys that a query may see, in at least float32.

    Args:
        q: (batch, nheads, seqlen_q, headdim) queries.
        k: (batch, nheads_kv, seqlen_k, headdim) keys; nheads % nheads_kv == 0, and query head h reads key head
            h // (nheads // nheads_kv).
        softmax_scale: factor of the scores.
        top_k: how many of the largest weights make up the top mass.
        span_threshold: what a weight has to exceed to count for the span.
        positions: (seqlen_q,) int64 ascending, the last key that each query sees.

    Returns:
        AttentionStatistics.
    """
    note("attention_statistics", "reference.attention_statistics")
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(dtype).unflatten(1, (k.shape[1], -1))
    keys = k.to(dtype)[:, :, None]
    received = q.new_zeros((*queries.shape[:3], k.shape[2]), dtype=dtype)
    found = []
    for first in range(0, q.shape[2], BLOCK):
        last_seen = positions[first : first + BLOCK]
        seqlen = int(last_seen[-1]) + 1  # keys that any row of this block sees
        scores = softmax_scale * (queries[..., first : first + BLOCK, :] @ keys[..., :seqlen, :].mT)
        key = torch.arange(seqlen, device=q.device)
        hidden = key > last_seen[:, None]
        p = torch.softmax(scores.masked_fill_(hidden, float("-inf")), dim=-1)
        received[..., :seqlen] += p.sum(-2)
        found.append(dense_statistics(p, last_seen, top_k, span_threshold))
    rows = [torch.cat(parts, dim=-1).flatten(1, 2) for parts in zip(*found, strict=True)]
    return AttentionStatistics(*rows, received.flatten(1, 2))


def dense_statistics(p, positions, top_k, span_threshold):
    """(entropy, distance, top_mass, span) of weights.

    Args:
        p: (..., seqlen_q, seqlen_k) weights, zero where a query does not see a key.
        positions: (seqlen_q,) the last key that each query sees.

    Returns:
        Tensors (..., seqlen_q) in the dtype of `p`.
    """
    key = torch.arange(p.shape[-1], device=p.device)
    entropy = torch.special.entr(p).sum(-1)
    distance = ((positions[:, None] - key).clamp_(min=0) * p).sum(-1)
    top_mass = p.topk(min(top_k, p.shape[-1]), dim=-1).values.sum(-1)
    above = p > span_threshold
    # argmax gives the first of several
    earliest = above.byte().argmax(-1)
    span = torch.where(above.any(-1), positions - earliest, 0).to(p.dtype)
    return entropy, distance, top_mass, span
