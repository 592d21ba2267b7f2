"""The picture of `bench.kernels`: time over size, a panel an operator and mode, with the floor of the machine."""

import math
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.figure_style import COLOURS, STYLE
from bench.kernel_table import block_medians
from bench.verdict import t_interval

DPI = 150
# ours as in the figures of a run, peers in Paul Tol's muted one: both are told apart with
# any colour vision, and every contender has a marker of its own besides
LOOKS = {
    "triton": (COLOURS["triton"], "o"),
    "cuda": (COLOURS["cuda"], "s"),
    "torch": (COLOURS["torch"], "^"),
    "cpu": (COLOURS["cpu"], "D"),
    "hf": (COLOURS["hf"], "v"),
    "mamba-ssm": ("#332288", "P"),
    "causal-conv1d": ("#332288", "X"),
    "sdpa.flash": ("#88CCEE", "<"),
    "sdpa.cudnn": ("#117733", ">"),
    "sdpa.efficient": ("#999933", "p"),
    "flex": ("#AA4499", "h"),
    "flash-attn-2": ("#882255", "*"),
    "flash-attn-3": ("#44AA99", "d"),
    "flash-attn-4": ("#661100", "8"),
    "copy": ("#888888", "_"),
}
OURS = ("triton", "cuda", "torch", "cpu", "hf")
COLUMNS = 3


def write(rows, folder):
    """Draw kernels-DTYPE.png into `folder` for every dtype that has a time; returns the names."""
    names = []
    with plt.rc_context(STYLE):
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            panels = _panels([r for r in rows if r["dtype"] == dtype and r["samples_ms"]])
            if panels:
                figure = _draw(panels, dtype)
                names.append(f"kernels-{dtype}.png")
                figure.savefig(folder / names[-1], dpi=DPI, bbox_inches="tight", pad_inches=0.1)
                plt.close(figure)
    return names


def _panels(rows):
    """[(title, name of the size, rows)]: of every operator and mode, the shape with the most sizes."""
    found = {}
    for row in rows:
        family, _, size = place(row)
        by_family = found.setdefault((row["operator"], row["mode"]), {})
        by_family.setdefault((family, size), []).append(row)
    panels = []
    for (operator, mode), by_family in found.items():
        (family, size), chosen = max(
            by_family.items(), key=lambda item: len({place(row)[1] for row in item[1]})
        )
        panels.append((f"{operator}, {mode}\n{family}", size, chosen))
    return panels


def place(row):
    """(the problem without its size, the size, what it is): tokens, or the batch of a single token."""
    letter, size = ("l", "tokens") if re.search(r"(^|-)l\d", row["problem"]) else ("b", "batch")
    pattern = rf"(?:^|-){letter}(\d+)"
    found = re.search(pattern, row["problem"])
    return re.sub(pattern, "", row["problem"]).strip("-"), int(found.group(1)), size


def _draw(panels, dtype):
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.9 * columns, 3.1 * lines), squeeze=False, layout="constrained"
    )
    entries = {}
    for ax, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(ax, *panel, entries)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for row_of_axes in axes:
        row_of_axes[0].set_ylabel("ms")
    named = sorted(entries, key=lambda name: ["floor", *LOOKS, name].index(name))
    figure.legend(
        [entries[name] for name in named], named, loc="outside lower center", ncols=6, frameon=False
    )
    title = f"time of the operators alone, {dtype}; the band is a 95 % interval over blocks"
    figure.suptitle(title, fontsize=9, color="#555555", x=0.01, ha="left")
    return figure


def _draw_panel(ax, title, size, rows, entries):
    sizes = sorted({place(row)[1] for row in rows})
    for impl in dict.fromkeys(row["impl"] for row in rows):
        mine = sorted((r for r in rows if r["impl"] == impl), key=lambda r: place(r)[1])
        x = [place(row)[1] for row in mine]
        middle, low, high = np.exp([_interval(row) for row in mine]).T
        colour, marker = LOOKS.get(impl, ("#000000", "."))
        dashes = "-" if impl in OURS else (0, (4, 1.5))
        ax.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
        (entries[impl],) = ax.plot(
            x, middle, color=colour, marker=marker, markersize=4, linewidth=1.4, linestyle=dashes
        )
    floors = {place(row)[1]: row["floor_ms"] for row in rows if "floor_ms" in row}
    if floors:
        (entries["floor"],) = ax.plot(
            sorted(floors), [floors[n] for n in sorted(floors)], color="#000000", linewidth=1, linestyle=":"
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=size)
    ax.set_title(title, loc="left")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: short(int(n))))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.10g}"))


def _interval(row):
    """Mean and 95 % interval of the logarithm of a block's time; a single block is its own interval."""
    values = np.log(block_medians(row))
    if len(values) < 2:
        return (values[0],) * 3
    mean, low, high = t_interval(values)
    return mean, max(low, mean - math.log(10)), min(high, mean + math.log(10))


def short(n):
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n)
