"""The answer of a run in a few sentences, made from its data alone: how much is architecture, how much implementation.

Every ratio names who takes longer, so a factor above 1 explains the difference and one below 1 works against it.
What a run cannot conclude is said as well: implementations without times, a single round, peaks that are missing.
"""

import math

import numpy as np

from analysis.effects import GROUP
from analysis.load import PAIR, alternatives, arch_order, impl_order, named, of, versus
from analysis.paper import LENGTH, nearest_setting
from analysis.ratios import against
from analysis.shapley import END, START, SWITCHES
from analysis.wording import TITLES, interval, listed, number

TASKS = {"decode": "For a token after {} tokens", "train": "To train on {} tokens"}


def headline(results):
    """What a run says about architecture and implementation: a list of plain sentences, the answer first.

    It speaks of the setting nearest to the paper's, of each mode that was measured, at the length nearest to the
    paper's 4,096 tokens that has a ratio; of LLaMA and Mamba, then of LLaMA and each further architecture.

    Args:
        results: `analysis.summary.Results`.
    """
    if results.records.empty:
        return ["This run holds no record yet."]
    modes = list(dict.fromkeys(results.cells["mode"]))
    found = [sentence for mode in modes for sentence in _mode(results, mode)]
    return [*found, *_untimed(results)]


def central(results, mode="prefill"):
    """The row of the identity that the answer is about: in the setting nearest to the paper's the paper's pairing, else
    the best one, at the length nearest to the paper's; None without a ratio.
    """
    setting = nearest_setting(results, mode)
    if setting is None:
        return None
    measured = _with_ratio(versus(of(results.identity, setting), "mamba"))
    return _nearest(measured[measured.paper], measured[measured.best], measured)


def _with_ratio(rows):
    return rows[np.isfinite(rows.ratio) & (rows.ratio > 0)]


def _nearest(*choices):
    """The row at the length nearest to the paper's, of the first choice that has any; None without."""
    rows = next((rows for rows in choices if len(rows)), None)
    if rows is None:
        return None
    return rows.loc[(np.log(rows.seqlen.astype(float)) - math.log(LENGTH)).abs().idxmin()]


def _mode(results, mode):
    """The sentences of one mode."""
    curves = {key: curve for key, curve in results.curves["time"].items() if key[0].mode == mode}
    timed = {key[1] for key, curve in curves.items() if _has_times(curve)}
    task = f" in {mode}" if results.cells["mode"].nunique() > 1 else ""
    others = list(_others(results, mode))
    if not set(PAIR) <= timed:
        tried = {key[1] for key in curves}
        lacking = [_incomparable(results.cells, mode, timed, tried, task)]
        return others if others and not set(PAIR) <= tried else lacking + others
    return [*_pair(results, mode, task), *others]


def _pair(results, mode, task):
    """The sentences about LLaMA and Mamba."""
    row = central(results, mode)
    if row is None:
        return [
            f"LLaMA and Mamba share no length{task} at which both have a time in the same round."
        ]
    here = of(results.identity, nearest_setting(results, mode))
    best = _with_ratio(here[here.best])
    text = f"{_compared(row, mode)} {_split(row)}"
    if row.best:
        text += " This pairing is best against best."
    elif len(best := best[best.seqlen == row.seqlen]):
        text += f" Best against best: {_relation(best.iloc[0])}."
    out = _out(_same_pair(here, row))
    return [text, *_walked(results.shapley, row), *out, *_single(row)]


def _others(results, mode):
    """A sentence about LLaMA and each further architecture that shares a length with it."""
    setting = nearest_setting(results, mode)
    if setting is None:
        return
    table = of(results.identity, setting)
    for arch in alternatives(table):
        measured = _with_ratio(against(table, results.curves["time"], arch))
        if arch in PAIR or measured.empty:
            continue
        row = _nearest(measured[measured.best], measured)
        text = f"{_compared(row, mode)} {_split(row)}"
        if row.best:
            text += " This is best against best."
        same = measured[measured.diagonal & (measured.seqlen == row.seqlen)].drop(
            row.name, errors="ignore"
        )
        if len(same):
            said = "; ".join(_relation(r) for _, r in same.iterrows())
            text += f" The same implementation on both sides: {said}."
        yield " ".join([text, *_out(_same_pair(table, row))])


def _same_pair(table, row):
    """The rows of the same two sides at every length."""
    return table[(table.llama_impl == row.llama_impl) & (table.mamba_impl == row.mamba_impl)]


def _compared(row, mode):
    """Who takes longer, and how much."""
    task = TASKS.get(mode, "At {} tokens").format(f"{row.seqlen:,}")
    return f"{task} {_relation(row)}."


def _relation(row):
    if row.winner in ("equivalent", "undecided"):
        sides = f"{_side(row, 'llama')} and {_side(row, 'mamba')}"
        same = (
            "take the same time"
            if row.winner == "equivalent"
            else "differ by no more than this run can tell"
        )
        ratio = interval(row.ratio, row.low, row.high)
        return f"{sides} {same}, LLaMA / {TITLES[_arch(row, 'mamba')]} = {ratio}"
    slow, fast = _order(row)
    return f"{_side(row, slow)} takes {_times(row)} as long as {_side(row, fast)}"


def _split(row):
    """The exact identity in words, in the direction of `_compared`."""
    if math.isnan(row.architecture):
        return f"How much of it is architecture cannot be concluded, because {row.reason}."
    turn = (lambda v: v) if _order(row)[0] == "llama" else (lambda v: 1 / v)
    if row.architecture_least < row.architecture_most:
        least, most = sorted(turn(v) for v in (row.architecture_least, row.architecture_most))
        return (
            f"Architecture explains between {number(least)}x and {number(most)}x, implementation the rest: "
            f"only bounds, because no peak was measured for {_lacking(row)}."
        )
    parts = {"architecture": turn(row.architecture), "implementation": turn(row.implementation)}
    if row.winner in ("equivalent", "undecided"):
        alone = ", ".join(f"by {name} alone {number(value)}" for name, value in parts.items())
        return f"It would be {alone}."
    (first, larger), (second, smaller) = sorted(parts.items(), key=lambda part: part[1] < 1)
    text = f"{first.capitalize()} explains {number(larger)}x, {second} "
    return text + (
        f"{number(smaller)}x." if smaller >= 1 else f"works against it ({number(smaller)}x)."
    )


def _lacking(row):
    """`the exponential work of Mamba and LLaMA`."""
    terms = {role: row[f"{role}_missing"] for role in PAIR if row[f"{role}_missing"]}
    work = " and ".join(dict.fromkeys(t for text in terms.values() for t in text.split(", ")))
    return f"the {work} work of {' and '.join(TITLES[_arch(row, role)] for role in terms)}"


def _walked(table, row):
    """The switches between the paper's pairing and the best one, where there are several."""
    here = (table[[*GROUP, "seqlen"]] == [row[name] for name in (*GROUP, "seqlen")]).all(axis=1)
    rows = table[here].set_index("switch")
    turned = rows[rows.index.isin(SWITCHES) & rows.effect.notna()]
    if len(turned) < 2:
        return
    steps = [
        f"{name} ({r.before} to {r.after}) {number(r.factor)}x" for name, r in turned.iterrows()
    ]
    steps = f"{', '.join(steps[:-1])} and {steps[-1]}"
    start, end = (number(rows.loc[name].factor) for name in (START, END))
    yield f"From the paper's pairing to the best one LLaMA / Mamba goes from {start} to {end}: {steps}."


def _out(pair):
    """From where one side of a pairing ran out of memory and the other did not."""
    for arch, ratio in (("llama", math.inf), ("mamba", 0)):
        rows = pair[pair.ratio == ratio]
        if len(rows):
            row = rows.loc[rows.seqlen.idxmin()]
            other = next(name for name in PAIR if name != arch)
            yield f"From {row.seqlen:,} tokens {_side(row, arch)} runs out of memory and {_side(row, other)} does not."


def _single(row):
    if row.rounds < 2:
        yield "One round has no interval and so no verdict: these are single observations."


def _incomparable(cells, mode, timed, tried, task):
    out = cells[(cells["mode"] == mode) & (cells.status == "oom")]
    archs = sorted(out.arch.unique(), key=arch_order)
    names = listed([TITLES[arch] for arch in archs]) if archs else ""
    end = f"nothing is compared ({names} ran out of memory)." if names else "nothing is compared."
    if not timed:
        return f"No time was measured{task}: {end}"
    if len(timed) > 1:
        lacking = next(arch for arch in PAIR if arch not in timed)
        end = "nothing is compared" if lacking == "llama" else "LLaMA and Mamba are not compared"
        names = listed([TITLES[arch] for arch in sorted(timed, key=arch_order)])
        return f"{TITLES[lacking]} has no time{task}, only {names}: {end}."
    verb = "was measured" if len(tried) == 1 else "has times"
    return f"Only {TITLES[min(timed)]} {verb}{task}: {end}"


def _untimed(results):
    """The implementations about which nothing can be concluded."""
    timed = {key[1:] for key, curve in results.curves["time"].items() if _has_times(curve)}
    asked = dict.fromkeys(zip(results.cells.impl, results.cells.arch, strict=True))
    missing = {}
    for impl, arch in sorted(asked, key=lambda pair: impl_order(pair[0])):
        if (arch, impl) not in timed:
            missing.setdefault(impl, []).append(TITLES[arch])
    if missing:
        names = [f"{impl} ({listed(archs)})" for impl, archs in missing.items()]
        yield f"What would change with {', '.join(names)} cannot be concluded: no times here."


def _has_times(curve):
    return bool(np.isfinite(curve.to_numpy(dtype=float)).any())


def _order(row):
    """(the role of the slower architecture, that of the faster one)."""
    return (
        ("llama", "mamba")
        if row.ratio >= 1 or row.winner in ("equivalent", "undecided")
        else ("mamba", "llama")
    )


def _side(row, role):
    impl = row.llama_impl if role == "llama" else named(row.mamba_impl)[1]
    return f"{TITLES[_arch(row, role)]} ({impl})"


def _arch(row, role):
    return "llama" if role == "llama" else named(row.mamba_impl)[0]


def _times(row):
    """`1.6x [1.5, 1.7]`, the slower over the faster."""
    values = row.ratio, row.low, row.high
    if row.ratio < 1:
        values = 1 / row.ratio, 1 / row.high, 1 / row.low
    value, _, limits = interval(*values).partition(" ")
    return f"{value}x {limits}".rstrip()
