"""The implicit attention of whole channels, alpha, on sampled rows and channels; and its statistics, for `torch`.

Weights of a row come from differences of P, which are accurate in float64 and never positive times A; the factor
exp(-A P_j) that would let a row be computed from one vector overflows. A block holds as many rows as fit in ELEMENTS
weights, over the keys that its last row sees, and adds up one state after the other: memory is O(seqlen) and does not
grow with dstate.
"""

import torch

from kernels.attention_statistics.reference import dense_statistics
from kernels.scan_statistics.op import check_sample, check_scan
from kernels.scan_statistics.reference import ScanStatistics, step_sizes

ELEMENTS = 1 << 21  # weights of a block: 16 MiB in float64


def implicit_attention(
    delta, A, B, C, delta_bias=None, delta_softplus=False, rows=None, channels=None
):
    """The signed weights alpha, with which the scan (without D and z) is y_i = sum_j alpha_ij u_j.

    Args:
        delta, A, B, C, delta_bias, delta_softplus: as in `kernels.selective_scan`.
        rows: (n,) int64, the tokens i; all if None.
        channels: (m,) int64; all if None.

    Returns:
        alpha: (batch, m, n, seqlen), 0 for j > i; float32, or float64 if `delta` is.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
    """
    B, C = check_scan("implicit_attention", "torch", delta, A, B, C, delta_bias, delta_softplus)
    rows, channels = check_sample(delta, rows, channels)
    dtype = torch.promote_types(delta.dtype, torch.float32)
    shape = (delta.shape[0], len(channels), len(rows), delta.shape[2])
    alpha = delta.new_zeros(shape, dtype=dtype)
    for at, m, some, weights in _blocks(
        delta, A, B, C, delta_bias, delta_softplus, rows, channels, dtype
    ):
        alpha[at, m, some, : weights.shape[-1]] = weights
    return alpha


def channel_statistics(
    delta, A, B, C, delta_bias, delta_softplus, top_k, span_threshold, rows, channels
):
    """`scan_statistics_torch` of level "channel"."""
    dtype = torch.promote_types(delta.dtype, torch.float32)
    found = delta.new_empty((4, delta.shape[0], len(channels), len(rows)), dtype=dtype)
    for at, m, some, weights in _blocks(
        delta, A, B, C, delta_bias, delta_softplus, rows, channels, dtype
    ):
        weights = weights.abs()
        total = weights.sum(-1, keepdim=True)
        p = torch.where(total == 0, 0, weights / total)
        statistics = dense_statistics(p, rows[some], top_k, span_threshold)
        found[:, at, m, some] = torch.stack(statistics)
    return ScanStatistics(*found)


def _blocks(delta, A, B, C, delta_bias, delta_softplus, rows, channels, dtype):
    """Yield (batch, index of the channel, indices of rows, alpha (rows, keys)) block by block."""
    batch, dim, seqlen = delta.shape
    order = rows.argsort(stable=True)
    size = max(1, ELEMENTS // seqlen)
    for m, channel in enumerate(channels.tolist()):
        group = channel * B.shape[1] // dim
        bias = None if delta_bias is None else delta_bias[channel : channel + 1]
        d = step_sizes(delta[:, channel : channel + 1], bias, delta_softplus, dtype)[:, 0]
        P = d.double().cumsum(-1)
        for at in range(batch):
            for some in order.split(size):
                i = rows[some]
                keys = slice(int(i[-1]) + 1)
                key = torch.arange(keys.stop, device=delta.device)
                future = key > i[:, None]
                since = (P[at, i, None] - P[at, keys]).masked_fill(future, 0.0).to(dtype)
                weights = torch.zeros_like(since)
                for n, rate in enumerate(A[channel].to(dtype)):
                    step = d[at, keys] * B[at, group, n, keys].to(dtype)
                    read = C[at, group, n, i].to(dtype)
                    weights += read[:, None] * torch.exp(rate * since) * step
                yield at, m, some, weights.masked_fill_(future, 0.0)
