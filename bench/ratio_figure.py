"""The picture of who is faster by how much: a peer's time over that of `triton`, over length or batch.

One picture an operator, a panel a dtype and mode, a line a shape; a line at 1 and one at the goal.
"""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.figure_style import STYLE
from bench.kernel_figure import DPI, place, short
from bench.kernel_table import AGAINST, ratio_to

# {operator: ({dtype: peer, "": in the other dtypes}, {mode: goal})}; the goals are the lab's own
PEERS = {
    "selective_scan": ({"": "mamba-ssm"}, {"forward": 1.5, "backward": 2.0}),
    "selective_state_update": ({"": "mamba-ssm"}, {"decode": 1.0}),
    "causal_conv1d": ({"": "causal-conv1d"}, {"forward": 1.0, "backward": 1.0}),
    "causal_conv1d_update": ({"": "causal-conv1d"}, {"decode": 1.0}),
    "causal_attention": (
        {"": "flash-attn-2", "fp32": "sdpa.efficient"},
        {"forward": 1.3, "backward": 1.1, "decode": 1.0},
    ),
    "mamba_mixer": ({"": "mamba-ssm"}, {"forward": 1.5, "backward": 1.5}),
}
FP32_GOAL = {"causal_attention": 2.0}
COLOURS = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#000000", "#777777", "#994455", "#004488",
)  # fmt: skip
MARKERS = "osD^v<>pX*"


def write(rows, folder):
    """Draw ratios-OPERATOR.png for every operator that was timed beside its peer; returns the names."""
    names = []
    with plt.rc_context(STYLE):
        for operator in PEERS:
            found = panels(operator, rows)
            if found:
                figure = _draw(operator, found)
                names.append(f"ratios-{operator}.png")
                figure.savefig(folder / names[-1], dpi=DPI, bbox_inches="tight", pad_inches=0.1)
                plt.close(figure)
    return names


def panels(operator, rows):
    """{(dtype, mode): {shape: [(size, Interval of the peer's time over ours)]}} where both were timed."""
    by_dtype, _ = PEERS[operator]
    found = {}
    for row in rows:
        peer = by_dtype.get(row["dtype"], by_dtype[""])
        if row["operator"] != operator or row["impl"] != peer or not row["samples_ms"]:
            continue
        interval, base = ratio_to(rows, row)
        if base == AGAINST:
            shape, size, _ = place(row)
            if operator == "causal_attention" and row["mode"] != "decode":
                shape = re.sub(
                    r"^b\d+-", "", shape
                )  # as many tokens at every length: batches differ
            lines = found.setdefault((row["dtype"], row["mode"]), {})
            lines.setdefault(shape, []).append((size, interval))
    return {
        key: {shape: sorted(points, key=lambda p: p[0]) for shape, points in lines.items()}
        for key, lines in found.items()
    }


def goal(operator, dtype, mode):
    """How many times the peer's speed is the lab's goal."""
    if dtype == "fp32" and operator in FP32_GOAL:
        return FP32_GOAL[operator]
    return PEERS[operator][1][mode]


def _draw(operator, found):
    dtypes = list(dict.fromkeys(dtype for dtype, _ in found))
    modes = list(dict.fromkeys(mode for _, mode in found))
    figure, axes = plt.subplots(
        len(dtypes), len(modes), figsize=(4.6 * len(modes), 3.2 * len(dtypes)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    shapes = list(dict.fromkeys(shape for lines in found.values() for shape in lines))
    entries = {}
    for i, dtype in enumerate(dtypes):
        for j, mode in enumerate(modes):
            if (dtype, mode) not in found:
                axes[i][j].set_axis_off()
                continue
            _draw_panel(axes[i][j], operator, dtype, mode, found[dtype, mode], shapes, entries)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    title = f"{operator}: how many times as fast as its peer; dotted: the goal"
    figure.suptitle(title, fontsize=9, color="#555555", x=0.01, ha="left")
    return figure


def _draw_panel(ax, operator, dtype, mode, lines, shapes, entries):
    by_dtype, _ = PEERS[operator]
    sizes = sorted({size for points in lines.values() for size, _ in points})
    for shape, points in lines.items():
        number = shapes.index(shape)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        x, intervals = zip(*points, strict=True)
        # a single block has no interval: its ends are nan, and nothing is filled
        ax.fill_between(
            x, [v.low for v in intervals], [v.high for v in intervals], color=colour, alpha=0.18, linewidth=0
        )  # fmt: skip
        (entries[shape],) = ax.plot(
            x, [v.ratio for v in intervals], color=colour, marker=marker, markersize=4, linewidth=1.3
        )  # fmt: skip
    ax.axhline(1, color="#000000", linewidth=0.8)
    ax.axhline(goal(operator, dtype, mode), color="#000000", linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="tokens" if max(sizes) >= 512 else "batch", ylim=(0, None))
    ax.set_title(f"{dtype}, {mode}", loc="left")
    ax.set_ylabel(f"time of {by_dtype.get(dtype, by_dtype[''])} / {AGAINST}")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: short(int(n))))
