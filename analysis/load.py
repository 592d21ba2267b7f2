"""A run directory as tables: one row a record, one row a cell, and the curves over length that the rest reads."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.blocks import apart
from bench.verdict import statistic, t_interval
from models.architectures import REGISTRY

CELL = ["arch", "impl", "preset", "seqlen", "batch", "dtype", "mode", "launch"]
MEMORY = ["weights", "cache", "peak_allocated", "peak_reserved", "device_used", "peak_rss"]
MEASURES = (
    "time",
    "memory",
    "peak_memory",
)  # wall ms of a forward, token or training step; peak bytes beyond the weights, and with
MODES = {"decode": "decode (one token at context L)", "train": "train (forward + backward)"}
ORDER = ["triton", "cuda", "torch", "cpu", "hf"]  # implementations, as every table lists them
PAIR = (
    "llama",
    "mamba",
)  # what the lab asks about; further architectures are compared with llama too


class Setting(NamedTuple):
    """What two cells must share to be compared."""

    preset: str
    batch: int
    dtype: str
    mode: str
    launch: str

    def __str__(self):
        mode = MODES.get(self.mode, self.mode)
        return f"{self.preset}, batch {self.batch}, {self.dtype}, {mode}, {self.launch}"


def frame(run):
    """One row per record of `run`; kinds of machine are kept apart by `bench.blocks.apart`.

    Columns: those of the cell; round, order, status, reason; time and device_time (ms, median of the samples),
    memory (bytes beyond the weights) and peak_memory (weights included), each inf where the cell ran out of
    memory and nan where nothing was measured; samples; the memory numbers of the record; energy_j; parity
    (largest error as a fraction of its bound), parity_seqlen, parity_passed; kernels (operator=kernel, joined);
    padded.
    """
    rows = [_row(record) for record in apart(run).records]
    return pd.DataFrame(rows, columns=list(_row(_EMPTY)))


_EMPTY = {"cell": dict.fromkeys(CELL), "round": 0, "status": "error"}


def _row(record):
    memory, parity = record.get("memory_bytes") or {}, record.get("parity") or {}
    return {
        **{name: record["cell"][name] for name in CELL},
        "round": record["round"],
        "order": record.get("order"),
        "status": record["status"],
        "reason": record.get("reason") or "",
        "time": statistic(record, "time"),
        "device_time": statistic(record, "device_time"),
        "memory": statistic(record, "memory"),
        "peak_memory": statistic(record, "peak_memory"),
        "samples": len((record.get("time_ms") or {}).get("wall") or []),
        **{name: memory.get(name) for name in MEMORY},
        "energy_j": record.get("energy_j"),
        "parity": worst_parity(parity),
        "parity_seqlen": parity.get("seqlen"),
        "parity_passed": parity.get("passed"),
        "kernels": "; ".join(f"{o}={k}" for o, k in sorted((record.get("kernels") or {}).items())),
        "padded": record.get("padded", 0),
    }


def worst_parity(parity):
    """The largest error of a parity record as a fraction of its bound; nan without one."""
    pairs = [pair for norms in parity.get("outputs", {}).values() for pair in norms.values()]
    ratios = [_fraction(float(error), float(bound)) for error, bound in pairs]
    return float(np.max(ratios)) if ratios else math.nan


def _fraction(error, bound):
    if bound:
        return error / bound
    return math.inf if error else 0.0


def cells(records):
    """One row per cell of a `frame`: what was measured over its rounds, with the interval of the time.

    tokens_per_s are tokens read, decoded or trained on; cache_bytes is what a decoded token finds, nan in other modes.

    time_ms is the median over rounds of the per-round medians; time_low and time_high are the 95 % t
    interval on the logarithm. `rounds` counts the rounds with a time; `reason` says what happened to the others.
    """
    rows = []
    for key, group in records.groupby(CELL, sort=False, dropna=False):
        ok = group[group.status == "ok"]
        status = _status(group)
        _, low, high = t_interval(np.log(ok.time.dropna()))
        time = ok.time.median() if len(ok) else math.nan
        tokens = group.batch.iloc[0] * (
            1 if group["mode"].iloc[0] == "decode" else group.seqlen.iloc[0]
        )
        rows.append(
            dict(zip(CELL, key, strict=True))
            | {
                "status": status,
                "rounds": int(ok.time.notna().sum()),
                "time_ms": time,
                "time_low": math.exp(low),
                "time_high": math.exp(high),
                "device_ms": ok.device_time.median() if len(ok) else math.nan,
                "tokens_per_s": 1000 * tokens / time,
                "memory_bytes": ok.memory.median() if len(ok) else math.nan,
                "weights_bytes": ok.weights.astype(float).median() if len(ok) else math.nan,
                "cache_bytes": ok.cache.astype(float).median() if len(ok) else math.nan,
                "peak_rss_bytes": ok.peak_rss.astype(float).median() if len(ok) else math.nan,
                "parity": group.parity.max(),
                "parity_passed": _passed(group),
                "kernels": " | ".join(k for k in group.kernels.unique() if k),
                "reason": _reason(group, status),
            }
        )
    columns = [
        *CELL,
        "status",
        "rounds",
        "time_ms",
        "time_low",
        "time_high",
        "device_ms",
        "tokens_per_s",
    ]
    columns += [
        "memory_bytes",
        "weights_bytes",
        "cache_bytes",
        "peak_rss_bytes",
        "parity",
        "parity_passed",
        "kernels",
    ]
    table = pd.DataFrame(rows, columns=[*columns, "reason"])
    return table.sort_values(CELL, key=_rank, ignore_index=True)


def curves(records, measure):
    """{(setting, arch, impl): table of `measure`, one row a round, one column a seqlen}.

    inf is an out-of-memory, nan a missing value; only what was tried on this machine has a curve.
    """
    tried = records[records.status.isin(["ok", "oom", "timeout", "error"])]
    result = {}
    keys = [*Setting._fields, "arch", "impl"]
    for (*setting, arch, impl), group in tried.groupby(keys, sort=False):
        table = group.pivot(index="round", columns="seqlen", values=measure)
        result[Setting(*setting), arch, impl] = table.sort_index(axis=1)
    return result


def pairs(all_curves):
    """(setting, llama_impl, mamba_impl) of every pair of curves that can be compared.

    On mamba's side stand all alternatives to llama: `cpu` is Mamba's, `mamba2 cpu` that of a further architecture.
    """
    for setting, arch, llama in sorted(all_curves, key=_curve_order):
        for other, alternative, impl in sorted(all_curves, key=_curve_order):
            if arch == "llama" != alternative and other == setting:
                yield setting, llama, impl if alternative == "mamba" else f"{alternative} {impl}"


def named(label):
    """(architecture, implementation) of a label on mamba's side, as `pairs` gives them."""
    arch, _, impl = label.rpartition(" ")
    return arch or "mamba", impl


def side(all_curves, setting, role, label):
    """The curve of one side of a pair; its role is llama or mamba."""
    key = (role, label) if role == "llama" else named(label)
    return all_curves[setting, *key]


def alternatives(table):
    """The architectures on mamba's side of a table of pairs, Mamba first."""
    return sorted({named(label)[0] for label in table.mamba_impl}, key=arch_order)


def versus(table, arch):
    """The rows of a table of pairs that have `arch` on mamba's side."""
    return table[np.array([named(label)[0] == arch for label in table.mamba_impl], dtype=bool)]


def further(archs):
    """The architectures that are not of the pair, in the order of every table."""
    return sorted(set(archs) - set(PAIR), key=arch_order)


def of(table, setting):
    """The rows of `table` that belong to `setting`."""
    return table[(table[list(Setting._fields)] == list(setting)).all(axis=1)]


def logits_of(run):
    """Positions whose logits a run computes in prefill: `last` or `all`."""
    options = run.plan.get("options") or {}
    return options.get("logits") or ("all" if run.plan.get("protocol") == "paper" else "last")


def impl_order(impl):
    """Sort key: the order of the implementations in every table."""
    return (ORDER.index(impl) if impl in ORDER else len(ORDER), impl)


def arch_order(arch):
    """Sort key: the pair, then the others as the registry has them."""
    order = [*PAIR, *REGISTRY]
    return (order.index(arch) if arch in order else len(order), arch)


def _curve_order(key):
    setting, arch, impl = key
    return setting, arch_order(arch), impl_order(impl)


def _rank(column):
    order = {"impl": impl_order, "arch": arch_order}.get(column.name)
    return column.map(order) if order else column


def _status(group):
    """The best that a round reached: one that ran makes a cell measured, and the reason tells of the others."""
    for status in ("ok", "interpreted", "oom", "timeout", "error", "unavailable"):
        if (group.status == status).any():
            return status
    return "error"


def _passed(group):
    passed = group.parity_passed.dropna()
    return bool(passed.all()) if len(passed) else None


def _reason(group, status):
    if status != "ok":
        return next((r for r in group.reason[group.status == status] if r), "")
    failed = group[group.status != "ok"]
    counts = failed.status.value_counts()
    notes = [f"{s} in {n} of {len(group)} rounds" for s, n in counts.items()]
    return "; ".join(notes)
