"""Pictures of a run: curves over length, the ratio matrix, local slopes. Readable at the width of a README."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis import effects_figure
from analysis.figure_labels import LENGTH, label_ends, length_axis
from analysis.load import Setting, alternatives, arch_order, impl_order, named, of
from analysis.ratios import against
from analysis.scaling import censored, means
from analysis.wording import TITLES, between
from bench.figure_style import COLOURS, STYLE
from bench.verdict import t_interval

DPI = 160
OTHER = "#56B4E9"
DIVERGING = LinearSegmentedColormap.from_list("llama-mamba", ["#E08214", "#F7F7F7", "#3E7DB5"])
AXES = {
    "time": ("time of {}, ms", 1.0),
    "memory": ("peak memory beyond the weights, MiB", 1 / (1 << 20)),
}
TIMED = {"prefill": "a forward", "decode": "a token", "train": "forward + backward"}
PANELS = {"axes.titlesize": 10, "axes.titleweight": "bold"}
MOST_PANELS = 6


def write(results, folder):
    """Draw every figure that the run has data for into `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context(STYLE | PANELS):
        for setting in sorted({key[0] for key in results.curves["time"]}):
            suffix = _suffix(results, setting)
            drawings = {"effects": effects_figure.draw(of(results.identity, setting), setting)}
            for measure in AXES:
                drawings |= {
                    measure: curves(_of(results.curves[measure], setting), measure, setting),
                    f"slopes_{measure}": slopes(
                        of(results.slopes[measure], setting), measure, setting
                    ),
                }
                matrix = of(results.matrix[measure], setting)
                for arch in alternatives(matrix):
                    rows = against(matrix, results.curves[measure], arch)
                    name = f"ratio_{measure}" + ("" if arch == "mamba" else f"_{arch}")
                    drawings[name] = heat_map(rows, measure, setting)
            for name, figure in drawings.items():
                if figure is not None:
                    paths.append(folder / f"{name}{suffix}.png")
                    figure.savefig(paths[-1], dpi=DPI, bbox_inches="tight", pad_inches=0.08)
                    plt.close(figure)
    return paths


def curves(found, measure, setting):
    """Time or memory over length, log-log, one panel per architecture on a shared axis; None without data."""
    label, scale = AXES[measure]
    label = label.format(TIMED.get(setting.mode, setting.mode))
    panels = _panels(key for key, curve in found.items() if len(means(curve)[0]))
    if not panels:
        return None
    figure, axes, left = _axes(len(panels), 3.9)
    ends = {}
    for ax, (arch, impls) in zip(axes, panels.items(), strict=True):
        ends[ax] = []
        for impl in impls:
            lengths, values = means(found[arch, impl])
            low, high = _band(found[arch, impl], lengths)
            colour = COLOURS.get(impl, OTHER)
            ax.fill_between(
                lengths, low * scale, high * scale, color=colour, alpha=0.25, linewidth=0
            )
            ax.plot(
                lengths, values * scale, color=colour, marker="o", markersize=3.5, linewidth=1.6
            )
            name = impl
            if out := censored(found[arch, impl]):
                name = f"{impl} (OOM: {out[0]:,})"
            ends[ax].append((lengths[-1], values[-1] * scale, name, colour))
        ax.set(xscale="log", yscale="log", title=arch, xlabel=LENGTH.get(setting.mode, "tokens"))
        length_axis(ax, sorted({n for curve in found.values() for n in curve}))
    levels = (
        np.concatenate([means(found[arch, impl])[1] for arch in panels for impl in panels[arch]])
        * scale
    )
    axes[0].set_ylim(
        levels.min() / 1.7, levels.max() * 1.7
    )  # two rounds have bands of many decades
    for ax in left:
        ax.set_ylabel(label)
    steps = (1, 2, 5) if levels.max() < 100 * levels.min() else (1,)
    axes[0].yaxis.set_major_locator(LogLocator(subs=steps))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(str(setting), fontsize=8, color="#555555", x=0.01, ha="left")
    label_ends(figure, ends)
    return figure


def heat_map(matrix, measure, setting):
    """The ratio llama / mamba for every pair of implementations, up to six lengths; None without data.

    Args:
        matrix: of one architecture beside llama, as `analysis.ratios.against` gives it.
    """
    matrix = matrix[matrix.ratio.notna()]
    if matrix.empty:
        return None
    (arch,) = alternatives(matrix)
    lengths = _spaced(sorted(matrix.seqlen.unique()), MOST_PANELS)
    llamas = sorted(matrix.llama_impl.unique(), key=impl_order)
    mambas = sorted(matrix.mamba_impl.unique(), key=lambda label: impl_order(named(label)[1]))
    columns = min(3, len(lengths))
    rows = math.ceil(len(lengths) / columns)
    size = (max(3.4, columns * (1.2 + 0.75 * len(mambas))), 0.8 + rows * (0.9 + 0.5 * len(llamas)))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    finite = np.abs(np.log(matrix.ratio[(matrix.ratio > 0) & np.isfinite(matrix.ratio)]))
    norm = (
        Normalize(-max(finite.max(), 0.1), max(finite.max(), 0.1))
        if len(finite)
        else Normalize(-1, 1)
    )
    for i, ax in enumerate(axes.flat):
        if i >= len(lengths):
            ax.axis("off")
            continue
        _panel(ax, matrix[matrix.seqlen == lengths[i]], llamas, mambas, norm)
        ax.set_title(f"{lengths[i]:,} tokens")
        ax.set_xlabel(arch)
        ax.set_ylabel("llama")
    figure.suptitle(
        f"{measure} of llama / {arch}: above 1 (blue) {TITLES[arch]} is better; framed: best against best\n{setting}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return figure


def slopes(table, measure, setting):
    """d ln y / d ln L between neighbouring lengths, one panel per architecture; None without data."""
    panels = _panels(zip(table.arch, table.impl, strict=True))
    if not panels:
        return None
    figure, axes, left = _axes(len(panels), 3.4)
    ends = {}
    for ax, (arch, impls) in zip(axes, panels.items(), strict=True):
        for value, name in ((1, "linear"), (2, "quadratic")):
            ax.axhline(value, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
            ax.annotate(
                name,
                (0.01, value),
                xycoords=("axes fraction", "data"),
                fontsize=7,
                color="#666666",
                va="bottom",
            )
        ends[ax] = []
        for impl in impls:
            curve = table[(table.arch == arch) & (table.impl == impl)]
            colour = COLOURS.get(impl, OTHER)
            errors = [curve.slope - curve.low, curve.high - curve.slope]
            if curve.low.isna().any():
                errors = None
            ax.errorbar(
                curve["at"],
                curve.slope,
                errors,
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=1.4,
                elinewidth=0.8,
            )
            ends[ax].append((curve["at"].iloc[-1], curve.slope.iloc[-1], impl, colour))
        ax.set(xscale="log", title=arch, xlabel=LENGTH.get(setting.mode, "tokens"))
        length_axis(ax, sorted({*table["from"], *table.to}))
        ax.set_ylim(min(-0.1, table.slope.min() - 0.1), max(2.2, table.slope.max() + 0.2))
    for ax in left:
        ax.set_ylabel(f"local slope of {measure}, d ln y / d ln L")
    figure.suptitle(str(setting), fontsize=8, color="#555555", x=0.01, ha="left")
    label_ends(figure, ends)
    return figure


def _axes(panels, height):
    """(figure, axes of so many panels, those at the left edge); two abreast, as wide as a README."""
    columns = min(panels, 2)
    rows = math.ceil(panels / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, height * rows), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax in axes.flat[panels:]:
        ax.axis("off")
    for ax in axes.flat[:panels]:
        ax.tick_params(labelbottom=True)  # also above another panel, or above the empty place
    return figure, axes.flat[:panels], axes[:, 0]


def _panel(ax, matrix, llamas, mambas, norm):
    ax.imshow(
        np.full((len(llamas), len(mambas)), 0.0), cmap=DIVERGING, norm=norm, aspect="auto", alpha=0
    )
    for _, row in matrix.iterrows():
        x, y = mambas.index(row.mamba_impl), llamas.index(row.llama_impl)
        level = float(
            np.clip(np.log(row.ratio) if row.ratio > 0 else -math.inf, norm.vmin, norm.vmax)
        )
        colour = DIVERGING(norm(level))
        ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
        if row.best:
            ax.add_patch(
                plt.Rectangle(
                    (x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="black", linewidth=1.2
                )
            )
        dark = sum(c * w for c, w in zip(colour, (0.3, 0.59, 0.11), strict=False)) < 0.55
        text = between(row).split(" [")[0].replace(" out of memory", "\nOOM")
        ax.text(
            x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black"
        )
    ax.set_xticks(range(len(mambas)), [named(label)[1] for label in mambas])
    ax.set_yticks(range(len(llamas)), llamas)
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _band(curve, lengths):
    logs = [t_interval(np.log(curve[n][np.isfinite(curve[n])].dropna())) for n in map(int, lengths)]
    return np.exp([low for _, low, _ in logs]), np.exp([high for _, _, high in logs])


def _panels(keys):
    """{architecture: [implementations]} of (arch, impl) keys, in the order of every table."""
    order = lambda key: (key[0] != "mamba", arch_order(key[0]), impl_order(key[1]))
    keys = sorted(set(keys), key=order)
    return {
        arch: [impl for a, impl in keys if a == arch] for arch in dict.fromkeys(a for a, _ in keys)
    }


def _spaced(values, most):
    """At most `most` of `values`, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _of(found, setting):
    return {(arch, impl): curve for (where, arch, impl), curve in found.items() if where == setting}


def _suffix(results, setting):
    """Empty for a run with one setting, else what tells this one from the others."""
    settings = {key[0] for key in results.curves["time"]}
    parts = [
        str(v)
        for n, v in zip(Setting._fields, setting, strict=True)
        if len({getattr(s, n) for s in settings}) > 1
    ]
    return "".join(f"_{part}" for part in parts)
