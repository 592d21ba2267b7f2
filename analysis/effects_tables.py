"""The splits of a difference as tables of strings: the exact identity, factorial effects, Shapley contributions."""

import math

import pandas as pd

from analysis.effects import GROUP
from analysis.load import MODES, Setting, alternatives, named, versus
from analysis.wording import between, interval, number

MOST_FACTORS = 2  # interactions of more stand in the CSV alone
NAMES = {"time": "time", "memory": "memory beyond the weights"}


def identity(table):
    """[(title, table)] by setting: llama / mamba as architecture (floors) times implementation (efficiencies).

    Further architectures have tables of their own.
    """
    settings = table.groupby(list(Setting._fields), sort=False)
    groups = [(key, arch, versus(g, arch)) for key, g in settings for arch in alternatives(g)]
    found = []
    for setting, alternative, group in groups:
        rows = [
            {
                "tokens": f"{r.seqlen:,}",
                "llama": r.llama_impl,
                alternative: named(r.mamba_impl)[1],
                f"time, llama / {alternative}": between(r),
                "architecture": _architecture(r),
                "implementation": _implementation(r),
                "efficiency llama": _efficiency(r, "llama"),
                f"efficiency {alternative}": _efficiency(r, "mamba"),
                "unavailable, because": r.reason or "-",
            }
            for _, r in group.iterrows()
        ]
        besides = "" if alternative == "mamba" else f" of llama / {alternative}"
        title = f"Time{besides} = architecture x implementation, {Setting(*setting)}"
        lacking = sorted({t for arch in ("llama", "mamba") for t in group[f"{arch}_missing"] if t})
        if lacking:
            title += f". No peak was measured for the {', '.join(lacking)} work, so architecture is a range"
        found.append((title, pd.DataFrame(rows)))
    return found


def effects(table):
    """[(title, table)] by group and measure: main effects and interactions of two factors, and what was compared."""
    found = []
    for (*group, measure), rows in table.groupby([*GROUP, "measure"], sort=False):
        shown = rows[(rows.term != "") & (rows.term.str.count(" x ") < MOST_FACTORS)]
        lines = [
            {
                "tokens": f"{r.seqlen:,}",
                "term": r.term or "-",
                "contrast": r.contrast or "-",
                "factor [95 % interval]": interval(r.factor, r.low, r.high),
                "verdict": r.verdict or "-",
                "share of squares": "-" if math.isnan(r.share) else f"{r.share:.1%}",
            }
            for _, r in shown.iterrows()
        ]
        where = f"{NAMES[measure]}, {_group(group)}"
        found += [
            (f"Effects on {where}", pd.DataFrame(lines)),
            (f"Compared in {where}", _grids(rows)),
        ]
    return found


def _grids(rows):
    """Which levels the effects of each length stand on, and what was left out."""
    lines = [
        {
            "tokens": ", ".join(f"{n:,}" for n in dict.fromkeys(group.seqlen)),
            "compared": levels or "-",
            "left out": left_out or reason or "-",
        }
        for (levels, left_out, reason), group in rows.groupby(
            ["levels", "left_out", "reason"], sort=False
        )
    ]
    return pd.DataFrame(lines)


def shapley(table):
    """[(title, table)] by group: the way from the paper's pairing to the best one."""
    found = []
    for group, rows in table.groupby(GROUP, sort=False):
        lines = [
            {
                "tokens": f"{r.seqlen:,}",
                "switch": r.switch,
                "from": r.before or "-",
                "to": r.after or "-",
                "factor on llama / mamba [95 % interval]": interval(r.factor, r.low, r.high),
                "unavailable, because": r.reason or "-",
            }
            for _, r in rows.iterrows()
        ]
        found.append(
            (f"From the paper's pairing to the best one, {_group(group)}", pd.DataFrame(lines))
        )
    return found


def _architecture(row):
    if row.architecture_least < row.architecture_most:
        return f"{number(row.architecture_least)} to {number(row.architecture_most)}"
    return number(row.architecture)


def _implementation(row):
    """With the interval of the floors as they are, or the range that goes with that of the architecture."""
    if row.architecture_least < row.architecture_most:
        ends = (row.ratio / row.architecture_most, row.ratio / row.architecture_least)
        return " to ".join(map(number, ends))
    return interval(row.implementation, row.implementation_low, row.implementation_high)


def _efficiency(row, arch):
    value, bound = row[f"{arch}_efficiency"], row[f"{arch}_bound"]
    if math.isnan(value):
        return "-"
    least = "at least " if row[f"{arch}_missing"] else ""
    return f"{least}{value:.2%} ({bound})" if value < 0.1 else f"{least}{value:.1%} ({bound})"


def _group(group):
    preset, batch, mode = group
    return f"{preset}, batch {batch}, {MODES.get(mode, mode)}"
