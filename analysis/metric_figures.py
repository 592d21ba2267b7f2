"""Pictures of the representation metrics: by layer, by position, CKA, ROC, effective context. Readable in a README."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from analysis.attribution import BASELINES
from analysis.load import PAIR
from analysis.metric_load import (
    Setting,
    checks_frame,
    measured,
    of,
    one_implementation,
    profiles_frame,
    settings,
    values_frame,
)
from analysis.metric_panels import (
    COLOURS,
    GREY,
    by_layer,
    by_position,
    grid,
    head,
    over_blocks,
    plain,
)
from analysis.wording import number
from bench.figure_style import STYLE

DPI = 160
TITLES = {"axes.titlesize": 9, "axes.titleweight": "bold", "figure.max_open_warning": 0}
MOST_PANELS = 6  # of similarity
CONTEXT = ("hutchinson", "log-probability")
BARS = {"count": "count", "range": "range", "mass_50": "50 % mass", "mass_90": "90 % mass"}
DASHES = ((4, 2), (1, 1), (6, 1, 1, 1), (2, 3))


def write(records, folder):
    """Draw every figure that the records have data for into `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    checks = checks_frame(records)
    values = one_implementation(values_frame(records), checks)
    profiles = one_implementation(profiles_frame(records), checks)
    every = sorted({*settings(values), *settings(profiles)})
    with plt.rc_context(STYLE | TITLES):
        drawings = {"cka": cka(records), "roc": roc(records, values)}
        drawings |= _named("metrics_by_layer", {s: by_layer(of(values, s), s) for s in every})
        drawings |= _named(
            "metrics_by_position", {s: by_position(of(profiles, s), s) for s in every}
        )
        found = {s: context(of(values, s), of(profiles, s), s) for s in every}
        drawings |= _named("context", found)
        paths = []
        for name, figure in drawings.items():
            if figure is not None:
                paths.append(folder / f"{name}.png")
                figure.savefig(paths[-1], dpi=DPI, bbox_inches="tight", pad_inches=0.08)
                plt.close(figure)
    return paths


def cka(records):
    """Heat maps of linear CKA between layers, up to MOST_PANELS comparisons; None without data."""
    found = {}
    for record in measured(records):
        if matrix := (record.get("extra") or {}).get("cka"):
            found.setdefault(record["unit"]["part"], matrix)
    if not found:
        return None
    order = sorted(found, key=lambda part: (part != "llama against mamba", "itself" not in part))
    shown = order[:MOST_PANELS]
    figure, axes = grid(len(shown), height=2.6)
    for ax, part in zip(axes, shown, strict=False):
        rows, columns = (found[part][name] for name in ("rows", "columns"))
        values = np.array(found[part]["values"], dtype=float)
        image = ax.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
        ax.set_xticks(range(len(columns)), short_names(columns), fontsize=7)
        ax.set_yticks(range(len(rows)), short_names(rows), fontsize=7)
        names = [name.split(", ")[-1] for name in part.split(" against ")]
        if len(names) == 2 and names[1] != "itself":
            ax.set(ylabel=names[0], xlabel=names[1])
        null = np.array(found[part].get("null") or [], dtype=float)
        null = null[np.isfinite(null)]
        chance = f"\nshuffled tokens: {number(null.mean(), 2)}" if len(null) else ""
        ax.set_title(f"{part}{chance}", fontsize=8)
        ax.grid(False)
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="linear CKA")
    return figure


def roc(records, values):
    """The best layer of each architecture, the baselines and chance; None without data."""
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    lines = list(_roc_lines(records, values))
    for name, auc, curve, style in lines:
        ax.plot(curve["fpr"], curve["tpr"], label=f"{name}, AUC {number(auc)}", **style)
    if not lines:
        plt.close(figure)
        return None
    ax.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, label="chance, AUC 0.5")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    ax.set_aspect("equal")
    sessions = {r["extra"].get("sessions") for r in _shift_records(records)} - {None}
    title = "shift detection" + "".join(f", {n:,} sessions" for n in sorted(sessions))
    ax.set_title(f"{title}\nlayers chosen on the same sessions", loc="left")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def context(values, profiles, setting):
    """Gradient by distance beside count, range and mass, a row for each instrument; None without data."""
    gradients = profiles[profiles.metric == "gradient"]
    names = [n for n in CONTEXT if n in set(gradients.instrument) | set(values.instrument)]
    if not names:
        return None
    figure, axes = plt.subplots(
        len(names), 2, figsize=(8.6, 2.7 * len(names) + 0.3), squeeze=False, layout="constrained"
    )
    for (left, right), name in zip(axes, names, strict=True):
        for arch, rows in by_arch(gradients[gradients.instrument == name]):
            positions, by_seed = over_blocks(rows)
            low, high = by_seed.min(axis=0), by_seed.max(axis=0)
            left.fill_between(positions, low, high, color=COLOURS[arch], alpha=0.25, linewidth=0)
            left.plot(
                positions, by_seed.mean(axis=0), color=COLOURS[arch], marker="o", markersize=3
            )
        left.set_xscale("symlog", linthresh=1)
        left.set(yscale="log", title=f"{name}: gradient by distance", xlabel="distance, tokens")
        left.set_xlim(left=0)
        left.set_ylabel("share a token")
        plain(left.xaxis)
        _bars(right, values[values.instrument == name])
        right.set(title=f"{name}: how far back", ylabel="tokens")
    text = f"effective context: {setting}; mean over probes, range over seeds"
    head(figure, axes.ravel(), [], text)
    return figure


def _bars(ax, values):
    width = 0.38
    for arch, rows in by_arch(values):
        found = rows.groupby("metric").value.agg(["mean", "min", "max"]).reindex(list(BARS))
        at = np.arange(len(BARS)) + (width / 2 if arch == "mamba" else -width / 2)
        errors = [found["mean"] - found["min"], found["max"] - found["mean"]]
        ax.bar(
            at, found["mean"], width, yerr=errors, color=COLOURS[arch], error_kw={"linewidth": 0.8}
        )
    ax.set_xticks(range(len(BARS)), list(BARS.values()))
    ax.grid(axis="x", visible=False)


def _roc_lines(records, values):
    """(name, AUC, curve, style) of the best layer of each architecture's own scores, then of each baseline."""
    aucs = values[(values.metric == "auc") & (values.group == "shifts")]
    seen = set()
    dashes = dict(zip(BASELINES, DASHES, strict=True))
    after = []
    for arch, rows in by_arch(aucs):
        impl, seed = rows.impl.iloc[0], rows.seed.min()
        unit = {"arch": arch, "impl": impl, "seed": seed}
        curves = next(
            r["extra"].get("roc") or {}
            for r in _shift_records(records)
            if all(r["unit"][n] == v for n, v in unit.items())
        )
        rows = rows[rows.seed == seed]
        own = rows[~rows.instrument.isin(BASELINES)].sort_values("value", ascending=False)
        for row in own.itertuples():
            if curve := curves.get(f"{row.instrument}/{row.layer}"):
                style = {"color": COLOURS[arch], "linewidth": 1.8}
                yield f"{arch}: {row.instrument}, {row.layer}", row.value, curve, style
                break
        for row in rows[rows.instrument.isin(BASELINES)].itertuples():
            curve = curves.get(f"{row.instrument}/{row.layer}")
            own_input = row.instrument == "input embeddings"
            if curve is None or (not own_input and row.instrument in seen):
                continue
            seen.add(row.instrument)
            colour = COLOURS[arch] if own_input else GREY
            style = {"color": colour, "linewidth": 1.1, "linestyle": (0, dashes[row.instrument])}
            name = f"{arch}: {row.instrument}" if own_input else row.instrument
            after.append((name, row.value, curve, style))
    yield from sorted(after, key=lambda line: "input embeddings" not in line[0])


def _shift_records(records):
    return [r for r in measured(records) if r["unit"]["group"] == "shifts"]


def by_arch(table):
    for arch in PAIR:
        if len(rows := table[table.arch == arch]):
            yield arch, rows


def short_names(layers):
    short = {"embedding": "emb", "final norm": "norm"}
    return [short.get(name, name.removeprefix("block ")) for name in layers]


def _named(name, figures):
    """{name: figure} of those that were drawn; several are told apart by what their settings differ in."""
    figures = {setting: figure for setting, figure in figures.items() if figure is not None}
    varying = [n for n in Setting._fields if len({getattr(s, n) for s in figures}) > 1]
    return {
        "_".join([name, *(str(getattr(setting, n)) for n in varying)]): figure
        for setting, figure in figures.items()
    }
