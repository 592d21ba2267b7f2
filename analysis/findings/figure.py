"""The picture of FINDINGS.md: the ratio of times over length, in the paper's kind of pairing and held equal."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figure_labels import label_ends, length_axis
from analysis.figures import DPI, OTHER
from analysis.paper import LENGTH, TIME_RATIO
from bench.figure_style import COLOURS, STYLE

NAME = "figures/ratio_over_length.png"
DARK, PALE = "#222222", "#888888"


def write(main):
    """Draw the ratios of `analysis.findings.runs.Timed` into its record; returns the path."""
    path = main.source.run.path / NAME
    path.parent.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        figure = draw(main)
        figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
        plt.close(figure)
    return path


def draw(main):
    """A line for the paper's kind of pairing, one for each implementation on both sides, one for the best of both."""
    matrix = main.matrix("time")
    matrix = matrix[np.isfinite(matrix.ratio) & (matrix.ratio > 0)]
    figure, ax = plt.subplots(figsize=(8.6, 4.2), layout="constrained")
    ends = []
    for name, rows, style in _lines(matrix):
        known = rows.low.notna()
        ax.fill_between(
            rows.seqlen[known],
            rows.low[known],
            rows.high[known],
            color=style["color"],
            alpha=0.2,
            lw=0,
        )
        ax.plot(rows.seqlen, rows.ratio, **style)
        ends.append((rows.seqlen.iloc[-1], rows.ratio.iloc[-1], name, style["color"]))
    ax.axhline(1, color=PALE, linewidth=0.9)
    for y, text, side in (
        (1.03, "above: Mamba is faster", "bottom"),
        (0.97, "below: LLaMA is faster", "top"),
    ):
        ax.annotate(
            text,
            (0.01, y),
            xycoords=("axes fraction", "data"),
            va=side,
            fontsize=8,
            color="#555555",
        )
    lengths = sorted({*matrix.seqlen, LENGTH})
    ax.plot([LENGTH], [TIME_RATIO], marker="*", markersize=13, color=DARK, linestyle="none")
    ax.annotate(
        f"the paper: {TIME_RATIO}",
        (LENGTH, TIME_RATIO),
        xytext=(-10, 4),
        textcoords="offset points",
        ha="right",
    )
    ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time of a forward, LLaMA / Mamba")
    length_axis(ax, lengths)
    ax.set_ylim(
        top=1.4 * max(TIME_RATIO, matrix.ratio[matrix.paper].max()) if matrix.paper.any() else None
    )
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(f"{main.setting}", fontsize=8, color="#555555", x=0.01, ha="left")
    label_ends(figure, {ax: ends})
    return figure


def _lines(matrix):
    """(name, rows by length, style) of what is drawn."""
    plain = {"marker": "o", "markersize": 3.5}
    theirs = matrix[matrix.paper].sort_values("seqlen")
    if len(theirs):
        name = f"{theirs.llama_impl.iloc[0]} / {theirs.mamba_impl.iloc[0]}, the paper's kind"
        yield name, theirs, plain | {"color": DARK, "linewidth": 2.2}
    for impl, rows in matrix[matrix.diagonal].groupby("llama_impl", sort=False):
        style = {"color": COLOURS.get(impl, OTHER), "linewidth": 1.6}
        yield f"{impl} / {impl}", rows.sort_values("seqlen"), plain | style
    best = matrix[matrix.best].sort_values("seqlen")
    if len(best) and not best.diagonal.all():
        yield "best / best", best, {"color": PALE, "linewidth": 1.4, "linestyle": (0, (3, 2))}
