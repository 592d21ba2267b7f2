"""Is A faster than B: the interval of a ratio, and the verdict drawn from it.

The unit of inference is the round (one fresh process), never the iteration: a round counts with one number,
the median of its samples. Times multiply, so everything happens on logarithms:

    d_r = ln a_r - ln b_r          one number a round
    ratio = exp(mean d),  interval = exp(mean d -+ t sd(d) / sqrt(n))

Two runs share no rounds, so they are compared by Welch's interval of the difference of mean logarithms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST = math.log(1.01)  # a smaller difference is never called faster or slower
COUNTS = (
    "memory",
    "peak_memory",
)  # measures that are counted and not sampled: the allocator's bytes
SAME = math.log(1.02)  # an interval inside this, on both sides of 1, is called equivalent


@dataclass(frozen=True)
class Interval:
    """A ratio with its confidence interval: nan where there is none, and then `reason` says why."""

    ratio: float
    low: float
    high: float
    n: int
    reason: str = ""


def statistic(record, measure):
    """The one number that a record contributes to a comparison.

    Args:
        record:  one line of records.jsonl.
        measure: "time" (median wall time of a forward, ms), "device_time" (the same on the device's own
            clock), "memory" (peak bytes beyond the weights) or "peak_memory" (weights included).

    Returns:
        float: inf for a cell that ran out of memory, nan where nothing was measured.
    """
    if record["status"] == "oom":
        return math.inf
    if record["status"] != "ok":
        return math.nan
    if measure in ("memory", "peak_memory"):
        return _memory(record.get("memory_bytes") or {}, apart=measure == "memory")
    samples = (record.get("time_ms") or {}).get({"time": "wall", "device_time": "device"}[measure])
    return float(np.median(samples)) if samples else math.nan


def _memory(memory, apart):
    peak, weights = memory.get("peak_allocated"), memory.get("weights")
    if peak is None or (apart and weights is None):
        return math.nan
    return float(peak - weights if apart else peak)


def t_interval(values, confidence=0.95):
    """Mean of `values` and its t interval: (mean, low, high), the ends nan for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = (
        stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    )
    return mean, float(mean - half), float(mean + half)


def ratio_interval(a, b, confidence=0.95):
    """a / b within one run, paired by round.

    Args:
        a, b: {round: value}, or two sequences of equal length whose positions are the rounds. Values are
            positive; inf is an out-of-memory, nan a round without a measurement.

    Returns:
        `Interval`; ratio inf if only a ran out of memory, 0 if only b did.
    """
    if not isinstance(a, Mapping) and not isinstance(b, Mapping) and len(a) != len(b):
        raise ValueError(f"a and b must have one value a round each, got {len(a)} and {len(b)}")
    a, b = _by_round(a), _by_round(b)
    rounds = [r for r in a if r in b and not math.isnan(a[r]) and not math.isnan(b[r])]
    a, b = np.array([a[r] for r in rounds]), np.array([b[r] for r in rounds])
    if (special := _special(a, b, len(rounds))) is not None:
        return special
    return _interval(*t_interval(np.log(a) - np.log(b), confidence), len(rounds))


def unpaired(a, b, confidence=0.95):
    """a / b where a and b come from two runs: Welch's interval. Arguments are sequences, one value a round."""
    a, b = (np.array([v for v in values if not math.isnan(v)], dtype=float) for values in (a, b))
    n = min(len(a), len(b))
    if (special := _special(a, b, n)) is not None:
        return special
    difference = float(np.log(a).mean() - np.log(b).mean())
    if n < 2:
        return _interval(difference, math.nan, math.nan, n)
    va, vb = (float(np.log(v).var(ddof=1)) / len(v) for v in (a, b))
    if va + vb == 0:
        return _interval(difference, difference, difference, n)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf((1 + confidence) / 2, df) * (va + vb) ** 0.5
    return _interval(difference, difference - half, difference + half, n)


def exact(interval):
    """The interval of a ratio of counts: a count of bytes repeats exactly, so a single one is its own interval."""
    if interval.n != 1 or math.isnan(interval.ratio):
        return interval
    return Interval(interval.ratio, interval.ratio, interval.ratio, 1)


def verdict(interval):
    """What may be said of a relative to b: "faster", "slower", "equivalent" or "undecided".

    Faster or slower needs an interval without 1 and a difference of at least 1 %; it is asked first,
    because a difference of 1.5 % that is known to 0.1 % is a difference. Equivalent needs an interval
    within 2 % of 1. Both limits are taken on the logarithm, so that swapping a and b swaps the verdict.
    """
    if math.isnan(interval.ratio):
        return "undecided"
    if interval.ratio in (0, math.inf):
        return "slower" if interval.ratio else "faster"
    if math.isnan(interval.low):
        return "undecided"
    difference, low, high = (math.log(v) for v in (interval.ratio, interval.low, interval.high))
    if low > 0 and difference >= LEAST:
        return "slower"
    if high < 0 and difference <= -LEAST:
        return "faster"
    return "equivalent" if low >= -SAME and high <= SAME else "undecided"


def _by_round(values):
    return dict(values) if isinstance(values, Mapping) else dict(enumerate(values))


def _special(a, b, n):
    """The interval where logarithms have no answer: nothing measured, or out of memory; else None."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, "no round has both")
    a_out, b_out = np.isinf(a), np.isinf(b)
    if a_out.all() and b_out.all():
        return Interval(math.nan, math.nan, math.nan, n, "both out of memory")
    if a_out.all() and not b_out.any():
        return Interval(math.inf, math.inf, math.inf, n, "out of memory")
    if b_out.all() and not a_out.any():
        return Interval(0.0, 0.0, 0.0, n, "out of memory")
    if a_out.any() or b_out.any():
        return Interval(math.nan, math.nan, math.nan, n, "out of memory in some rounds only")
    if (a <= 0).any() or (b <= 0).any():
        return Interval(math.nan, math.nan, math.nan, n, "a value is not positive")
    return None


def _interval(mean, low, high, n):
    reason = "" if n > 1 else "one round gives no interval"
    return Interval(*(math.exp(v) for v in (mean, low, high)), n, reason)
