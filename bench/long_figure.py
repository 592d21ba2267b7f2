"""The picture of `bench.long_context`: what a chunk takes over the tokens before it, a curve a case."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from bench.figure_style import COLOURS, STYLE
from bench.long_table import whole_chunks

DPI = 150
DASHES = {"mamba": "-", "llama": (0, (4, 1.5))}


def write(rows, folder):
    """Draw long.png into `folder`, a panel for every preset, dtype, batch and chunk; returns the names.

    There is none where no case has two chunks.
    """
    drawn = [row for row in rows if len(row["chunk_ms"]) > 1]
    kinds = list(dict.fromkeys(map(_kind, drawn)))
    if not kinds:
        return []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(kinds), figsize=(5.2 * len(kinds), 3.6), squeeze=False, layout="constrained"
        )
        for ax, kind in zip(axes[0], kinds, strict=True):
            _panel(ax, kind, [row for row in drawn if _kind(row) == kind])
        figure.savefig(folder / "long.png", dpi=DPI)
        plt.close(figure)
    return ["long.png"]


def _kind(row):
    return tuple(row[name] for name in ("preset", "dtype", "batch", "chunk"))


def _panel(ax, kind, rows):
    preset, dtype, batch, chunk = kind
    longest = {}  # the curve of a shorter length is the beginning of that of a longer one
    for row in rows:
        best = longest.setdefault((row["arch"], row["impl"]), row)
        if len(row["chunk_ms"]) > len(best["chunk_ms"]):
            longest[row["arch"], row["impl"]] = row
    for (arch, impl), row in longest.items():
        x, y = zip(*whole_chunks(row), strict=True)
        look = {"color": COLOURS[impl], "linestyle": DASHES[arch], "linewidth": 1.4}
        ax.plot(
            [n / 1024 for n in x], y, marker="o", markersize=2.5, label=f"{arch}, {impl}", **look
        )
    ax.set(xlabel="tokens before the chunk", ylabel="ms of a chunk", ylim=(0, None))
    ax.set_title(f"{preset}, {dtype}, batch {batch}, chunks of {chunk:,} tokens", loc="left")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}k" if n else "0"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:,.10g}"))
    ax.legend(frameon=False)
