"""Statistics of the attention that is implicit in Mamba's selective scan. This file is the specification.

The scan y_i = sum_j alpha_ij u_j is an attention with the signed weights (Ali, Zimerman and Wolf, 2025)

    alpha_ij = sum_n C_i[n] exp(A[n] (P_i - P_j)) d_j B_j[n]         j <= i,  P = cumsum d

per channel, where d is the step size (after bias and softplus) and the skip connection D is left out. Two levels make
distributions of it:

    state     p_ij ~ exp(A[n] (P_i - P_j)) |d_j B_j[n]|       per channel and state (|C_i[n]| cancels)
    channel   p_ij ~ |alpha_ij|                               per channel, which sees signs cancel between states

each divided by its sum over j, and the same four numbers as for softmax attention describe every row i:

    entropy = -sum_j p_ij ln p_ij                 nats
    distance = sum_j (i - j) p_ij                 tokens
    top_mass = sum of the top_k largest p_ij
    span = i - min{j : p_ij > span_threshold}     tokens; 0 where no weight exceeds the threshold

On the level of states they are means over the channels. A row whose weights are all zero (B was exactly 0 up to there)
has no distribution: it is left out of the mean, and where no channel has one, or on the level of channels, its four
numbers are 0. Its top_mass tells it apart: that of a distribution is positive.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from kernels.attention_statistics.reference import dense_statistics
from kernels.implementations import note


class ScanStatistics(NamedTuple):
    """float32 (float64 for float64 inputs): (batch, dstate, seqlen) each, or (batch, channels, rows)."""

    entropy: torch.Tensor
    distance: torch.Tensor
    top_mass: torch.Tensor
    span: torch.Tensor


def scan_statistics_ref(
    delta, A, B, C, delta_bias, delta_softplus, top_k, span_threshold, level, rows, channels
):
    """All weights of one channel at a time: O(dstate * seqlen^2) memory.

    Args:
        delta: (batch, dim, seqlen) step size, before bias and softplus.
        A: (dim, dstate) state decay, negative.
        B, C: (batch, ngroups, dstate, seqlen); level "state" does not look at C.
        delta_bias: (dim,) added to `delta`, or None.
        delta_softplus: whether softplus makes the step size positive.
        top_k: how many of the largest weights make up the top mass.
        span_threshold: what a weight has to exceed to count for the span.
        level: "state" or "channel".
        rows: (n,) query tokens of level "channel".
        channels: (m,) channels of level "channel".

    Returns:
        ScanStatistics.
    """
    note("scan_statistics", "reference.scan_statistics")
    dtype = torch.promote_types(delta.dtype, torch.float32)
    d = step_sizes(delta, delta_bias, delta_softplus, dtype)
    A, B, C = (t.to(dtype) for t in (A, B, C))
    seqlen, dim = d.shape[2], d.shape[1]
    token = torch.arange(seqlen, device=d.device)
    describe = lambda p: torch.stack(dense_statistics(p, token, top_k, span_threshold))
    sums, counts, found = 0, 0, []
    for channel in range(dim) if level == "state" else channels.tolist():
        group = channel * B.shape[1] // dim
        P = d[:, channel].cumsum(-1)
        exponents = A[channel, :, None, None] * (P[:, None, :, None] - P[:, None, None, :])
        future = token[:, None] < token
        weights = d[:, channel, None] * B[:, group]  # (batch, dstate, seqlen)
        if level == "state":
            logs = (exponents + weights.abs().log()[:, :, None]).masked_fill(future, float("-inf"))
            defined = (weights != 0).cumsum(-1) > 0
            p = torch.where(defined[..., None], logs.softmax(-1), 0)
            sums, counts = sums + describe(p), counts + defined
        else:
            decays = exponents.masked_fill(future, float("-inf")).exp()
            alpha = (C[:, group, :, :, None] * decays * weights[:, :, None]).sum(1)
            alpha = alpha.abs().masked_fill(future, 0.0)
            total = alpha.sum(-1, keepdim=True)
            p = torch.where(total == 0, 0, alpha / total)
            found.append(describe(p)[..., rows])
    if level == "state":
        return means(sums, counts)
    return ScanStatistics(*torch.stack(found, 2))


def step_sizes(delta, delta_bias, delta_softplus, dtype):
    """softplus(delta + delta_bias) of (batch, dim, seqlen) in `dtype`, without either where it is off."""
    d = delta.to(dtype)
    if delta_bias is not None:
        d = d + delta_bias.to(dtype)[:, None]
    return F.softplus(d) if delta_softplus else d


def means(sums, counts):
    """Means over the channels that have a distribution; 0 where none has. sums: (4, ...), counts: (...)."""
    return ScanStatistics(*(sums / counts.clamp(min=1)))
