"""Implementation or architecture? A verdict for every metric, from the records alone.

    spread over implementations     same architecture, seed and weights; should be rounding
    spread over seeds               same implementation, several initialisations
    mamba against llama             paired by seed, 95 % t interval; of the log ratio where the metric is positive

"architecture" needs an interval without equality and implementations that agree; a metric that fails the parity check
of an implementation is "implementation", however large the difference between the architectures.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.load import PAIR, impl_order
from analysis.metric_load import (
    BLOCKS,
    GOLD,
    UNIT,
    checks_frame,
    of,
    settings,
    values_frame,
    with_blocks,
)
from analysis.wording import number
from bench.verdict import LEAST, SAME, t_interval

PAIRED = {
    "softmax": ("implicit, per channel", "implicit, per state")
}  # llama's and mamba's instrument
NOT_METRICS = ("p_null",)
BASELINES = ("input embeddings", "position", "texttiling", "tf-idf")  # not of a model's making
NOT_COMPARABLE = "asymmetric (paper)"
FEWEST_SEEDS = 5  # initialisations for a spread over seeds
FAR = 10  # an effect so many times the spread over implementations is not theirs, where parity was not checked
COLUMNS = [
    "instrument", "metric", "layer", "tokens", "dtype", "weights", "llama", "mamba", "scale", "mamba against llama",
    "low", "high", "seeds", "llama impl", "mamba impl", "llama sd over seeds", "mamba sd over seeds",
    "llama spread over impls", "mamba spread over impls", "error / bound", "rounding bound", "parity", "verdict",
    "reason",
]  # fmt: skip
FAILURES = [
    "arch", "impl", "baseline", "tokens", "dtype", "weights", "seed", "group", "failed", "compared", "worst metric",
    "norm", "error", "bound",
]  # fmt: skip


def attribution(records):
    """One row per metric, layer and setting; layer `blocks` is the mean over the blocks. Columns: COLUMNS.

    scale says whether `mamba against llama` is the ratio mamba / llama or the difference mamba - llama. Spreads over
    implementations are (largest - smallest) / largest magnitude at the same seed, the worst seed of them; sd over seeds
    is nan below FEWEST_SEEDS initialisations. `rounding bound` is the largest RMS bound of the parity check in units of
    the metric, `error / bound` the worst use of such a bound.
    """
    values = with_blocks(values_frame(records))
    left_out = values.instrument.isin(BASELINES) | values.metric.isin(NOT_METRICS)
    values = values[values.value.notna() & (values.impl != GOLD) & ~left_out]
    checks = checks_frame(records)
    rows = []
    for setting in settings(values):
        sides = _sides(of(values, setting), of(checks, setting))
        rows += [_row(setting, *key, *pair) for key, pair in _pairs(sides).items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def parity_failures(records):
    """One row per record whose parity did not pass, with its worst metric. Columns: FAILURES."""
    rows = []
    for key, group in checks_frame(records).groupby(UNIT, sort=False):
        unit, failed = dict(zip(UNIT, key, strict=True)), group[~group.passed]
        if failed.empty:
            continue
        # nan, and an infinity, are worse than any number
        worst = failed.loc[failed.fraction.fillna(math.inf).idxmax()]
        name = ["layer", "instrument", "metric"]
        rows.append(
            {
                **{n: unit[n] for n in ("arch", "impl", "dtype", "weights", "seed", "group")},
                "baseline": worst.baseline,
                "tokens": unit["seqlen"],
                "failed": len(failed.drop_duplicates(name)),
                "compared": len(group.drop_duplicates(name)),
                "worst metric": ", ".join(worst[n] for n in name if worst[n]),
                **{n: worst[n] for n in ("norm", "error", "bound")},
            }
        )
    return pd.DataFrame(rows, columns=FAILURES)


@dataclass
class Side:
    """One metric of one layer of one architecture.

    Attributes:
        arch, instrument: where it was measured.
        table: {implementation: {seed: value}}.
        checks: its rows of a checks_frame, as named tuples; those of every block for a mean over the blocks.
    """

    arch: str
    instrument: str
    table: dict
    checks: list

    @cached_property
    def failed(self):
        """{implementation: the worst error as a fraction of its bound}, of those whose parity failed."""
        failed = [check for check in self.checks if not check.passed]
        return {
            impl: float(np.max([check.fraction for check in failed if check.impl == impl]))
            for impl in sorted({check.impl for check in failed}, key=impl_order)
        }

    @cached_property
    def spread(self):
        """Largest relative difference between implementations at the same seed; nan below two of them."""
        by_seed = {}
        for found in self.table.values():
            for seed, value in found.items():
                by_seed.setdefault(seed, []).append(value)
        return max(
            ((max(v) - min(v)) / (max(map(abs, v)) or 1.0) for v in by_seed.values() if len(v) > 1),
            default=math.nan,
        )

    @property
    def usable(self):
        """Implementations whose parity did not fail, or all of them if it did for each."""
        return [impl for impl in self.table if impl not in self.failed] or list(self.table)

    def over_seeds(self, impl):
        """Standard deviation over seeds, nan below FEWEST_SEEDS of them."""
        values = list(self.table[impl].values())
        return float(np.std(values, ddof=1)) if len(values) >= FEWEST_SEEDS else math.nan


def _sides(values, checks):
    """{(instrument, metric, layer): {arch: Side}} of one setting."""
    compared = {}
    for check in checks.itertuples():
        key = (check.arch, check.instrument, check.metric)
        compared.setdefault((*key, check.layer), []).append(check)
        if check.layer.startswith("block "):
            compared.setdefault((*key, BLOCKS), []).append(check)
    found = {}
    keys = ["arch", "instrument", "metric", "layer", "impl", "seed"]
    means = values.groupby(keys, sort=False).value.mean()  # over the parts of a unit
    for (arch, *name, layer, impl, seed), value in means.items():
        if arch not in PAIR:  # a comparison of the two is neither's metric
            continue
        archs = found.setdefault((*name, layer), {})
        if arch not in archs:
            archs[arch] = Side(arch, name[0], {}, compared.get((arch, *name, layer), []))
        archs[arch].table.setdefault(impl, {})[seed] = value
    return found


def _pairs(sides):
    """{(instruments, metric, layer): (llama's Side or None, mamba's Side or None)}."""
    found = {}
    for (instrument, metric, layer), here in sides.items():
        at = lambda name, metric=metric, layer=layer: sides.get((name, metric, layer), {})
        partners = [name for name in PAIRED.get(instrument, ()) if "mamba" in at(name)]
        for name in partners:
            pair = (here.get("llama"), at(name)["mamba"])
            found[f"{instrument} | {name}", metric, layer] = pair
        taken = any(instrument in others and "llama" in at(name) for name, others in PAIRED.items())
        if not partners and not taken:
            found[instrument, metric, layer] = tuple(here.get(arch) for arch in PAIR)
    return found


def _row(setting, instrument, metric, layer, llama, mamba):
    sides = [side for side in (llama, mamba) if side is not None]
    impls, scale, interval, n = _compared(llama, mamba)
    checks = [check for side in sides for check in side.checks]
    found = {
        "instrument": instrument, "metric": metric, "layer": layer, "tokens": setting.seqlen, "dtype": setting.dtype,
        "weights": setting.weights, "scale": scale, "seeds": n,
        **dict(zip(("mamba against llama", "low", "high"), interval, strict=True)),
        "error / bound": float(np.max([c.fraction for c in checks], initial=0)) if checks else math.nan,
        "rounding bound": max((c.bound for c in checks if c.norm == "rms"), default=math.nan),
        "parity": ("passed" if all(c.passed for c in checks) else "FAILED") if checks else "not checked",
    }  # fmt: skip
    for side in sides:
        impl = impls[side.arch]
        found |= {
            side.arch: float(np.mean(list(side.table[impl].values()))),
            f"{side.arch} impl": impl,
            f"{side.arch} sd over seeds": side.over_seeds(impl),
            f"{side.arch} spread over impls": side.spread,
        }
    found["verdict"], found["reason"] = _verdict(found, sides)
    return found


def _compared(llama, mamba):
    """({arch: implementation}, scale, (mean, low, high) on that scale, number of paired seeds)."""
    nothing = (math.nan, math.nan, math.nan)
    if llama is None or mamba is None:
        side = llama or mamba
        return {side.arch: max(side.usable, key=lambda i: _worth(side.table[i], i))}, "", nothing, 0
    impls = _pairing(llama, mamba)
    a, b = llama.table[impls["llama"]], mamba.table[impls["mamba"]]
    both = np.array([(a[seed], b[seed]) for seed in a if seed in b]).reshape(-1, 2)
    if llama.instrument == NOT_COMPARABLE or not len(both):
        return impls, "", nothing, len(both)
    if (both > 0).all():
        interval = t_interval(np.log(both[:, 1]) - np.log(both[:, 0]))
        return impls, "ratio", tuple(math.exp(v) for v in interval), len(both)
    return impls, "difference", t_interval(both[:, 1] - both[:, 0]), len(both)


def _pairing(llama, mamba):
    """{arch: implementation} with the most paired seeds; then the same on both sides, in the order of tables."""

    def worth(pair):
        shared = llama.table[pair[0]].keys() & mamba.table[pair[1]].keys()
        return len(shared), pair[0] == pair[1], [_worth((), impl) for impl in pair]

    pair = max(itertools.product(llama.usable, mamba.usable), key=worth)
    return dict(zip(PAIR, pair, strict=True))


def _worth(values, impl):
    return len(values), -impl_order(impl)[0]


def _verdict(row, sides):
    """(verdict, reason) of a row."""
    scale, n = row["scale"], row["seeds"]
    interval = [row[name] for name in ("mamba against llama", "low", "high")]
    failed = [
        f"{s.arch} {i}: error {_times(f)} its bound" for s in sides for i, f in s.failed.items()
    ]
    if failed:
        return "implementation", f"parity failed, {'; '.join(failed)}"
    if len(sides) < 2:
        return "undecided", f"{sides[0].arch} only"
    if sides[0].instrument == NOT_COMPARABLE:
        return "undecided", "the paper's instruments differ between the architectures"
    if n < 2:
        return "undecided", f"{n or 'no'} seed{'' if n == 1 else 's'} of both: no interval"
    mean, low, high = interval
    if scale == "ratio":
        (mean, low, high), equal = (math.log(v) for v in interval), "1"
    else:
        size = max(abs(row["llama"]), abs(row["mamba"])) or 1.0
        (mean, low, high), equal = (v / size for v in interval), "0"
    if low <= 0 <= high:
        if low >= -SAME and high <= SAME:
            return "no difference", f"interval holds {equal}, within 2 %"
        return "undecided", f"interval holds {equal}"
    if abs(mean) < LEAST:
        return "no difference", "smaller than 1 %"
    return _attributed(sides, abs(mean))


def _attributed(sides, effect):
    """(verdict, reason) where the architectures differ by `effect`, relative, beyond their seeds."""
    spread = float(np.nanmax([0.0, *(side.spread for side in sides)]))
    if effect <= spread:
        return "no difference", f"smaller than between implementations ({number(spread, 2)})"
    for side in sides:
        if len(side.checks):
            continue
        if math.isnan(side.spread):
            return (
                "undecided",
                f"differs, but {side.arch} {next(iter(side.table))} was not compared with another implementation",
            )
        if side.spread * FAR > effect:
            return (
                "undecided",
                f"differs, but {side.arch}'s implementations do too ({number(side.spread, 2)})",
            )
    agree = f"agree to {number(spread, 2)}" if spread else "agree"
    return "architecture", f"implementations {agree}"


def _times(fraction):
    return "beyond" if not math.isfinite(fraction) else f"{number(fraction)} times"
