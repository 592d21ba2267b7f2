"""The public operator `attention_statistics`: checks, then the implementation that the caller named."""

import torch

from kernels import checks
from kernels.attention_statistics.reference import AttentionStatistics
from kernels.implementations import find
from profiles.ranges import annotate


def attention_statistics(
    q, k, softmax_scale=None, top_k=5, span_threshold=0.01, *, positions=None, impl="triton"
) -> AttentionStatistics:
    """Exact statistics of p = softmax(softmax_scale q k' + causal mask), row by row, without keeping p.

    Args:
        q: (batch, nheads, seqlen_q, headdim), any strides; after rotary embedding, where a model has one.
        k: (batch, nheads_kv, seqlen_k, headdim), any strides, in the dtype of `q`; nheads % nheads_kv == 0 and query
            head h reads key head h // (nheads // nheads_kv).
        softmax_scale: factor of the scores; headdim**-0.5 if None.
        top_k: how many of the largest weights make up the top mass.
        span_threshold: between 0 and 1; the span reaches back to the first weight above it.
        positions: (seqlen_q,) int64, the last key that each query sees, never decreasing: for query rows that were
            sampled. If None, the last query sees every key (aligned bottom-right, as in `causal_attention`) and
            seqlen_q <= seqlen_k.
        impl: triton, torch, hf or reference.

    Memory beside the results is O(seqlen), for `hf` and the definition excepted. Scores, weights and sums are at least
    float32, unless `torch.backends.cuda.matmul.allow_tf32` allows TF32. There are no gradients.

    Returns:
        AttentionStatistics: entropy (nats), distance (tokens), top_mass and span (tokens), each (batch, nheads,
        seqlen_q), and received (batch, nheads, seqlen_k), the sum over the given queries of the weight of each key;
        float32, or float64 for float64 inputs. `kernels.attention_statistics.reference` has the equations.

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
    if nheads_kv == 0 or nheads % nheads_kv:
        raise ValueError(
            f"k must have a number of heads that divides the {nheads} heads of q, got {nheads_kv}"
        )
    if seqlen_k == 0:
        raise ValueError(f"k must have at least one token, got shape {tuple(k.shape)}")
    if positions is None:
        if seqlen_q > seqlen_k:
            raise ValueError(
                f"k must have at least as many tokens as q, got {seqlen_k} for {seqlen_q}: the first queries would "
                "see no key; give the positions of the queries"
            )
        positions = torch.arange(seqlen_k - seqlen_q, seqlen_k, device=q.device)
    else:
        _check_positions(positions, q, seqlen_k)
    checks.check_statistics(top_k, span_threshold)
    softmax_scale = headdim**-0.5 if softmax_scale is None else softmax_scale
    checks.check_scale("softmax_scale", softmax_scale)
    if softmax_scale <= 0:
        # kernels take the maximum before they scale: the scale must keep the order
        q, softmax_scale = q * (-1.0 if softmax_scale < 0 else 0.0), abs(softmax_scale) or 1.0
    checks.check_no_gradient(
        "attention_statistics", impl, q, k, remedy="no implementation has: detach q and k"
    )
    compute = find("attention_statistics", impl, q.device)
    with annotate("op/attention_statistics", payload=seqlen_k):
        return compute(q, k, float(softmax_scale), top_k, float(span_threshold), positions)


def _check_positions(positions, q, seqlen_k):
    checks.check_tensor("positions", positions, (q.shape[2],), q, dtypes=(torch.int64,))
    first, last = int(positions[0]), int(positions[-1])
    if (positions[1:] < positions[:-1]).any():
        raise ValueError("positions must ascend, got a smaller one after a larger; sort the rows")
    if first < 0 or last >= seqlen_k:
        raise ValueError(
            f"positions must be those of keys, 0 to {seqlen_k - 1}, got {first} to {last}"
        )
