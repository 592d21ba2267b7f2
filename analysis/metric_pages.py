"""The pages of the representation metrics: every table of strings that is written or printed, made from the records."""

import math
from collections import Counter
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.attribution import attribution, parity_failures
from analysis.load import impl_order
from analysis.metric_load import (
    BLOCKS,
    GOLD,
    UNIT,
    Setting,
    checks_frame,
    measured,
    of,
    of_model,
    one_implementation,
    over_seeds,
    settings,
    values_frame,
    with_blocks,
)
from analysis.paper_metrics import beside
from analysis.wording import interval, number

METRIC = ["layer", "instrument", "metric"]
BY_LAYER = (
    "residual stream", "ssm state", "softmax", "implicit, per channel", "implicit, per state", "contribution",
)  # fmt: skip
CONTEXT = (
    "hutchinson", "log-probability", "max logit", "gradient x input", "asymmetric (paper)",
)  # fmt: skip
OF_THE_TEXT = ("position", "texttiling", "tf-idf")  # baselines that no model has a part in
AGAINST = "mamba / llama [95 %]"


class Found:
    """Everything that tables and sentences need of the records, each part when it is first asked for."""

    def __init__(self, records):
        self.records = records

    @cached_property
    def values(self):
        return values_frame(self.records)

    @cached_property
    def checks(self):
        return checks_frame(self.records)

    @cached_property
    def means(self):
        """Over seeds, of every implementation and with the mean over the blocks."""
        return over_seeds(with_blocks(self.values))

    @cached_property
    def shown(self):
        """The same under one implementation for each architecture and instrument."""
        return over_seeds(one_implementation(with_blocks(self.values), self.checks))

    @cached_property
    def attribution(self):
        return attribution(self.records)

    @cached_property
    def failures(self):
        return parity_failures(self.records)

    @cached_property
    def paper(self):
        return beside(self.records)


def by_layer(found):
    """[(title, table)]: a row per layer and a column per metric, for each architecture and instrument."""
    sections = []
    table = found.shown[found.shown.instrument.isin(BY_LAYER)]
    for setting in settings(table):
        for instrument in BY_LAYER:
            here = of(table[table.instrument == instrument], setting)
            for arch, group in here.groupby("arch"):
                title = f"{arch}, {instrument}: {setting}, {_under(group)}"
                sections.append((title, _layers_by_metrics(group)))
    return sections


def cells(found):
    """One row per setting, architecture and implementation: what was measured, how it is proven, or why not."""
    rows = []
    units = [{**{n: r["unit"][n] for n in UNIT}, "record": r} for r in found.records]
    keys = [*Setting._fields, "arch", "impl"]
    table = pd.DataFrame(units, columns=[*UNIT, "record"])
    baselines = set(found.checks.baseline)
    for key, group in table[table.group != "similarity"].groupby(keys, sort=False):
        records = group.record.tolist()
        ok = group[[r["status"] == "ok" for r in records]]
        checks = found.checks[(found.checks[keys] == list(key)).all(axis=1)]
        kernels = {f"{o}={k}" for r in records for o, k in (r.get("kernels") or {}).items()}
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "measured": ", ".join(dict.fromkeys(ok.group)),
                "seeds": ok.seed.nunique(),
                "error / bound": float(np.max(checks.fraction)) if len(checks) else math.nan,
                "parity": _parity(key[-1], checks, baselines),
                "kernels": ", ".join(sorted(kernels)),
                "reason": "; ".join(dict.fromkeys(r["reason"] for r in records if r["reason"])),
            }
        )
    columns = ["measured", "seeds", "error / bound", "parity", "kernels", "reason"]
    table = pd.DataFrame(rows, columns=[*keys, *columns])
    order = lambda column: column.map(impl_order) if column.name == "impl" else column
    return table.sort_values(["arch", "impl"], key=order, kind="stable", ignore_index=True)


def implementations(found):
    """`cells` as strings."""
    return shown_as(
        cells(found),
        {
            "arch": lambda r: r.arch,
            "impl": lambda r: r.impl,
            "tokens": lambda r: f"{r.seqlen:,}",
            "dtype": lambda r: r["dtype"],
            "weights": lambda r: r.weights,
            "measured": lambda r: r.measured or "-",
            "seeds": lambda r: str(r.seeds),
            "error / bound": lambda r: number(r["error / bound"], 2),
            "parity": lambda r: r.parity,
            "kernels, or why not": lambda r: "; ".join(t for t in (r.kernels, r.reason) if t),
        },
    )


def failures(found):
    """[(title, table)] of the records whose parity did not pass; empty without one."""
    table = shown_as(
        found.failures,
        {
            "arch": lambda r: r.arch,
            "impl": lambda r: r.impl,
            "tokens": lambda r: f"{r.tokens:,}",
            "dtype": lambda r: r["dtype"],
            "seed": lambda r: str(r.seed),
            "group": lambda r: r.group,
            "failed": lambda r: f"{r.failed} of {r.compared}",
            "worst": lambda r: f"{r['worst metric']} ({r.norm})",
            "error": lambda r: number(r.error),
            "bound": lambda r: number(r.bound),
        },
    )
    return [("PARITY FAILURES", table)] if len(table) else []


def attributed(found):
    """[(title, table)]: the verdict of every metric, as the mean over the blocks or of the whole model."""
    sections = []
    table = of_model(found.attribution)
    columns = {
        "instrument": lambda r: r.instrument,
        "metric": lambda r: r.metric,
        "llama": lambda r: number(r.llama),
        "mamba": lambda r: number(r.mamba),
        AGAINST: against,
        "seeds": lambda r: str(r.seeds),
        "sd over seeds, llama | mamba": lambda r: _both(r, "sd over seeds"),
        "spread over impls, llama | mamba": lambda r: _both(r, "spread over impls"),
        "error / bound": lambda r: number(r["error / bound"], 2),
        "verdict": lambda r: r.verdict,
        "why": lambda r: r.reason,
    }
    for key, group in table.groupby(["weights", "tokens", "dtype"], sort=False):
        weights, tokens, dtype = key
        title = f"Implementation or architecture: {Setting(dtype, tokens, weights)}, mean over the blocks"
        sections.append((title, shown_as(group, columns)))
    return sections


def context(found):
    """[(title, table)]: effective context; the share is of the tokens that a probe could have used."""
    sections = []
    table = found.shown[found.shown.instrument.isin(CONTEXT)]
    for setting in settings(table):
        here = of(table, setting)
        rows = [
            {"instrument": name, "arch": arch}
            | {r.metric: interval(r.value, r.lowest, r.highest) for r in group.itertuples()}
            for name in CONTEXT
            for arch, group in here[here.instrument == name].groupby("arch")
        ]
        title = f"Effective context: {setting}, {_under(here)}; in brackets the range over seeds"
        sections.append((title, pd.DataFrame(rows).fillna("-")))
    return sections


def shifts(found, best=False):
    """[(title, table)]: a row per score; intervals are over sessions, their ends averaged over seeds.

    With `best` only the layer of each score that has the largest AUC.
    """
    sections = []
    table = found.shown[found.shown.instrument.isin(scores(found))]
    for setting in settings(table):
        here = of(table, setting)
        here = here[here.layer != BLOCKS]
        if best:
            auc = here[here.metric == "auc"]
            tops = auc.loc[auc.groupby(["arch", "instrument"]).value.idxmax()]
            here = here.merge(tops[["arch", "instrument", "layer"]])
        rows = {}
        for r in here.sort_values(["arch", "layer_index"], kind="stable").itertuples():
            arch = "-" if r.instrument in OF_THE_TEXT else r.arch
            row = rows.setdefault(
                (arch, r.instrument, r.layer),
                {"arch": arch, "score": r.instrument, "layer": r.layer or "-"},
            )
            row[r.metric] = interval(r.value, r.low, r.high)
        title = (
            f"Shift detection: {setting}, {_under(here)} (in brackets the interval over sessions)"
        )
        if rows:
            sections.append((title, pd.DataFrame(list(rows.values())).fillna("-")))
    return sections


def pairs(records):
    """One row per pair of layers: part, arch, impl, dtype, seqlen, seed, weights, row, column, cka, null."""
    rows = []
    names = ["part", "arch", "impl", "dtype", "seqlen", "seed", "weights"]
    for record, cka in _cka(records):
        null = cka.get("null")
        for i, first in enumerate(cka["rows"]):
            for j, second in enumerate(cka["columns"]):
                rows.append(
                    {n: record["unit"][n] for n in names}
                    | {"row": first, "column": second, "cka": float(cka["values"][i][j])}
                    | {"null": float(null[i][j]) if null else math.nan}
                )
    return pd.DataFrame(rows, columns=[*names, "row", "column", "cka", "null"])


def similarity(records):
    """What is compared, and how alike the layers of the same name are."""
    rows = []
    table = pairs(records)
    table = table[table.cka.notna()]  # a layer that does not vary has none
    for key, group in table.groupby(["part", "arch", "dtype", "seqlen", "weights"], sort=False):
        same = group[group.row == group.column]
        if same.empty:
            continue
        worst, top = same.loc[same.cka.idxmin()], group.loc[group.cka.idxmax()]
        part, arch, dtype, seqlen, weights = key
        rows.append(
            {
                "compared": part, "arch": arch, "tokens": f"{seqlen:,}", "dtype": dtype, "weights": weights,
                "same layer, mean": _cka_text(same.cka.mean()),
                "lowest": f"{_cka_text(worst.cka)} ({worst.row})",
                "highest of all pairs": f"{_cka_text(top.cka)} ({top.row}, {top.column})",
                "shuffled tokens": number(group["null"].mean(), 2),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def paper(table):
    """[(title, table)]: one row per claim; reasons that several claims share are numbered and stand once."""
    counts = Counter(reason for reasons in table.reason for reason in reasons.split("; "))
    common = [r for r in counts if counts[r] > 1 and len(r) > 16]
    shared = {reason: f"({n})" for n, reason in enumerate(common, 1)}
    columns = {
        "claim": lambda r: r.claim,
        "section": lambda r: r.section,
        "paper": lambda r: r.paper if isinstance(r.paper, str) else published(r.paper),
        "measured": lambda r: r.measured,
        "tokens": lambda r: f"{r.tokens:,.0f}" if r.tokens > 0 else "-",
        "why it differs": lambda r: "; ".join(shared.get(t, t) for t in r.reason.split("; ")),
    }
    wanted = [name for name in columns if name in table or name == "why it differs"]
    shown = shown_as(table, {name: columns[name] for name in wanted})
    notes = pd.DataFrame({"": list(shared.values()), "reason": list(shared)})
    title = "Representation: the paper beside this run, means over seeds and their range"
    return [(title, shown), ("Reasons that several lines share", notes)]


def against(row):
    """Mamba against LLaMA with its interval; a difference says so."""
    text = interval(row["mamba against llama"], row.low, row.high)
    return f"difference {text}" if row.scale == "difference" else text


def published(value):
    return "-" if math.isnan(value) else f"{value:,.10g}"


def scores(found):
    v = found.values
    return set(v.instrument[v.group == "shifts"])


def shown_as(table, columns):
    rows = [{title: text(row) for title, text in columns.items()} for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=list(columns))


def _layers_by_metrics(group):
    grid = group.pivot(index="layer", columns="metric", values="value")
    order = group.assign(last=group.layer == BLOCKS).sort_values(
        ["last", "layer_index"], kind="stable"
    )
    grid = grid.loc[order.layer.unique(), group.metric.unique()].map(number)
    return grid.rename(index={BLOCKS: "mean over blocks"}).rename_axis(columns=None).reset_index()


def _under(group):
    """`hf, 5 seeds` of rows of one implementation; several are joined."""
    seeds = group.seeds.max() if len(group) else 0
    impls = ", ".join(sorted(group.impl.unique(), key=impl_order))
    return f"{impls}, {seeds} seed{'' if seeds == 1 else 's'}"


def _parity(impl, checks, baselines):
    if impl == GOLD:
        return "gold"
    if len(checks):
        failed = checks[~checks.passed].drop_duplicates(["group", "seed", *METRIC])
        return f"FAILED in {len(failed):,} metrics" if len(failed) else "passed"
    return "baseline" if impl in baselines else "not checked"


def _both(row, name):
    return " | ".join(number(row[f"{arch} {name}"], 2) for arch in ("llama", "mamba"))


def _cka_text(value):
    """A similarity; next to 1 what is missing of it."""
    return f"1 - {number(1 - value, 2)}" if 0.999 < value < 1 else f"{value:.4f}"


def _cka(records):
    for record in measured(records):
        if cka := (record.get("extra") or {}).get("cka"):
            yield record, cka
