"""The paper's representational claims (arXiv 2601.01237, 5.2 and Table 3) beside what was measured, with reasons.

A reason is printed only where the numbers call for it, and with the numbers of this run where it has any; a difference
without a reason says so.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import gammaln

from analysis.metric_load import (
    WEIGHTS,
    Setting,
    checks_frame,
    measured,
    of,
    of_model,
    one_implementation,
    settings,
    values_frame,
)
from analysis.wording import interval, number

MODEL, EVERY = "model", "every"  # what is asked for instead of a layer: of none, of whatever layer
LENGTH = 1847  # tokens of its session
TABLE_3 = {  # layer -> value; velocity and norm are Mamba's, attention is the Transformer's
    "velocity": {1: 0.3124, 2: 0.3876, 4: 0.4892, 6: 0.4287, 8: 0.3612},
    "norm": {1: 8.234, 2: 9.456, 4: 10.789, 6: 11.567, 8: 12.123},
    "entropy": {1: 2.1234, 2: 2.5678, 4: 3.2456, 6: 3.7234, 8: 3.1890},
    "distance": {1: 12.3, 2: 24.7, 4: 52.1, 6: 67.8, 8: 41.6},
}
VELOCITY, DRIFT = 0.4231, 12.7834  # mean and final, of Mamba
CONTEXT = {  # asymmetric metric -> (Mamba, Transformer)
    "count": (892.4, 234.7),
    "share": (0.902, 0.127),
    "cov": (0.08, 0.52),
}
SHIFTS = {  # metric -> (Mamba, Transformer)
    "auc": (0.7834, 0.7123),
    "f1_at_p75": (0.6667, 0.5714),
    "f1": (0.7273, 0.6452),
    "tpr_at_fpr_10": (0.65, 0.52),
}
SESSIONS, PAIRS = 4, 3  # shift samples of the paper: 4 sessions of 4 quarters
CLOSE = 0.05  # relative difference that counts as agreement
UNIFORM = 0.05  # relative distance to uniform attention that counts as near
COLUMNS = [
    "claim", "section", "paper", "measured", "value", "low", "high", "seeds", "tokens", "weights", "impl", "reason",
]  # fmt: skip
IMPOSSIBLE = "no set of"  # begins what holds of the paper's number whatever is measured
UNEXPLAINED = "no reason found in the data of this run"
NAMES = {
    "velocity": "velocity",
    "norm": "norm of the last token",
    "entropy": "attention entropy, nats",
    "distance": "attention distance, tokens",
    "count": "effective context, tokens",
    "share": "effective context, share of the prefix",
    "cov": "effective context, variation (sd / mean)",
    "auc": "shifts, AUC",
    "f1_at_p75": "shifts, F1 at P75",
    "f1": "shifts, F1 at the optimum",
    "tpr_at_fpr_10": "shifts, TPR at 0.1 FPR",
}


@dataclass
class Found:
    """One metric over its seeds under one setting and implementation; empty where nothing was measured."""

    values: list = field(default_factory=list)
    setting: Setting | None = None
    impl: str = ""

    @property
    def mean(self):
        return float(np.mean(self.values)) if self.values else math.nan

    def __bool__(self):
        return bool(self.values)


def beside(records):
    """One row per claim, with COLUMNS; value is the mean over seeds, low and high their range.

    paper is nan where it published nothing: layers that its Table 3 leaves out, and the like-for-like instruments.
    """
    here = _Here(records)
    rows = [*here.layers(), *here.dynamics(), *here.context(), *here.shifts()]
    return pd.DataFrame(rows, columns=COLUMNS)


def uniform_entropy(seqlen):
    """Mean over the rows of a causal attention that spreads evenly over its keys: ln(seqlen!) / seqlen, nats."""
    return gammaln(seqlen + 1) / seqlen


def uniform_distance(seqlen):
    """Mean over the rows of the mean distance of evenly spread causal attention, tokens."""
    return (seqlen - 1) / 4


def attainable(auc, samples, digits=4):
    """Whether so many samples can give an area under the ROC curve that rounds to `auc`, for any split of classes.

    With P positives and N negatives it is a multiple of 1 / (2PN), ties included (the GRIM test of Brown and
    Heathers, 2017).
    """
    half = 0.5 * 10**-digits
    for positives in range(1, samples):
        steps = 2 * positives * (samples - positives)
        if abs(round(auc * steps) / steps - auc) <= half:
            return True
    return False


class _Here:
    """The values of a run, looked up as the paper would have measured them as nearly as the run allows."""

    def __init__(self, records):
        values, checks = values_frame(records), checks_frame(records)
        self.values = one_implementation(values[values.value.notna()], checks)
        self.metrics = dict(list(self.values.groupby(["arch", "instrument", "metric"])))
        self.shift_records = [r for r in measured(records) if r["unit"]["group"] == "shifts"]

    def look(self, arch, instrument, metric, layer=None):
        """`Found` for a layer, MODEL or EVERY, or the mean over the blocks for None."""
        return self.pick(self.rows(arch, instrument, metric, layer))

    def rows(self, arch, instrument, metric, layer=None):
        v = self.metrics.get((arch, instrument, metric), self.values.iloc[:0])
        if layer is None:
            return v[v.layer.str.startswith("block ")]
        if layer == EVERY:
            return v
        return of_model(v) if layer == MODEL else v[v.layer == layer]

    def pick(self, rows):
        """The seeds of the setting that is nearest to the paper's."""
        if rows.empty:
            return Found()
        setting = min(settings(rows), key=_far)
        rows = of(rows, setting)
        return Found(rows.groupby("seed").value.mean().tolist(), setting, rows.impl.iloc[0])

    def layers(self):
        """Table 3 and 5.2.5, every layer that was measured."""
        for metric, paper in TABLE_3.items():
            arch = "mamba" if metric in ("velocity", "norm") else "llama"
            instrument = "residual stream" if arch == "mamba" else "softmax"
            rows = self.rows(arch, instrument, metric, EVERY).sort_values("layer_index")
            layers = [name for name in rows.layer.unique() if name.startswith("block ")]
            if arch == "mamba" and "final norm" in set(rows.layer):
                layers.append("final norm")
            for layer in layers or [f"block {i}" for i in paper]:
                found = self.look(arch, instrument, metric, layer)
                number_ = int(layer.split()[1]) if layer.startswith("block ") else None
                value = paper.get(number_, math.nan)
                reasons = self._layer_reasons(metric, found, value, number_)
                yield _row(f"{NAMES[metric]} ({arch}), {layer}", "Table 3", value, found, reasons)

    def _layer_reasons(self, metric, found, paper, block):
        if not found or math.isnan(paper):
            return
        yield from _setting_reasons(found)
        if metric in ("entropy", "distance"):
            yield from _uniform_reasons(metric, found, paper)
            return
        yield from self._index_shift(metric, found, block)
        if metric == "velocity":
            yield from self._cosine(block, paper)
        yield from _initialisations(found, paper)

    def _index_shift(self, metric, found, block):
        """transformers' k-th hidden state of Mamba is block k + 1, and its last one follows the final norm."""
        blocks = self.rows("mamba", "residual stream", metric).layer_index.max()
        layer = "final norm" if block == blocks else f"block {block + 1}"
        shifted = self.look("mamba", "residual stream", metric, layer)
        if not shifted or abs(shifted.mean / found.mean - 1) <= CLOSE:
            return
        text = f"transformers' index {block} of Mamba is {layer}: {number(shifted.mean)} here"
        square = shifted.mean**2
        if metric == "norm" and layer == "final norm" and abs(square - round(square)) < 0.01:
            text += f", sqrt({square:.0f}) whatever comes in"
        yield text

    def _cosine(self, block, paper):
        """What velocity and norm together say of neighbouring vectors of about the same norm."""
        norm, layer = TABLE_3["norm"][block], f"block {block}"
        relative = self.look("mamba", "residual stream", "velocity_relative", layer)
        theirs = paper / norm
        if relative and relative.mean > 2 * theirs:
            yield (
                f"the paper's velocity over its norm is {number(theirs, 2)}, so neighbouring tokens would have cosine "
                f"{1 - theirs**2 / 2:.4f}; here velocity is {number(relative.mean)} of the norm"
            )

    def dynamics(self):
        mean = self.look("mamba", "residual stream", "velocity")
        yield _row(
            "mean velocity (mamba), over the blocks", "5.2", VELOCITY, mean,
            [*_setting_reasons(mean), *_initialisations(mean, VELOCITY)],
        )  # fmt: skip
        drift = self.rows("mamba", "residual stream", "drift")
        last = f"block {drift.layer_index.max()}" if len(drift) else "block 8"
        final = self.look("mamba", "residual stream", "drift", last)
        norm = self.look("mamba", "residual stream", "norm", last)
        reasons = [*_setting_reasons(final), *_initialisations(final, DRIFT)]
        if final and norm:
            ratio, theirs = final.mean / norm.mean, DRIFT / TABLE_3["norm"][8]
            if abs(ratio / theirs - 1) > CLOSE:
                reasons.append(
                    f"over the norm: {number(theirs)} in the paper, {number(ratio)} here"
                )
        yield _row(f"final drift (mamba), {last}", "5.2", DRIFT, final, reasons)

    def context(self):
        for metric, papers in CONTEXT.items():
            for arch, paper in zip(("mamba", "llama"), papers, strict=True):
                found = self.look(arch, "asymmetric (paper)", metric, MODEL)
                claim = f"{NAMES[metric]} ({arch}), asymmetric"
                reasons = [*_setting_reasons(found), *_denominators(metric, arch, found)]
                yield _row(claim, "5.2", paper, found, reasons)
        for instrument in ("hutchinson", "log-probability"):
            for metric in ("count", "share"):
                for arch in ("mamba", "llama"):
                    found = self.look(arch, instrument, metric, MODEL)
                    claim = f"{NAMES[metric]} ({arch}), like for like by {instrument}"
                    yield _row(claim, "5.2", math.nan, found, [])

    def shifts(self):
        for metric, papers in SHIFTS.items():
            for arch, paper in zip(("mamba", "llama"), papers, strict=True):
                layers = self.rows(arch, "window cosine", metric)
                last = f"block {layers.layer_index.max()}" if len(layers) else "final norm"
                found = self.look(arch, "window cosine", metric, "final norm")
                layer = "final norm" if found else last
                found = found or self.look(arch, "window cosine", metric, last)
                reasons = self._shift_reasons(metric, arch, found, paper)
                yield _row(f"{NAMES[metric]} ({arch}), {layer}", "5.2", paper, found, reasons)

    def _shift_reasons(self, metric, arch, found, paper):
        if not found:
            return
        samples = SESSIONS * PAIRS
        if metric == "auc" and not attainable(paper, samples):
            yield f"{IMPOSSIBLE} {samples} samples ({SESSIONS} sessions, {PAIRS} pairs of quarters) can give {paper}"
        else:
            yield f"the paper's {samples} pairs of quarters carry no labels"
        sizes = [r["extra"] for r in self.shift_records if r["unit"]["arch"] == arch]
        sizes = [e for e in sizes if e.get("positives") and e.get("candidates")]
        if sizes:
            n = sizes[0]
            many = f"{n['positives']:,} shifts among {n['candidates']:,} turn boundaries"
            yield f"here {many} of {n['sessions']:,} sessions"
        inputs = self.look(arch, "input embeddings", metric, EVERY)
        if inputs and inputs.mean >= found.mean:
            yield f"no credit to the model: its input embeddings alone reach {number(inputs.mean)}"


def _setting_reasons(found):
    if not found:
        return
    if found.setting.weights != WEIGHTS[0]:
        yield f"{found.setting.weights} weights here, random ones in the paper"
    if abs(found.setting.seqlen / LENGTH - 1) > CLOSE:
        yield f"{found.setting.seqlen:,} tokens here, {LENGTH:,} in the paper"


def _uniform_reasons(metric, found, paper):
    """Attention at random initialisation is nearly uniform; then its entropy and distance follow from the length."""
    seqlen = found.setting.seqlen
    if metric == "entropy":
        bound, name = uniform_entropy(seqlen), "uniform attention, ln(L!)/L"
    else:
        bound, name = uniform_distance(seqlen), "uniform attention, (L - 1)/4"
    if abs(found.mean / bound - 1) > UNIFORM:
        yield f"{found.mean / bound:.0%} of {name} = {number(bound)}"
        return
    text = f"attention is nearly uniform: {found.mean / bound:.1%} of {name} = {number(bound)} at {seqlen:,} tokens"
    if metric == "entropy":
        text += f"; {paper} nats would be an even spread over {number(math.exp(paper), 2)} tokens"
    yield text


def _initialisations(found, paper):
    n = len(found.values)
    if n > 1 and not min(found.values) <= paper <= max(found.values):
        yield f"outside of the range of {n} initialisations"


def _denominators(metric, arch, found):
    """The paper divides Mamba's count by the probe's prefix and the Transformer's by the whole session."""
    if metric == "share" and found:
        count, share = (CONTEXT[name][0] for name in ("count", "share"))
        if arch == "mamba":
            yield (
                f"the paper's {share:.1%} are {count} tokens of a prefix of {count / share:,.0f}; over all {LENGTH:,}, "
                f"as for its Transformer, they are {count / LENGTH:.1%}"
            )
        else:
            count = CONTEXT["count"][1]
            yield f"the paper divides {count} tokens by all {LENGTH:,}, here by the prefix that each query sees"
    if metric == "count" and found:
        most = found.setting.seqlen
        paper = CONTEXT["count"][arch == "llama"]
        if paper > most:
            yield f"{paper} tokens do not fit into {most:,}"


def _row(claim, section, paper, found, reasons):
    low, high = (min(found.values), max(found.values)) if found else (math.nan, math.nan)
    text = interval(found.mean, low, high) if found else "not measured"
    if math.isnan(paper):
        reason = ""
    elif not found:
        reason = "not measured"
    elif low <= paper <= high or abs(found.mean / paper - 1) <= CLOSE:
        reason = "; ".join(["agrees", *(r for r in reasons if r.startswith(IMPOSSIBLE))])
    else:
        reason = "; ".join(dict.fromkeys(reasons)) or UNEXPLAINED
    tokens = found.setting.seqlen or math.nan if found else math.nan  # 0 for whole sessions
    weights = found.setting.weights if found else ""
    where = (len(found.values), tokens, weights, found.impl)
    return dict(
        zip(
            COLUMNS,
            (claim, section, paper, text, found.mean, low, high, *where, reason),
            strict=True,
        )
    )


def _far(setting):
    """How far a setting is from the paper's."""
    weights = WEIGHTS.index(setting.weights) if setting.weights in WEIGHTS else len(WEIGHTS)
    return (
        weights,
        setting.dtype != "fp32",
        abs(math.log((setting.seqlen or LENGTH) / LENGTH)),
        setting,
    )
