"""Where one architecture overtakes the other: the length at which ln(llama / mamba) crosses zero.

An interval of a crossover is the set of lengths at which the 95 % interval of that difference contains zero: the
paired t test over rounds, inverted. It needs no resampling (which covers too little with five rounds),
covers as often as the t interval does, and is unbounded by itself where the curves run side by side.

Two ways give the difference between the measured lengths:

- interpolation: round by round, on log-log axes, a straight line between neighbouring lengths, or the cubic
  through the four nearest ones inside the pair that brackets a change of sign (half-octaves are far enough
  apart for the curvature of a + bL + cL^2 to show); the distance of the two widens the interval;
- fit: the models that AICc chose for the two curves, also beyond the measured lengths, labelled as such. Its
  interval is the wider of two: the spread over rounds, and the scatter of the points about the fits. It takes
  the models as given, so it holds the truth somewhat less often (90 % in simulation) where the choice is close.
"""

import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

from analysis.crossing import Crossing, Line, find, signs
from analysis.load import Setting, named, pairs, side
from analysis.scaling import FEWEST, censored, choose, fit_all, means
from bench.verdict import COUNTS

CONFIDENCE = 0.95
STEPS = 32  # grid points between neighbouring lengths
REACH = 8  # fits are searched this many times beyond the measured lengths, both ways


def crossover_table(curves, measure):
    """One row per pair of implementations, method and crossover.

    Columns: setting, measure, llama_impl, mamba_impl, method ("interpolation" or "fit"), answer ("crossover",
    "several", "none in range", "undecided", "unknown"), seqlen, low (0: unbounded), high (inf: unbounded),
    better_above (the architecture that wins beyond it, or everywhere), extrapolated, models (of a fit), note.
    """
    rows = []
    for setting, llama, mamba in pairs(curves):
        a, b = side(curves, setting, "llama", llama), side(curves, setting, "mamba", mamba)
        if measure in COUNTS:
            a, b = _in_every_round(a), _in_every_round(b)
        for method, found in (("interpolation", interpolated(a, b)), ("fit", fitted(a, b))):
            key = {"measure": measure, "llama_impl": llama, "mamba_impl": mamba, "method": method}
            rows += [setting._asdict() | key | _renamed(row, named(mamba)[0]) for row in found]
    columns = [
        *Setting._fields,
        "measure",
        "llama_impl",
        "mamba_impl",
        "method",
        "answer",
        "seqlen",
    ]
    columns += ["low", "high", "better_above", "extrapolated", "models", "note"]
    return pd.DataFrame(rows, columns=columns)


def _renamed(row, arch):
    """A row about two curves that are called llama and mamba, if the second one is of another architecture."""
    said = {name: row[name].replace("mamba", arch) for name in ("better_above", "models", "note")}
    return row | said


def _in_every_round(counts):
    """A curve of counts, which repeat exactly: what one round counted holds in all, and a single round for two."""
    filled = counts.bfill().ffill()
    return filled if len(filled) > 1 else pd.concat([filled, filled], ignore_index=True)


def interpolated(llama, mamba):
    """The crossovers of two curves (tables rounds x seqlen) within the measured lengths, as rows."""
    difference = _differences(llama, mamba)
    if difference.shape[1] < 2:
        return [_row("unknown", note="fewer than two lengths have both")]
    line = _interpolate(difference)
    rows = _answer(line, find(line))
    notes = [f"llama out of memory at {n:,}" for n in censored(llama)[:1]]
    notes += [f"mamba out of memory at {n:,}" for n in censored(mamba)[:1]]
    if len(difference) < 2:
        notes.append("one round: no interval")
    return [row | {"note": "; ".join([row["note"]] * bool(row["note"]) + notes)} for row in rows]


def fitted(llama, mamba):
    """The crossovers of the models that AICc chose for two curves, as rows."""
    models = {}
    for name, curve in (("llama", llama), ("mamba", mamba)):
        fits = fit_all(*means(curve))
        chosen, _ = choose(fits)
        if chosen is None:
            has = np.isfinite(curve).any().sum()
            return [
                _row(
                    "unknown",
                    note=f"{name} has {has} lengths, the choice of a model needs {FEWEST}",
                )
            ]
        models[name] = fits[chosen]
    first = max(m.lengths[0] for m in models.values())
    last = min(m.lengths[-1] for m in models.values())
    line = _fitted_line(models, llama, mamba, first, last)
    found = find(line)
    inside = [c for c in found if first <= c.seqlen <= last]
    if inside:
        rows = _answer(line, inside)
    elif found:
        rows = [row | {"extrapolated": True} for row in _answer(line, found)]
    else:
        rows = [
            row | {"note": f"nor within {REACH} times beyond"}
            for row in _answer(_clip(line, first, last), [])
        ]
    return [
        row | {"models": f"llama {models['llama'].model}, mamba {models['mamba'].model}"}
        for row in rows
    ]


def _differences(llama, mamba):
    """ln(llama / mamba), rounds x seqlen, for the lengths that say anything; +-inf is an out-of-memory."""
    rounds = llama.index.intersection(mamba.index)
    lengths = [n for n in llama.columns if n in mamba.columns]
    a, b = (curve.loc[rounds, lengths].astype(float) for curve in (llama, mamba))
    both_out = np.isinf(a) & np.isinf(b)
    ratio = (np.log(a.where(a > 0)) - np.log(b.where(b > 0))).where(~both_out)
    mixed = [n for n in ratio if np.isinf(ratio[n]).any() and not np.isinf(ratio[n].dropna()).all()]
    return ratio.drop(columns=mixed).dropna(axis=1, how="all")


def _interpolate(difference):
    lengths = difference.columns.to_numpy(dtype=float)
    x, values = np.log(lengths), difference.to_numpy()
    finite = [i for i in range(len(x)) if not np.isinf(values[:, i]).any()]
    nodes = {i: _mean_half(values[:, [i]], np.ones((1, 1)), _levels(len(finite))) for i in finite}
    points = [(x[i], *(column[0] for column in node)) for i, node in nodes.items()]
    for i in set(range(len(x))) - set(finite):
        points.append((x[i], values[~np.isnan(values[:, i]), i][0], 0.0, 0.0))
    for i, j in itertools.pairwise(finite):
        if j == i + 1:
            inner = np.linspace(x[i], x[j], STEPS + 1)[1:-1]
            bracket = nodes[i][0][0] * nodes[j][0][0] < 0
            mean, half = _segment(x, values, finite, i, inner, bracket)
            points += zip(inner, mean, half, np.full(len(inner), math.inf), strict=True)
    return Line(*np.array(sorted(points)).T)


def _segment(x, values, finite, i, inner, bracket):
    """Mean and half-width between the length i and the next, which have different signs if `bracket`."""
    ends = [i, i + 1]
    straight = _mean_half(values[:, ends], _lagrange(x[ends], inner), [CONFIDENCE])
    support = finite[max(0, min(finite.index(i) - 1, len(finite) - 4)) :][:4]
    if not bracket or len(support) < 4:
        return straight
    curved = _mean_half(values[:, support], _lagrange(x[support], inner), [CONFIDENCE])
    once = np.count_nonzero(np.diff(np.sign(curved[0]))) == 1
    return curved[0] if once else straight[0], np.hypot(curved[1], curved[0] - straight[0])


def _lagrange(x, at):
    """Weights (len(at), len(x)) of the polynomial through the points x."""
    weights = np.ones((len(at), len(x)))
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                weights[:, i] *= (at - x[j]) / (x[i] - x[j])
    return weights


def _mean_half(values, weights, levels):
    """Mean of weighted sums over the rounds that have all of the points, and a half-width for each level."""
    complete = values[~np.isnan(values).any(axis=1)]
    if len(complete) == 0:
        unknown = np.full(len(weights), math.nan)
        return weights @ np.nanmean(values, axis=0), *([unknown] * len(levels))
    per_round = complete @ weights.T
    return per_round.mean(axis=0), *(_half(per_round, level) for level in levels)


def _levels(lengths):
    """Confidence at one length, and the one that holds for all `lengths` together."""
    return CONFIDENCE, 1 - (1 - CONFIDENCE) / max(1, lengths)


def _half(per_round, confidence):
    n = len(per_round)
    if n < 2:
        return np.full(per_round.shape[1], math.nan)
    return stats.t.ppf((1 + confidence) / 2, n - 1) * per_round.std(axis=0, ddof=1) / math.sqrt(n)


def _fitted_line(models, llama, mamba, first, last):
    a, b = models["llama"], models["mamba"]
    lowest, highest = max(first / REACH, 2), last * REACH
    grid = np.geomspace(lowest, highest, 2 * STEPS * round(math.log2(highest / lowest)))
    mean = np.log(a.predict(grid)) - np.log(b.predict(grid))
    weights = {"llama": a.influence(grid), "mamba": b.influence(grid)}
    logs = {"llama": _complete_rounds(llama, a), "mamba": _complete_rounds(mamba, b)}
    rounds = logs["llama"].index.intersection(logs["mamba"].index)
    moved = logs["llama"].loc[rounds].to_numpy() @ weights["llama"].T
    moved -= logs["mamba"].loc[rounds].to_numpy() @ weights["mamba"].T
    levels = _levels(len(a.lengths))
    scatter = [
        _scatter([(m, weights[name]) for name, m in models.items()], level) for level in levels
    ]
    return Line(
        np.log(grid),
        mean,
        *(np.fmax(_half(moved, c), s) for c, s in zip(levels, scatter, strict=True)),
    )


def _complete_rounds(curve, model):
    """ln of the rounds that have every fitted length."""
    values = curve[[n for n in curve if float(n) in model.lengths]]
    return np.log(values[np.isfinite(values).all(axis=1)])


def _scatter(fits, confidence):
    """Half-width of the difference of fits from their residuals, with Welch's degrees of freedom."""
    parts = [(f.rss / f.dof * (w**2).sum(axis=1), f.dof) for f, w in fits]
    total = sum(v for v, _ in parts)
    if not (total > 0).all():  # both fits are exact
        return np.zeros_like(total)
    dof = total**2 / sum(v**2 / d for v, d in parts)
    return stats.t.ppf((1 + confidence) / 2, dof) * total**0.5


def _clip(line, first, last):
    inside = (line.x >= math.log(first) - 1e-9) & (line.x <= math.log(last) + 1e-9)
    return Line(*(part[inside] for part in (line.x, line.mean, line.half, line.strict)))


def _answer(line, crossings):
    """Rows for what `find` found, or the one row that says why there is nothing."""
    if len(crossings) == 1:
        return [_row("crossover", crossings[0])]
    if crossings:
        return [_row("several", c) for c in crossings]
    sign = signs(line)
    if not sign.any():
        equal = np.abs(line.mean).max() == 0
        return [
            _row("undecided", note="equal throughout" if equal else "neither is better anywhere")
        ]
    better = "mamba" if sign[sign != 0][0] > 0 else "llama"
    note = "" if sign.all() else "undecided at some lengths"
    return [_row("none in range", Crossing(math.nan, math.nan, math.nan, better), note)]


def _row(answer, crossing=None, note=""):
    if crossing is None:
        crossing = Crossing(math.nan, math.nan, math.nan, "")
    elif answer == "none in range":
        pass
    elif math.isnan(crossing.seqlen):
        note = "known only to lie between a measured length and an out-of-memory"
    elif crossing.low == 0 or crossing.high == math.inf:
        note = "interval unbounded below" if crossing.low == 0 else "interval unbounded above"
    return {
        "answer": answer, "seqlen": crossing.seqlen, "low": crossing.low, "high": crossing.high,
        "better_above": crossing.faster_above, "extrapolated": False, "models": "", "note": note,
    }  # fmt: skip
