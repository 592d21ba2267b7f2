"""The representation metrics of a run, `metrics.jsonl`, as tables: one row a value, one row a profile, one row a check.

One JSON object a line, appended as it is measured. A process that dies while it writes leaves at most a torn last line,
which is skipped; of a unit that was measured again the later record counts.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.load import impl_order
from bench.records import RecordError

NAME = "metrics.jsonl"
UNIT = ["group", "arch", "impl", "dtype", "seqlen", "seed", "weights", "part"]
STATUSES = ("ok", "error", "unavailable")
WEIGHTS = ("initial", "checkpoint", "trained")  # the order of every table
GOLD = "reference"  # the model in float64, no implementation that is compared with others
BLOCKS = "blocks"  # the layer of a mean over the blocks
NO_LAYER = -1  # layer_index of what belongs to no layer


class Setting(NamedTuple):
    """What two values must share to be compared."""

    dtype: str
    seqlen: int
    weights: str

    def __str__(self):
        return f"{length(self.seqlen)}, {self.dtype}, {self.weights} weights"


def length(seqlen):
    """A length in words; 0 stands for sessions that are read whole."""
    return f"{seqlen:,} tokens" if seqlen else "whole sessions"


def read(path, skipped=None):
    """The latest record of every unit, in the order of the file; none if there is no file.

    Args:
        skipped: None, or a list that takes a sentence for every broken line, which is left out then.

    Raises:
        RecordError: a broken line before the last one, by its number, and `skipped` is None.
    """
    path = Path(path)
    if not path.exists():
        return []
    latest = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            key = tuple(record["unit"][name] for name in UNIT)
            if record["status"] not in STATUSES:
                raise ValueError(f"status {record['status']!r}")
            latest[key] = record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if skipped is None:
                raise RecordError(f"{path}, line {number}: not a record: {error}") from None
            skipped.append(f"{path.name}, line {number}: not a record: {error}")
    return list(latest.values())


def values_frame(records):
    """One row per value: UNIT, layer, layer_index, instrument, metric, value, low, high (nan where there is none).

    layer_index is 0 for the embedding, i for block i, one more than the blocks for the final norm, NO_LAYER for
    what belongs to no layer.
    """
    rows = [
        {
            **_unit(record),
            **{name: value[name] for name in ("layer", "instrument", "metric")},
            **{name: _number(value.get(name)) for name in ("value", "low", "high")},
        }
        for record in measured(records)
        for value in record.get("values") or []
    ]
    names = [*UNIT, "layer", "instrument", "metric", "value", "low", "high"]
    return _indexed(pd.DataFrame(rows, columns=names))


def profiles_frame(records):
    """One row per profile: UNIT, layer, layer_index, instrument, metric, positions and values (float64 arrays)."""
    rows = [
        {
            **_unit(record),
            **{name: profile[name] for name in ("layer", "instrument", "metric")},
            **{
                name: np.array([_number(v) for v in profile[name]])
                for name in ("positions", "values")
            },
        }
        for record in measured(records)
        for profile in record.get("profiles") or []
    ]
    names = [*UNIT, "layer", "instrument", "metric", "positions", "values"]
    return _indexed(pd.DataFrame(rows, columns=names))


def checks_frame(records):
    """One row per metric that was compared with the baseline: UNIT, baseline, layer, instrument, metric, norm
    (max or rms), error, bound, fraction (error / bound), passed.

    A record that failed without naming a metric has failed in every one of its values; their numbers are nan.
    """
    rows = []
    for record in measured(records):
        parity = record.get("parity") or {}
        unit = _unit(record) | {"baseline": parity.get("baseline", "")}
        found = [
            {**unit, **_named(name), "norm": norm, **_check(*map(_number, pair))}
            for name, norms in (parity.get("metrics") or {}).items()
            for norm, pair in norms.items()
        ]
        if parity.get("passed") is False and all(row["passed"] for row in found):
            unknown = dict.fromkeys(("error", "bound", "fraction"), math.nan)
            found += [
                {**unit, **{n: v[n] for n in ("layer", "instrument", "metric")}}
                | {"norm": "", **unknown, "passed": False}
                for v in record.get("values") or []
            ]
        rows += found
    names = ["baseline", "layer", "instrument", "metric", "norm", "error", "bound", "fraction"]
    return _indexed(pd.DataFrame(rows, columns=[*UNIT, *names, "passed"]))


def measured(records):
    """The records that carry values."""
    return [record for record in records if record["status"] == "ok"]


def of_model(table):
    """The rows that speak of the whole model: the mean over the blocks, and what belongs to no layer."""
    return table[~table.layer.str.fullmatch(r"block \d+|embedding|final norm")]


def with_blocks(values):
    """`values` (a values_frame) and, as layer BLOCKS, the mean over the blocks of each instrument and metric."""
    keys = [*UNIT, "instrument", "metric"]
    blocks = values[values.layer.str.match(r"block \d+$") & values.value.notna()]
    means = blocks.groupby(keys, sort=False, as_index=False).value.mean()
    means = means.assign(layer=BLOCKS, layer_index=NO_LAYER, low=math.nan, high=math.nan)
    return pd.concat([values, means[values.columns]], ignore_index=True) if len(means) else values


def one_implementation(table, checks):
    """The rows of `table` under one implementation for each setting, architecture and instrument.

    It is one whose parity did not fail, if there is one; of those the one with most seeds, then the first in the order
    of every table.
    """
    failed = checks[~checks.passed.astype(bool)]
    failed = set(zip(failed.arch, failed.impl, failed.instrument, strict=True))
    parts = [table.iloc[:0]]
    for key, group in table[table.impl != GOLD].groupby(
        [*Setting._fields, "arch", "instrument"], sort=False
    ):
        seeds = group.groupby("impl").seed.nunique()

        def worth(impl, where=key[-2:], seeds=seeds):
            passed = (where[0], impl, where[1]) not in failed
            return passed, seeds[impl], -impl_order(impl)[0]

        parts.append(group[group.impl == max(seeds.index, key=worth)])
    return pd.concat(parts).sort_index() if len(parts) > 1 else parts[0]


def over_seeds(values):
    """One row per setting, arch, impl, instrument, metric and layer: the means of value, low and high over the seeds
    and their sd, lowest, highest and seeds (how many)."""
    keys = [*Setting._fields, "arch", "impl", "instrument", "metric", "layer", "layer_index"]
    grouped = values[values.value.notna()].groupby(keys, sort=False)
    return grouped.agg(
        value=("value", "mean"), low=("low", "mean"), high=("high", "mean"), sd=("value", "std"),
        lowest=("value", "min"), highest=("value", "max"), seeds=("seed", "nunique"),
    ).reset_index()  # fmt: skip


def of(table, setting):
    """The rows of `table` that belong to `setting`."""
    return table[(table[list(Setting._fields)] == list(setting)).all(axis=1)]


def settings(table):
    """The settings of `table`: initial weights first, then by dtype, the longest sequence first."""
    found = {Setting(*key) for key in table[list(Setting._fields)].itertuples(index=False)}
    return sorted(found, key=lambda s: (_rank(WEIGHTS, s.weights), s.dtype, -s.seqlen))


def _rank(order, name):
    return (order.index(name) if name in order else len(order), name)


def _unit(record):
    return {name: record["unit"][name] for name in UNIT}


def _number(value):
    """A float of what a record holds; `nan` and `inf` are strings there, and a missing interval null."""
    return math.nan if value is None else float(value)


def _named(name):
    return dict(zip(("layer", "instrument", "metric"), name.split("/", 2), strict=True))


def _check(error, bound):
    fraction = error / bound if bound else (math.inf if error else 0.0)
    return {"error": error, "bound": bound, "fraction": fraction, "passed": error <= bound}


def _indexed(table):
    """`table` with layer_index after layer."""
    keys = [*Setting._fields, "arch"]
    blocks = table.layer.str.extract(r"^block (\d+)$", expand=False).astype(float)
    deepest = blocks.groupby([table[name] for name in keys]).transform("max")
    index = blocks.mask(table.layer == "embedding", 0).mask(
        table.layer == "final norm", deepest.fillna(0) + 1
    )
    table.insert(
        table.columns.get_loc("layer") + 1, "layer_index", index.fillna(NO_LAYER).astype(int)
    )
    return table
