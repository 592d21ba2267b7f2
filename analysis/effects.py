"""Factorial effects on the logarithm of time and memory: architecture x implementation x launch x dtype, per length.

Three modules split a difference, and answer different questions: this one averages over everything that was measured
(what does the architecture do, whichever implementation?), `analysis.identity` divides one ratio by that of the
floors (what would it be on perfect kernels?), and `analysis.shapley` walks from the paper's pairing to the best one.

Effects are estimated on a complete grid of levels, where least squares is nothing but differences of means and no
effect leans on another. Where cells are missing, the largest complete grid is taken (by cells x rounds, with both
architectures if any grid has them), and what was left out is said. Every round gives its own estimate; intervals are
t intervals over rounds, as everywhere. Architecture is a factor of two levels, the pair: further ones would move every
mean, and are left out.
"""

import itertools
import math
from functools import cache, reduce

import numpy as np
import pandas as pd

from analysis.load import PAIR, further, impl_order
from bench.plan import DTYPES, LAUNCHES
from bench.verdict import COUNTS, Interval, exact, t_interval, verdict

FACTORS = ("arch", "impl", "launch", "dtype")
GROUP = ["preset", "batch", "mode"]
MEASURES = ("time", "memory")
SAYS = {"slower": "raises", "faster": "lowers"}
WORDS = {
    "unavailable": "is unavailable",
    "interpreted": "ran through the interpreter",
    "oom": "ran out of memory",
    "timeout": "timed out",
    "error": "failed",
    "ok": "lacks a value in some rounds",
}
COLUMNS = [
    *GROUP, "seqlen", "measure", "term", "contrast", "effect", "factor", "low", "high", "rounds", "verdict", "share",
    "levels", "left_out", "reason",
]  # fmt: skip


def effects_table(results):
    """One row per preset, batch, mode, seqlen, measure, term and contrast.

    Columns: the group; term ("arch", "arch x impl", ..., and "rounds" and "residual", which have only a share);
    contrast: of a factor with two levels the first over the second, of one with more each level over their geometric
    mean, of an interaction the ratio of such ratios; effect (the mean logarithm), factor (its exponential) with low and
    high (95 %), rounds, verdict on it ("raises", "lowers", "equivalent" or "undecided", as in `bench.verdict`);
    share of the term in the sum of squares of all cells and rounds; levels of the grid; left_out and why; reason where
    there is nothing to compare.
    """
    rows = []
    others = further(results.cells.arch)
    beyond = f"arch {', '.join(others)}, because the factor is the pair" if others else ""
    pair = results.cells[results.cells.arch.isin(PAIR)]
    for group, cells in pair.groupby(GROUP, sort=False):
        levels = _levels(cells)
        lengths = sorted(cells.seqlen.unique())
        for measure in MEASURES:
            values = _values(results.curves[measure], group, levels, lengths, measure)
            for i, seqlen in enumerate(lengths):
                key = dict(zip(GROUP, group, strict=True)) | {"seqlen": seqlen, "measure": measure}
                status = _statuses(cells[cells.seqlen == seqlen])
                fitted = _fit(values[..., i], levels, status, measure)
                for row in fitted:
                    left_out = "; ".join(filter(None, (row["left_out"], beyond)))
                    rows.append(key | row | {"left_out": left_out})
    return pd.DataFrame(rows, columns=COLUMNS)


def decompose(values):
    """Effects of every subset of the axes of a complete grid.

    Args:
        values: (levels of axis 0, ..., levels of axis k - 1, rounds), logarithms without a gap.

    Returns:
        {tuple of axes: (effects, share)}: effects of shape (contrasts of each axis in the tuple ..., rounds), share of
        the sum of squares about the mean; the keys "rounds" and "residual" hold a share alone.
    """
    sizes, rounds = values.shape[:-1], values.shape[-1]
    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    total = ((values - values.mean()) ** 2).sum()
    per_round = values.mean(axis=tuple(range(len(sizes))))
    squares = {"rounds": math.prod(sizes) * ((per_round - values.mean()) ** 2).sum()}
    found = {}
    for count in range(1, len(axes) + 1):
        for term in itertools.combinations(axes, count):
            found[term] = _project(values, term, _contrasts)
            deviation = _project(values.mean(axis=-1, keepdims=True), term, _centring)
            repeats = rounds * math.prod(
                size for axis, size in enumerate(sizes) if axis not in term
            )
            squares[term] = repeats * (deviation**2).sum()
    squares["residual"] = max(0.0, total - sum(squares.values()))
    shares = {term: float(part / total) if total else math.nan for term, part in squares.items()}
    return {t: (found.get(t), share) for t, share in shares.items()}


def largest_grid(measured):
    """The largest complete grid: ([indices of the levels of each axis], indices of the rounds); None without any.

    Args:
        measured: bool (architectures, levels ..., rounds).
    """
    return _largest_grid(measured.shape, measured.tobytes())  # the same for most lengths of a run


@cache
def _largest_grid(shape, content):
    measured = np.frombuffer(content, dtype=bool).reshape(shape)
    whole = tuple(tuple(range(size)) for size in shape[:-1])
    if measured.all() and measured.size:
        return whole, np.arange(shape[-1])
    used = [
        [i for i in levels if measured.take(i, axis).any()] for axis, levels in enumerate(whole)
    ]
    choices = [_subsets(levels) for levels in used]
    found, most = None, None
    for grid in itertools.product(*choices):
        whole = measured[np.ix_(*grid)].reshape(-1, measured.shape[-1]).all(axis=0)
        cells, rounds = math.prod(map(len, grid)), int(whole.sum())
        worth = (len(grid[0]), rounds > 1, cells * rounds)
        if rounds and (most is None or worth > most):
            found, most = (grid, np.flatnonzero(whole)), worth
    return found


def _fit(values, levels, status, measure):
    """The rows of one length and measure."""
    found = largest_grid(np.isfinite(values))
    if found is None:
        return [_empty("nothing was measured")]
    grid, rounds = found
    kept = [[names[i] for i in chosen] for names, chosen in zip(levels, grid, strict=True)]
    said = {"levels": _named(kept), "left_out": _left_out(levels, kept, status, values, rounds)}
    if all(len(names) == 1 for names in kept):
        return [_empty("a single cell has nothing to be compared with") | said]
    rows = []
    for term, (effects, share) in decompose(values[np.ix_(*grid, rounds)]).items():
        if effects is None:
            rows.append(_empty("") | {"term": term, "share": share, "rounds": len(rounds)} | said)
            continue
        name = " x ".join(FACTORS[axis] for axis in term)
        labels = itertools.product(*(_labels(kept[axis]) for axis in term))
        for label, effect in zip(labels, effects.reshape(-1, len(rounds)), strict=True):
            contrast = " x ".join(f"({part})" for part in label) if len(label) > 1 else label[0]
            rows.append(
                {
                    "term": name,
                    "contrast": contrast,
                    **_estimate(effect, measure),
                    "share": share,
                    "reason": "",
                }
                | said
            )
    return rows


def _estimate(effect, measure):
    mean, low, high = t_interval(effect)
    found = Interval(*(math.exp(v) for v in (mean, low, high)), len(effect))
    if measure in COUNTS:
        found = exact(found)
    said = verdict(found)
    return {
        "effect": mean, "factor": found.ratio, "low": found.low, "high": found.high, "rounds": found.n,
        "verdict": SAYS.get(said, said),
    }  # fmt: skip


def _project(values, term, matrix):
    """`values` averaged over the axes outside `term`, and multiplied by matrix(levels) along those inside."""
    others = tuple(axis for axis in range(values.ndim - 1) if axis not in term)
    means = values.mean(axis=others)
    along = lambda array, axis: np.moveaxis(
        np.tensordot(matrix(array.shape[axis]), array, (1, axis)), 0, axis
    )
    return reduce(along, range(len(term)), means)


def _contrasts(count):
    """(contrasts, levels): the first against the second of two, or each against the mean."""
    return np.array([[1.0, -1.0]]) if count == 2 else _centring(count)


def _centring(count):
    return np.eye(count) - 1 / count


def _labels(names):
    return [" / ".join(names)] if len(names) == 2 else [f"{name} / mean" for name in names]


def _levels(cells):
    """The levels of each factor, those that a ratio has above first."""
    orders = (
        str,
        lambda name: [-v if isinstance(v, int) else v for v in impl_order(name)],
        LAUNCHES.index,
        DTYPES.index,
    )
    return [
        sorted(cells[name].unique(), key=order) for name, order in zip(FACTORS, orders, strict=True)
    ]


def _values(curves, group, levels, lengths, measure):
    """(levels ..., rounds, lengths) logarithms; nan where a cell has none in a round, which a count has if any has."""
    found = {
        key: c
        for key, c in curves.items()
        if (key[0].preset, key[0].batch, key[0].mode) == group and key[1] in PAIR
    }
    rounds = sorted({r for curve in found.values() for r in curve.index})
    values = np.full((*map(len, levels), len(rounds), len(lengths)), math.nan)
    for (setting, arch, impl), curve in found.items():
        cell = (arch, impl, setting.launch, setting.dtype)
        at = tuple(names.index(name) for names, name in zip(levels, cell, strict=True))
        curve = curve.bfill().ffill() if measure in COUNTS else curve
        usable = curve.where(np.isfinite(curve) & (curve > 0))
        values[at] = np.log(usable.reindex(index=rounds, columns=lengths))
    return values


def _statuses(cells):
    return {
        tuple(row): status for *row, status in cells[[*FACTORS, "status"]].itertuples(index=False)
    }


def _left_out(levels, kept, status, values, rounds):
    """What the grid lacks of the levels, and for each the first cell that was in the way."""
    notes = []
    for axis, names in enumerate(levels):
        for name in names:
            if name not in kept[axis]:
                across = [*kept[:axis], [name], *kept[axis + 1 :]]
                notes.append(f"{FACTORS[axis]} {name}, because {_obstacle(across, levels, status)}")
    if (lost := values.shape[-1] - len(rounds)) > 0:
        notes.append(f"{lost} of {values.shape[-1]} rounds, because a cell lacks a value in them")
    return "; ".join(notes)


def _obstacle(across, levels, status):
    cells = list(itertools.product(*across))
    cell = min(cells, key=lambda c: status.get(c, "") == "ok")
    shown = [
        name
        for name, names, factor in zip(cell, levels, FACTORS, strict=True)
        if len(names) > 1 or factor in ("arch", "impl")
    ]
    return f"{' '.join(shown)} {WORDS[status[cell]] if cell in status else 'was not planned'}"


def _named(kept):
    return "; ".join(
        f"{factor}: {', '.join(names)}" for factor, names in zip(FACTORS, kept, strict=True)
    )


def _subsets(levels):
    """Every non-empty subset, the largest first."""
    return [s for size in range(len(levels), 0, -1) for s in itertools.combinations(levels, size)]


def _empty(reason):
    numbers = dict.fromkeys(("effect", "factor", "low", "high", "share"), math.nan)
    return numbers | {
        "term": "",
        "contrast": "",
        "rounds": 0,
        "verdict": "",
        "levels": "",
        "left_out": "",
        "reason": reason,
    }
