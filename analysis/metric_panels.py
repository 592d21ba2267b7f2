"""Small multiples of the representation metrics: a panel for each metric, by layer or position, both architectures."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.load import PAIR

COLOURS = {"llama": "#E08214", "mamba": "#3E7DB5"}  # as the ratio matrix of the sweep has them
GREY = "#777777"
COLUMNS = 3
WIDE = 30  # ratio of values above which their axis is logarithmic
LAYERS = (  # title, metric, instrument of llama, of mamba
    ("velocity", "velocity", "residual stream", "residual stream"),
    ("velocity / norm", "velocity_relative", "residual stream", "residual stream"),
    ("norm of the last token", "norm", "residual stream", "residual stream"),
    ("attention entropy, nats", "entropy", "softmax", "implicit, per channel"),
    ("attention distance, tokens", "distance", "softmax", "implicit, per channel"),
    ("attention, 5 largest weights", "top_mass", "softmax", "implicit, per channel"),
    ("contribution entropy, nats", "entropy", "contribution", "contribution"),
    ("contribution distance, tokens", "distance", "contribution", "contribution"),
    ("ssm state: half-life, tokens", "half_life", "", "ssm state"),
)
UNIFORM = {  # of the weights of the i-th query, 0-based, if they were all equal
    "entropy": lambda i: np.log(i + 1),
    "distance": lambda i: i / 2,
    "top_mass": lambda i: np.minimum(1, 5 / (i + 1)),
}
POSITIONS = tuple(
    panel for panel in LAYERS if panel[1] in (*UNIFORM, "velocity", "velocity_relative")
)


def by_layer(values, setting):
    """One panel a metric: embedding, blocks and final norm; the band is the range over seeds. None without data."""
    panels = [(panel, _sides(values, panel)) for panel in LAYERS]
    panels = [(panel, sides) for panel, sides in panels if sides]
    if not panels:
        return None
    figure, axes = grid(len(panels))
    last = max(rows.layer_index.max() for _, sides in panels for rows in sides.values())
    for ax, ((title, *_), sides) in zip(axes, panels, strict=False):
        for arch, rows in sides.items():
            rows = rows.assign(x=rows.layer_index.where(rows.layer != "final norm", last))
            found = rows.groupby("x").value.agg(["mean", "min", "max"])
            path = (
                found.drop(index=last, errors="ignore")
                if "final norm" in set(rows.layer)
                else found
            )
            ax.fill_between(
                path.index, path["min"], path["max"], color=COLOURS[arch], alpha=0.25, linewidth=0
            )
            ax.plot(
                path.index,
                path["mean"],
                color=COLOURS[arch],
                marker="o",
                markersize=3,
                linewidth=1.5,
            )
            if len(path) < len(found):  # after the blocks, and not one of them
                beside = last + (0.15 if arch == "mamba" else -0.15)
                ax.plot(beside, found["mean"][last], color=COLOURS[arch], marker="s", markersize=4)
        ax.set_title(title)
        _layer_axis(ax, sides, last)
        _scale(ax, np.concatenate([rows.value.to_numpy() for rows in sides.values()]))
    head(
        figure, axes, panels, f"by layer: {setting}; mean and range over seeds{_attention(panels)}"
    )
    return figure


def by_position(profiles, setting):
    """One panel a metric over the tokens, mean over the blocks; the band is the range over seeds. None without data."""
    panels = [(panel, _sides(profiles, panel)) for panel in POSITIONS]
    panels = [(panel, sides) for panel, sides in panels if sides]
    if not panels:
        return None
    figure, axes = grid(len(panels))
    for ax, ((title, metric, *_), sides) in zip(axes, panels, strict=False):
        levels = []
        for arch, rows in sides.items():
            positions, by_seed = over_blocks(rows)
            mean = by_seed.mean(axis=0)
            low, high = by_seed.min(axis=0), by_seed.max(axis=0)
            ax.fill_between(positions, low, high, color=COLOURS[arch], alpha=0.25, linewidth=0)
            ax.plot(positions, mean, color=COLOURS[arch], linewidth=1.5)
            levels.append(mean)
        if metric in UNIFORM:
            at = np.unique(
                np.concatenate([np.concatenate(list(rows.positions)) for rows in sides.values()])
            )
            at = at[at > 0]
            ax.plot(at, UNIFORM[metric](at), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            levels.append(UNIFORM[metric](at))
        ax.set(title=title, xscale="log", xlabel="token")
        plain(ax.xaxis)
        _scale(ax, np.concatenate(levels))
    uniform = any(panel[1] in UNIFORM for panel, _ in panels)
    text = f"by position: {setting}; mean over the blocks, range over seeds{_attention(panels)}"
    head(figure, axes, panels, text, uniform)
    return figure


def grid(n, height=2.3):
    columns = min(COLUMNS, n)
    rows = math.ceil(n / columns)
    size = (max(4.4, 3.0 * columns), height * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[n:]:
        ax.axis("off")
    return figure, axes.flat[:n]


def head(figure, axes, panels, text, uniform=False):
    """The setting above the panels, and one legend for all of them."""
    drawn = {arch for _, sides in panels for arch in sides} or set(PAIR)
    handles = [Line2D([], [], color=COLOURS[a], label=a, linewidth=2) for a in PAIR if a in drawn]
    if uniform:
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (4, 3)), label="even weights"))
    figure.suptitle(text, fontsize=8, color="#555555", x=0.01, ha="left")
    figure.legend(
        handles=handles, frameon=False, fontsize=8, ncols=len(handles), loc="outside lower right"
    )


def plain(axis):
    """Numbers as they are read, on a logarithmic axis too."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def over_blocks(rows):
    """(positions, (seeds, positions) means over the blocks), on the positions that most tokens have."""
    blocks = rows[rows.layer.str.startswith("block ")]
    rows = blocks if len(blocks) else rows
    positions = max(rows.positions, key=len)
    by_seed = [
        np.mean([np.interp(positions, r.positions, r.values_) for r in group.itertuples()], axis=0)
        for _, group in rows.rename(columns={"values": "values_"}).groupby("seed")
    ]
    return positions, np.array(by_seed)


def _sides(table, panel):
    """{arch: rows} of a panel, of the layers alone."""
    _, metric, *instruments = panel
    table = table[(table.metric == metric) & (table.layer_index >= 0)]
    found = {}
    for arch, instrument in zip(PAIR, instruments, strict=True):
        rows = table[(table.arch == arch) & (table.instrument == instrument)]
        if "value" in rows:
            rows = rows[rows.value.notna()]
        if len(rows):
            found[arch] = rows
    return found


def _attention(panels):
    """What the panels called attention show of the architecture that has none."""
    implicit = any(p[3].startswith("implicit") and "mamba" in sides for p, sides in panels)
    return "; mamba's attention: implicit, per channel" if implicit else ""


def _layer_axis(ax, sides, last):
    names = {name for rows in sides.values() for name in rows.layer}
    blocks = sorted({int(n.split()[1]) for n in names if n.startswith("block ")})
    step = math.ceil(len(blocks) / 8)
    ticks = {b: str(b) for b in blocks[::step]}
    ticks |= {0: "emb"} if "embedding" in names else {}
    ticks |= {last: "norm"} if "final norm" in names else {}
    ax.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    ax.set_xlim(-0.4 if "embedding" in names else 0.6, max(ticks, default=last) + 0.4)


def _scale(ax, values):
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > WIDE * values.min():
        ax.set_yscale("log")
    plain(ax.yaxis)
