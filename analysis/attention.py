"""How each token distributes its attention over the tokens before it: softmax, and what is implicit in Mamba's scan.

Five statistics of every distribution p_ij over the tokens j <= i that token i sees, computed by
`kernels.attention_statistics` and `kernels.scan_statistics` (their references have the equations):

    entropy (nats), distance (tokens), top_mass (of the top_k largest weights), span (tokens back to the first weight
    above a threshold); span_max and span_cov are its maximum and its coefficient of variation over rows and heads
    entropy_normalised = entropy_i / ln(i + 1), from i = 1 on: 1 is uniform, whatever the position

Three instruments see them: `softmax` (the weights of a Transformer's heads), and of Mamba `implicit, per state` (the
weights that reach one state of one channel; a mean over channels) and `implicit, per channel` (|alpha_ij| of whole
channels). Softmax weights are a distribution by design; the signed alpha is made one only by taking absolute values
and dividing, so the two compare in kind, and `analysis.contributions` compares what really arrives.

A row without any weight (an input that is exactly zero up to there) has no distribution: its position is left out.
"""

import math

import torch

from analysis.measured import series
from bench.verdict import t_interval
from kernels import attention_statistics, scan_statistics

TOP_K = 5
SPAN_THRESHOLD = 0.01


def attention_series(
    operands, *, impl="torch", rows=None, top_k=TOP_K, span_threshold=SPAN_THRESHOLD
):
    """Statistics of softmax attention, instrument `softmax`.

    Args:
        operands: q and k (after rotary embedding) and softmax_scale, by the names of `kernels.causal_attention`.
        impl: what computes `kernels.attention_statistics`.
        rows: (n,) int64, ascending positions of the queries to look at; all if None.
        top_k, span_threshold: as in `kernels.attention_statistics`.

    Returns:
        list of `Series`: the five statistics, with values (batch * nheads, positions), and `received`: the weight that
        a key receives per query that sees it, the mean of p_ij over the given i >= j. (Dividing by their number
        makes early and late keys comparable: under uniform attention it is the mean of 1 / (i + 1) over them.) Keys
        that no given query sees are left out.

    Raises:
        ValueError: `rows` are not ascending positions of queries, or as `kernels.attention_statistics` raises.
    """
    q, k = operands["q"], operands["k"]
    seqlen_q, seqlen = q.shape[2], k.shape[2]
    positions = torch.arange(seqlen - seqlen_q, seqlen)
    sampled = False
    if rows is not None:
        positions, sampled = _checked(rows, positions), len(rows) < seqlen_q
        q = q[:, :, (positions - (seqlen - seqlen_q)).to(q.device)]
    found = attention_statistics(
        q, k, operands.get("softmax_scale"), top_k, span_threshold,
        positions=positions.to(q.device), impl=impl,
    )  # fmt: skip
    queries = len(positions) - torch.searchsorted(positions, torch.arange(seqlen))
    seen = queries > 0
    received = found.received.flatten(0, 1)[:, seen.to(q.device)].double().cpu() / queries[seen]
    return [
        *statistics_series("softmax", found, positions, sampled),
        series("softmax", "received", received, torch.arange(seqlen)[seen]),
    ]


def scan_series(operands, *, impl="torch", top_k=TOP_K, span_threshold=SPAN_THRESHOLD):
    """Statistics of the weights that reach each state of a scan, instrument `implicit, per state`; all rows, exact.

    Args:
        operands: delta, A, B, C, delta_bias and delta_softplus, by the names of `kernels.selective_scan`.
        impl: what computes `kernels.scan_statistics`.

    Returns:
        list of `Series`: the five statistics, with values (batch * dstate, positions), means over channels.
    """
    found = scan_statistics(
        **_scan(operands), top_k=top_k, span_threshold=span_threshold, level="state", impl=impl
    )
    positions = torch.arange(operands["delta"].shape[2])
    return statistics_series("implicit, per state", found, positions)


def implicit_series(
    operands, rows, channels, *, impl="torch", top_k=TOP_K, span_threshold=SPAN_THRESHOLD
):
    """Statistics of |alpha| of whole channels, instrument `implicit, per channel`.

    Args:
        operands: as in `scan_series`.
        rows: (n,) int64, ascending positions of the tokens that look back; all if None.
        channels: (m,) int64; all if None.
        impl: what computes `kernels.scan_statistics`: torch or reference.

    Returns:
        list of `Series`: the five statistics, with values (batch * m, positions).
    """
    delta = operands["delta"]
    everything = torch.arange(delta.shape[2])
    positions = everything if rows is None else _checked(rows, everything)
    found = scan_statistics(
        **_scan(operands), top_k=top_k, span_threshold=span_threshold, level="channel",
        rows=positions.to(delta.device), impl=impl,
        channels=None if channels is None else channels.to(delta.device),
    )  # fmt: skip
    sampled = len(positions) < len(everything)
    return statistics_series("implicit, per channel", found, positions, sampled)


def statistics_series(instrument, found, positions, sampled=False):
    """The Series of entropy, distance, top_mass and span.

    Args:
        found: has these four as fields, each (batch, heads, n).
        positions: (n,) int64 on the CPU, the token i of each row.
        sampled: whether the rows are a sample of the tokens.
    """
    rows = {}
    for name in ("entropy", "distance", "top_mass", "span"):
        rows[name] = getattr(found, name).detach().flatten(0, 1).double().cpu()
    kept = (rows["top_mass"] > 0).all(0)
    positions = positions[kept]
    entropy, distance, top_mass, span = (values[:, kept] for values in rows.values())
    make = lambda metric, values, at=positions, **options: series(
        instrument, metric, values, at, sampled=sampled, **options
    )
    later = positions > 0  # the first token sees one key: entropy 0 of at most 0
    return [
        make("entropy", entropy),
        make("entropy_normalised", entropy[:, later] / positions[later].double().log1p(), positions[later]),
        make("distance", distance),
        make("top_mass", top_mass),
        make("span", span, exact=False),
        make("span_max", span, summary="max", exact=False),
        make("span_cov", span, summary="cov", exact=False),
    ]  # fmt: skip


def sample_rows(seqlen, count, seed=0):
    """(count,) int64 ascending: one token at random from each of `count` equal parts of the sequence, or all tokens."""
    if seqlen < 1 or count < 1:
        raise ValueError(f"seqlen and count must be at least 1, got {seqlen} and {count}")
    if count >= seqlen:
        return torch.arange(seqlen)
    bounds = torch.arange(count + 1) * seqlen // count
    chance = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return bounds[:-1] + (chance * bounds.diff()).long()


def interval(series):
    """(low, high), the 95 % t interval of the mean of a sampled Series over its rows; (nan, nan) of any other.

    Heads or channels are averaged first: the rows are what was sampled. One row comes from each part of the sequence,
    so where a statistic grows with the position the interval is wider than it need be, never narrower.
    """
    if not series.sampled or series.summary != "mean" or len(series.positions) == 0:
        return math.nan, math.nan
    _, low, high = t_interval(series.by_position().numpy())
    return low, high


def _checked(rows, queries):
    """`rows` on the CPU, if they ascend among the positions of the `queries`."""
    rows = rows.to("cpu", torch.int64)
    first, last = int(queries[0]), int(queries[-1])
    if len(rows) == 0 or (rows.diff() <= 0).any() or rows[0] < first or rows[-1] > last:
        raise ValueError(
            f"rows must ascend, without repetition, between the queries {first} and {last}, got {rows.tolist()[:8]}"
        )
    return rows


def _scan(operands):
    names = ("delta", "A", "B", "C", "delta_bias")
    return {name: operands.get(name) for name in names} | {
        "delta_softplus": operands.get("delta_softplus", False)
    }
