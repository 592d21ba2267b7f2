"""Representation metrics as tables: Markdown and CSV (full precision) in a folder, and a short form on the terminal."""

import math

import numpy as np
import pandas as pd
from rich.text import Text

from analysis.attribution import BASELINES
from analysis.load import PAIR, further
from analysis.metric_load import BLOCKS, WEIGHTS, length, measured, of_model, settings
from analysis.metric_pages import (
    AGAINST,
    CONTEXT,
    against,
    attributed,
    by_layer,
    cells,
    context,
    failures,
    implementations,
    pairs,
    paper,
    published,
    scores,
    shifts,
    shown_as,
    similarity,
)
from analysis.paper_metrics import UNIFORM, uniform_entropy
from analysis.render import rich_table, write_tables
from analysis.wording import listed, number

SCORES = (
    "arch",
    "score",
    "layer",
    "auc",
    "ap",
    "f1_cross",
    "tpr_at_fpr_10",
    "p_null",
)  # fit a terminal
NOTHING = "No representation metric was measured."
ENOUGH_SESSIONS = 80  # what an AUC needs to be told from another one
HEADLINES = (  # instrument, metric: what the terminal shows
    ("residual stream", "velocity_relative"), ("residual stream", "drift_relative"), ("residual stream", "norm"),
    ("residual stream", "stability"), ("softmax | implicit, per channel", "entropy"),
    ("softmax | implicit, per channel", "distance"), ("softmax | implicit, per channel", "top_mass"),
    ("softmax | implicit, per state", "entropy"), ("softmax | implicit, per state", "distance"),
    ("contribution", "entropy"), ("contribution", "distance"), ("hutchinson", "count"), ("hutchinson", "share"),
    ("hutchinson", "mass_50"), ("hutchinson", "exp_entropy"), ("log-probability", "count"), ("window cosine", "auc"),
)  # fmt: skip


def write(found, folder):
    """Write every table to `folder`, where those of the sweep may lie (analysis.tables); returns the paths."""
    raw = {
        "metrics_by_layer": found.means,
        "metric_implementations": cells(found),
        "attribution": found.attribution,
        "parity_failures": found.failures,
        "context": found.means[found.means.instrument.isin(CONTEXT)],
        "shifts": found.means[found.means.instrument.isin(scores(found))],
        "similarity": pairs(found.records),
        "paper_representation": found.paper,
    }
    return write_tables(folder, raw, pages(found))


def pages(found):
    """{file name: [(title, table of strings)]}: everything that is written as Markdown."""
    return {
        "metrics_by_layer": by_layer(found),
        "metric_implementations": [("Implementations", implementations(found))],
        "attribution": [*failures(found), *attributed(found)],
        "context": context(found),
        "shifts": shifts(found),
        "similarity": [("Linear CKA of the same layers", similarity(found.records))],
        "paper_representation": paper(found.paper),
    }


def terminal(found):
    """The renderables that a run's metrics end with."""
    if not found.records:
        return [Text(NOTHING)]
    tables = headlines(found)
    lines = parity_sentences(found)
    best = [
        (title, table[[n for n in SCORES if n in table]])
        for title, table in shifts(found, best=True)
    ]
    shown = [rich_table(title, table) for title, table in tables if len(table)]
    shown += [Text("\n".join(lines) + "\n", style="bold red")] if lines else []
    shown += [rich_table(title, table) for title, table in best if len(table)]
    shown += [Text(line + "\n") for line in [session_sentence(found)] if line]
    if measured(found.records):
        shown += [rich_table(*section) for section in paper(_short(found.paper)) if len(section[1])]
    missing = absent(found)
    return [*shown, *([rich_table("Not measured", missing)] if len(missing) else [])]


def headlines(found):
    """[(title, table)], one for each kind of weights: the metrics that say most, at the longest sequence of each."""
    sections = []
    table = of_model(found.attribution)
    order = lambda weights: WEIGHTS.index(weights) if weights in WEIGHTS else len(WEIGHTS)
    for weights in sorted(table.weights.unique(), key=order):
        rows = []
        for instrument, metric in HEADLINES:
            here = table[(table.weights == weights) & (table.metric == metric)]
            here = here[[instrument == i or i in instrument.split(" | ") for i in here.instrument]]
            if len(
                here
            ):  # of both architectures, if there is one; of most seeds, then the longest sequence
                rank = here.assign(both=here.llama.notna() & here.mamba.notna())
                rows.append(here.loc[rank.sort_values(["both", "seeds", "tokens"]).index[-1]])
        chosen = pd.DataFrame(rows).drop_duplicates() if rows else table.iloc[:0]
        lengths = sorted(chosen.tokens.unique())
        columns = {
            "metric": lambda r: f"{r.instrument}: {r.metric}",
            **(
                {"tokens": lambda r: length(r.tokens).removesuffix(" tokens")}
                if len(lengths) > 1
                else {}
            ),
            "llama": lambda r: number(r.llama),
            "mamba": lambda r: number(r.mamba),
            AGAINST: against,
            "verdict": lambda r: (
                r.verdict if r.verdict != "undecided" else f"undecided: {r.reason}"
            ),
        }
        at = "several lengths" if len(lengths) > 1 else "".join(map(length, lengths))
        title = f"Representation at {at} ({weights} weights, mean over the blocks)"
        sections.append((title, shown_as(chosen, columns)))
    return sections


def absent(found):
    """What was tried and gave nothing, with the reason; equal ones once."""
    rows = {}
    for record in found.records:
        if record["status"] == "ok":
            continue
        unit = record["unit"]
        where = rows.setdefault(
            (record["status"], record["reason"]),
            {name: {} for name in ("impl", "arch", "group", "seqlen")},
        )
        for name, values in where.items():
            values[length(unit[name]) if name == "seqlen" else unit[name]] = None
    columns = ["impl", "arch", "metrics", "tokens", "status", "reason"]
    return pd.DataFrame(
        [
            (*map(", ".join, where.values()), status, reason or "no reason recorded")
            for (status, reason), where in rows.items()
        ],
        columns=columns,
    )


def parity_sentences(found):
    """One line for each implementation and setting whose metrics differ from the baseline's beyond rounding."""
    lines = []
    keys = ["arch", "impl", "baseline", "tokens", "dtype", "weights"]
    for (arch, impl, baseline, tokens, dtype, _), group in found.failures.groupby(keys, sort=False):
        worst = group.loc[(group.error / group.bound).fillna(math.inf).idxmax()]
        many = f"{group.failed.sum():,} of {group.compared.sum():,} metrics"
        lines.append(
            f"PARITY FAILURE: {arch} under {impl} against {baseline} at {tokens:,} tokens ({dtype}): {many} beyond "
            f"rounding ({', '.join(group.group.unique())}); worst {worst['worst metric']}: {worst.norm} error "
            f"{number(worst.error)} of {number(worst.bound)} allowed"
        )
    return lines


def session_sentence(found):
    """How many sessions the shift scores stand on, and whether that is enough; empty without any."""
    extras = [r["extra"] for r in measured(found.records) if r["unit"]["group"] == "shifts"]
    counts = [e["sessions"] for e in extras if e.get("sessions")]
    if not counts:
        return ""
    fewest = min(counts)
    text = f"Shift scores stand on {fewest:,} session{'' if fewest == 1 else 's'}"
    if fewest < ENOUGH_SESSIONS:
        return f"{text}: intervals are wide; use at least {ENOUGH_SESSIONS} for a verdict."
    return f"{text}."


def sentences(found):
    """What the metrics say, in plain sentences made from the records alone."""
    if not found.records:
        return [NOTHING]
    return [
        *_verdicts(found), *_beyond(found), *_attention(found), *_reach(found), *_scored(found), *_agreement(found),
        *parity_sentences(found), *_alike(found), *_missing(found),
    ]  # fmt: skip


def _verdicts(found):
    """How many metrics tell the architectures apart, and the headlines among them."""
    table = of_model(found.attribution)
    for setting in settings(table.rename(columns={"tokens": "seqlen"})):
        here = table[
            (table.tokens == setting.seqlen)
            & (table.dtype == setting.dtype)
            & (table.weights == setting.weights)
        ]
        both = here[here.llama.notna() & here.mamba.notna()]
        if both.empty:
            archs = [arch for arch in PAIR if here[arch].notna().any()]
            of = " of llama and mamba" * bool(_others(found))
            yield f"{setting}: only {' and '.join(archs)}{of} was measured, so nothing is compared."
            continue
        if both.seeds.max() < 2:
            yield f"One initialisation at {setting} gives no interval, and so no verdict."
            continue
        counts = both.verdict.value_counts()
        text = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        yield f"Verdicts on the {len(both)} metrics of both architectures at {setting}: {text}."
        apart = both[(both.verdict == "architecture") & (both.scale == "ratio")]
        apart = apart[
            [key in HEADLINES for key in zip(apart.instrument, apart.metric, strict=True)]
        ]
        if len(apart):
            clauses = [f"{r.metric} ({r.instrument}) {against(r)}" for _, r in apart.iterrows()]
            yield f"Mamba / LLaMA, by architecture: {'; '.join(clauses)}."


def _others(found):
    """The measured architectures that are not of the pair."""
    return further(set(found.values.arch) - {"both"})


def _beyond(found):
    if others := _others(found):
        groups = found.values[found.values.arch.isin(others)].group.unique()
        yield (
            f"Of {listed(others)} there are metrics too ({', '.join(groups)}); they are not part of the "
            "comparison of the two."
        )


def _attention(found):
    """Whether softmax attention is nearly uniform."""
    table = found.shown[(found.shown.instrument == "softmax") & (found.shown.metric == "entropy")]
    for r in table[table.layer == BLOCKS].itertuples():
        bound = uniform_entropy(r.seqlen)
        nearly = "spreads almost evenly" if r.value > (1 - UNIFORM) * bound else "is concentrated"
        yield (
            f"{r.arch}'s attention {nearly} at {length(r.seqlen)} ({r.weights} weights): its entropy is "
            f"{r.value / bound:.1%} of the uniform bound."
        )


def _reach(found):
    """Within how many tokens half of the gradient lies."""
    table = found.shown[
        (found.shown.instrument == "hutchinson") & (found.shown.metric == "mass_50")
    ]
    for setting in settings(table):
        here = table[(table[list(setting._fields)] == list(setting)).all(axis=1)]
        each = [f"{number(r.value)} tokens in {r.arch}" for r in here.itertuples()]
        yield f"Half of the gradient (hutchinson) lies within {', '.join(each)}: {setting}."


def _scored(found):
    """The best score of each architecture, the best baseline, and what they stand on."""
    for title, best in shifts(found, best=True):
        best = best.assign(level=best.auc.map(_leading), of=best.arch)
        best.loc[best.score.isin(BASELINES), "of"] = "best baseline"
        tops = best.loc[best.groupby("of", sort=False)["level"].idxmax()].sort_values(
            "of", key=_last
        )
        each = [
            f"{r.of} {r.auc} ({r.score}{'' if r.layer == '-' else f', {r.layer}'})"
            for r in tops.itertuples()
        ]
        yield f"{title.split(' (')[0]}, AUC: {'; '.join(each)}. The layers were chosen on the same sessions."
    if line := session_sentence(found):
        yield line


def _agreement(found):
    """The parity check, where it found nothing wrong."""
    checks = found.checks
    if len(checks) and checks.passed.all():
        n = len(checks.drop_duplicates(["arch", "impl", "layer", "instrument", "metric"]))
        yield (
            f"Implementations agree in all {n:,} metrics that were compared: the largest error is "
            f"{number(float(np.max(checks.fraction)), 2)} of its bound."
        )


def _alike(found):
    for r in similarity(found.records).itertuples():
        if "itself" not in r.compared:
            yield f"CKA, {r.compared} ({r.tokens} tokens): lowest of the same layers {r.lowest}."


def _missing(found):
    for r in absent(found).itertuples():
        word = "is unavailable" if r.status == "unavailable" else "failed"
        yield f"{r.impl} {word} for {r.arch} ({r.metrics}) at {r.tokens}: {r.reason}."


def _leading(text):
    """The number that a cell of a table begins with; nan for none."""
    return math.nan if text == "-" else float(text.split(" ")[0].replace(",", ""))


def _last(column):
    """Sort key: baselines after architectures."""
    return column == "best baseline"


def _short(table):
    """The claims with one line for all layers of a metric, and without those that the paper says nothing of."""
    said = table[table.paper.notna()]
    rows = []
    layers = said[said.section == "Table 3"]
    for metric in dict.fromkeys(layers.claim.str.rpartition(", ")[0]):
        group = layers[layers.claim.str.startswith(metric)]
        first, last = group.iloc[0], group.iloc[-1]
        ends = [group.value.min(), group.value.max()]
        text = " to ".join(dict.fromkeys(map(number, ends))) if first.seeds else first.measured
        paper = f"{published(group.paper.min())} to {published(group.paper.max())}"
        claim = f"{metric}, blocks {first.claim.split()[-1]} to {last.claim.split()[-1]}"
        rows.append(first.to_dict() | {"claim": claim, "paper": paper, "measured": text})
    short = pd.concat([pd.DataFrame(rows, columns=table.columns), said.drop(layers.index)])
    return short.drop(columns=["section", "tokens"])
