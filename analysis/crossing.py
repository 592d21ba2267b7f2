"""Where a line with an interval crosses zero: one crossing for each stretch of x that leaves the sign open."""

import math
from dataclasses import dataclass

import numpy as np

from bench.verdict import LEAST


@dataclass(frozen=True)
class Line:
    """ln(llama / mamba) along ln L, with half-widths of intervals (nan where a single round gives none).

    Attributes:
        half:   of the 95 % interval at this length: the interval of a crossing is made of it.
        strict: of an interval that holds for all measured lengths together (inf between them). A side of a
            crossing counts only if it is beyond this somewhere, or chance would cross equal curves far too often.
    """

    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    strict: np.ndarray


@dataclass(frozen=True)
class Crossing:
    """One crossover in tokens; low is 0 or high is inf where the interval has no end within the lengths."""

    seqlen: float
    low: float
    high: float
    faster_above: str


def find(line):
    """The crossings of a `Line`: sign changes of the mean, one for each stretch that leaves the sign open."""
    runs = _runs(signs(line))
    crossings = []
    for position, (sign, start, stop) in enumerate(runs):
        before = runs[position - 1][0] if position else None
        after = runs[position + 1][0] if position + 1 < len(runs) else None
        if sign == 0 and (crossing := _open_crossing(line, start, stop, before, after)):
            crossings.append(crossing)
        elif sign and after == -sign:
            crossings.append(_sharp_crossing(line, stop - 1, sign))
    return crossings


def signs(line):
    """+1 where mamba is better, -1 where llama is, 0 where neither is established."""
    found = np.sign(line.mean)
    found[np.abs(line.mean) <= line.half] = 0  # False where there is no interval
    sure = ~(np.abs(line.mean) <= line.strict) & (np.abs(line.mean) >= LEAST)
    for _, start, stop in _runs(found):
        if not sure[start:stop].any():
            found[start:stop] = 0
    return found


def _runs(values):
    """[(value, start, stop)] of the stretches of equal values."""
    ends = np.flatnonzero(np.diff(values)) + 1
    return [(values[i], i, j) for i, j in zip([0, *ends], [*ends, len(values)], strict=True)]


def _open_crossing(line, start, stop, before, after):
    """The crossing inside a stretch of undecided lengths, if its two sides or its mean change sign."""
    if before is None and after is None:
        return None
    roots = _roots(line, line.mean, max(start - 1, 0), min(stop + 1, len(line.x)))
    if before is not None and after is not None:
        if before == after:
            return None
    elif len(roots) % 2 == 0:
        return None
    above = after if after is not None else -before
    low = 0.0 if before is None else math.exp(_edge(line, start - 1, start))
    high = math.inf if after is None else math.exp(_edge(line, stop, stop - 1))
    seqlen = math.exp(float(np.median(roots))) if len(roots) else math.nan
    return Crossing(seqlen, low, high, "mamba" if above > 0 else "llama")


def _sharp_crossing(line, i, sign):
    """The crossing between two neighbouring points that are both decided."""
    above = "llama" if sign > 0 else "mamba"
    if not np.isfinite(line.mean[[i, i + 1]]).all():  # one side of it is an out-of-memory
        return Crossing(math.nan, math.exp(line.x[i]), math.exp(line.x[i + 1]), above)
    ends = [_roots(line, line.mean + s * line.half, i, i + 2) for s in (-1, 1)]
    low, high = sorted(math.exp(e[0]) if len(e) else math.nan for e in ends)
    return Crossing(math.exp(_roots(line, line.mean, i, i + 2)[0]), low, high, above)


def _roots(line, values, start, stop):
    """Sign changes of `values` between neighbouring finite points, by straight lines, as ln L."""
    x, y = line.x[start:stop], values[start:stop]
    changes = np.sign(y[:-1]) * np.sign(y[1:]) < 0
    i = np.flatnonzero(changes & np.isfinite(y[:-1]) & np.isfinite(y[1:]))
    crossed = x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i])
    return np.sort([*crossed, *x[(y == 0) & ~(line.half[start:stop] > 0)]])


def _edge(line, decided, undecided):
    """Where between two neighbouring points the interval begins to contain zero, as ln L."""
    pair = [decided, undecided]
    outer, inner = np.sign(line.mean[decided]) * line.mean[pair] - line.half[pair]
    if not (math.isfinite(outer) and outer > 0 >= inner):
        return line.x[decided]
    return line.x[decided] + (line.x[undecided] - line.x[decided]) * outer / (outer - inner)
