"""Architecture and implementation over length: the two factors of llama / mamba, by the exact identity."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figure_labels import LENGTH, label_ends, length_axis

COLOURS = {"measured": "#333333", "architecture": "#0072B2", "implementation": "#D55E00"}
FACTORS = {  # the column, and those of its interval
    "measured": ("ratio", "low", "high"),
    "architecture": ("architecture", "architecture_least", "architecture_most"),
    "implementation": ("implementation", "implementation_low", "implementation_high"),
}


def draw(identity, setting):
    """A panel for the paper's pairing and one for best against best, log-log; None where no split is known.

    Bands are 95 % intervals over rounds. Where a peak is missing, architecture is a band without a line: its range.

    Args:
        identity: rows of `analysis.identity.identity_table` of one setting.
        setting: `analysis.load.Setting`.
    """
    finite = np.isfinite(identity.ratio) & (identity.ratio > 0) & np.isfinite(identity.architecture)
    panels = {
        f"{name}: {_pair(rows)}": rows.sort_values("seqlen")
        for name, flag in (("paper's pairing", "paper"), ("best against best", "best"))
        if len(rows := identity[finite & identity[flag].astype(bool)])
    }
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.9), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )  # fmt: skip
    ends = {}
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        ax.axhline(1, color="#888888", linewidth=0.8)
        ends[ax] = [end for name in FACTORS if (end := _line(ax, name, rows)) is not None]
        ax.set(xscale="log", yscale="log", title=title, xlabel=LENGTH.get(setting.mode, "tokens"))
        length_axis(ax, sorted({n for rows in panels.values() for n in rows.seqlen}))
    _value_axis(axes[0][0], panels.values())
    figure.suptitle(
        f"time of llama / mamba = architecture x implementation; above 1 Mamba is better\n{setting}",
        fontsize=8, color="#555555", x=0.01, ha="left",
    )  # fmt: skip
    label_ends(figure, ends)
    return figure


def _line(ax, name, rows):
    """Draw one factor; returns (x, y, name, colour) of its right end."""
    value, low, high = (rows[column].to_numpy(dtype=float) for column in FACTORS[name])
    bounded = (rows.architecture_least < rows.architecture_most).to_numpy()
    if name == "implementation" and bounded.any():
        return None  # the rest of a range is no line
    ax.fill_between(rows.seqlen, low, high, color=COLOURS[name], alpha=0.22, linewidth=0)
    if name == "architecture" and bounded.any():
        middle = math.sqrt(low[-1] * high[-1])
        return rows.seqlen.iloc[-1], middle, "architecture: range", COLOURS[name]
    ax.plot(rows.seqlen, value, color=COLOURS[name], marker="o", markersize=3.5, linewidth=1.6)
    return rows.seqlen.iloc[-1], value[-1], name, COLOURS[name]


def _value_axis(ax, panels):
    """Limits by the lines, since two rounds have bands of many decades; ticks at round factors."""
    columns = ["ratio", "architecture_least", "architecture_most"]
    values = np.concatenate([rows[columns].to_numpy(dtype=float).ravel() for rows in panels])
    splits = np.concatenate(
        [rows.implementation[rows.architecture_least == rows.architecture_most] for rows in panels]
    )
    values = np.concatenate([values, splits, [1.0]])
    ax.set_ylim(values.min() / 1.5, values.max() * 1.5)
    steps = (1, 2, 5) if values.max() < 1000 * values.min() else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("factor on llama / mamba")


def _pair(rows):
    pairs = {(r.llama_impl, r.mamba_impl) for r in rows.itertuples()}
    return (
        "llama {}, mamba {}".format(*pairs.pop())
        if len(pairs) == 1
        else "the fastest at each length"
    )
