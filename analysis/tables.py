"""Results as tables: what people read (Markdown and the terminal) and what programs read (CSV, full precision)."""

import math
from collections import Counter

import pandas as pd

from analysis import effects_tables
from analysis.load import MODES, Setting, alternatives, impl_order, named, versus
from analysis.ratios import against
from analysis.render import rich_table, write_tables
from analysis.wording import LETTERS, TITLES, between, brief, crossing, interval, number

MIB = 1 << 20
LEGEND = "{}: {} wins, L: LLaMA wins, =: within 2 %, ?: undecided; ± is the 95 % interval"
CACHES = {
    "llama": "keys and values",
    "mamba": "states",
    "mamba2": "states",
    "hybrid": "states, keys and values",
}
TIMED = {"decode": "Time of a token", "train": "Time of a step"}
ACROSS = "Crossovers, in tokens: {} is better above; `none: X` where X is better throughout"
NAMES = {
    "time": "time",
    "memory": "memory beyond the weights",
    "peak_memory": "memory with the weights",
}


def write(results, folder):
    """Write every table to `folder`; returns the paths."""
    raw = {
        "cells": results.cells,
        "ratios": _joined(results.matrix),
        "implementation_effect": _joined(results.spread),
        "identity": results.identity,
        "effects": results.effects,
        "shapley": results.shapley,
        "fits": _joined(results.fits),
        "slopes": _joined(results.slopes),
        "crossovers": _joined(results.crossovers),
        "paper": results.paper,
    }
    return write_tables(folder, raw, pages(results))


def pages(results):
    """{file name: [(title, table of strings)]}: everything that is written as Markdown."""
    found = {
        "implementations": [("Implementations", implementations(results))],
        "cells": [("Cells", cells(results.cells))],
        "caches": caches(results.cells),
        "winners": winners(results, "time") + winners(results, "memory"),
        "ratios": [s for m in ("time", "memory") for s in matrices(results.matrix[m], m)],
        "identity": effects_tables.identity(results.identity),
        "effects": effects_tables.effects(results.effects),
        "shapley": effects_tables.shapley(results.shapley),
        "crossovers": across(results),
        "fits": [("Scaling fits", fits(_joined(results.fits)))],
        "slopes": [("Local slopes, d ln y / d ln L", slopes(_joined(results.slopes)))],
        "paper": paper(results.paper),
    }
    return {name: sections for name, sections in found.items() if sections or name != "caches"}


def terminal(results):
    """The renderables that a sweep ends with."""
    tables = [("Implementations", implementations(results))]
    for mode, group in results.cells.groupby("mode", sort=False):
        timed = TIMED.get(mode, "Time of a forward")
        tables += grids(group, f"{timed}, ms [95 % interval]", _time)
    tables += caches(results.cells)
    tables += grids(
        results.cells, "Peak memory beyond the weights, MiB", lambda r: number(r.memory_bytes / MIB)
    )
    tables += winners(results, "time") + winners(results, "memory")
    for title, found in across(results):
        unfitted = [name for name in found if found[name].str.startswith("unknown").all()]
        tables += [(title, found.drop(columns=[*unfitted, "memory, fit"], errors="ignore"))]
    tables += paper(results.paper)
    return [rich_table(title, table) for title, table in tables if len(table)]


def implementations(results):
    """One row per setting, architecture and implementation: what ran, how well it is proven, or why it did not."""
    rows = []
    key = [*Setting._fields, "arch", "impl"]
    for _, group in results.cells.groupby(key, sort=False):
        lengths = (
            f"{group.seqlen.min():,}-{group.seqlen.max():,}"
            if len(group) > 1
            else f"{group.seqlen.iloc[0]:,}"
        )
        states = group.status.value_counts(sort=False)
        state = ", ".join(f"{s}" if len(states) == 1 else f"{n} {s}" for s, n in states.items())
        reasons = "; ".join(r for r in group.reason.unique() if r)
        rows.append(
            {
                "arch": group.arch.iloc[0],
                "impl": group.impl.iloc[0],
                **_settings_shown(results.cells, group.iloc[0]),
                "tokens": lengths,
                "status": state,
                "error / bound": number(group.parity.max(), 2),
                "kernels, or why not": "; ".join(t for t in (_kernels(group), reasons) if t),
            }
        )
    return pd.DataFrame(rows)


def cells(table):
    """One row per cell."""
    return _shown(
        table,
        {
            "arch": lambda r: r.arch,
            "impl": lambda r: r.impl,
            **_setting_columns(table),
            "tokens": lambda r: f"{r.seqlen:,}",
            "status": lambda r: r.status,
            "rounds": lambda r: str(r.rounds),
            "ms [95 % interval]": _time,
            "tokens/s": lambda r: number(r.tokens_per_s),
            "memory beyond weights, MiB": lambda r: number(r.memory_bytes / MIB),
            "weights, MiB": lambda r: number(r.weights_bytes / MIB),
            "error / bound": lambda r: number(r.parity, 2),
            "kernels": lambda r: r.kernels or "-",
            "reason": lambda r: r.reason or "-",
        },
    )


def grids(table, title, text):
    """[(title, table)]: a row per length and a column per architecture and implementation that was tried."""
    tried = table[table.status.isin(["ok", "oom", "timeout", "error"])]
    found = []
    for setting, group in tried.groupby(list(Setting._fields), sort=False):
        columns = {}
        for (arch, impl), curve in group.groupby(["arch", "impl"], sort=False):
            curve = curve.set_index("seqlen")
            columns[f"{arch} {impl}"] = curve.apply(
                lambda r, t=text: t(r) if r.status == "ok" else r.status, axis=1
            )
        grid = pd.DataFrame(columns).sort_index().fillna("-")
        grid.insert(0, _length(Setting(*setting)), [f"{n:,}" for n in grid.index])
        # four implementations of both architectures are too wide for a terminal: one table each
        narrow = [grid] if len(columns) <= 6 else _by_architecture(grid)
        found += [(f"{title}: {Setting(*setting)}", g.reset_index(drop=True)) for g in narrow]
    return found


def caches(table):
    """[(title, table)]: what a decoded token finds, a row per context; one column where implementations agree."""
    table = table[table.cache_bytes.notna()]
    found = []
    for key, group in table.groupby(list(Setting._fields), sort=False):
        held = group.pivot(index="seqlen", columns=["arch", "impl"], values="cache_bytes")
        columns, whole = {}, {}
        for arch in dict.fromkeys(group.arch):
            least, agreed = held[arch].min(axis=1), held[arch].max(axis=1)
            kept = CACHES.get(arch, "cache")
            if agreed.dropna().equals(least.dropna()):
                columns[f"{arch}, {kept}"] = whole[arch] = agreed
            else:
                columns |= {f"{arch} {impl}, {kept}": held[arch][impl] for impl in held[arch]}
        shown = pd.DataFrame({name: (values / MIB).map(number) for name, values in columns.items()})
        if "llama" in whole:
            for arch in [a for a in whole if a != "llama"]:
                shown[f"llama / {arch}"] = (whole["llama"] / whole[arch]).map(number)
        shown.insert(0, _length(Setting(*key)), [f"{n:,}" for n in shown.index])
        title = f"Cache that a token finds, MiB: {Setting(*key)}"
        found.append((title, shown.reset_index(drop=True)))
    return found


def winners(results, measure):
    """[(title, table)]: llama / mamba by length, the same implementation on both sides, and best against best.

    Further architectures have tables of their own.
    """
    found = []
    for setting, arch, group in _by_alternative(results.matrix[measure]):
        rows = []
        for seqlen, here in against(group, results.curves[measure], arch).groupby("seqlen"):
            row = {_length(setting): f"{seqlen:,}"}
            same = here[here.diagonal]
            for impl in sorted(same.llama_impl, key=impl_order):
                row[f"both {impl}"] = brief(same[same.llama_impl == impl].iloc[0])
            for _, top in here[here.best].iterrows():
                impls = f"{top.llama_impl}/{named(top.mamba_impl)[1]}"
                row["best against best"] = f"{brief(top)} {impls}"
            for _, theirs in here[here.paper].iterrows():
                row[f"paper: {theirs.llama_impl}/{theirs.mamba_impl}"] = brief(theirs)
            rows.append(row)
        legend = LEGEND.format(LETTERS.get(arch, arch), TITLES[arch])
        title = f"{NAMES[measure].capitalize()} of llama / {arch}, {setting}\n{legend}"
        found.append((title, pd.DataFrame(rows).fillna("-")))
    return found


def matrices(matrix, measure):
    """[(title, table)]: one ratio matrix per setting, length and architecture beside llama, whose implementations go
    down, the other's across."""
    found = []
    for setting, arch, group in _by_alternative(matrix):
        for seqlen, here in group.groupby("seqlen", sort=False):
            rows = [
                {f"llama \\ {arch}": llama}
                | {named(r.mamba_impl)[1]: _won(r) for _, r in row.iterrows()}
                for llama, row in here.groupby("llama_impl", sort=False)
            ]
            title = f"{NAMES[measure]} of llama / {arch} at {seqlen:,} tokens, {setting}"
            found.append((title[0].upper() + title[1:], pd.DataFrame(rows)))
    return found


def _by_alternative(matrix):
    """(setting, architecture, rows) of a table of pairs, the further architectures after Mamba."""
    for key, group in matrix.groupby(list(Setting._fields), sort=False):
        for arch in alternatives(group):
            yield Setting(*key), arch, versus(group, arch)


def across(results):
    """[(title, table of `crossovers`)], one for each mode and architecture beside llama."""
    everything = _joined({m: results.crossovers[m] for m in ("time", "memory")})
    modes = list(dict.fromkeys(everything["mode"])) or ["prefill"]
    suffix = lambda mode: f"\n{MODES.get(mode, mode)}" if modes != ["prefill"] else ""
    found = []
    for mode in modes:
        here = everything[everything["mode"] == mode]
        for arch in alternatives(here) or ["mamba"]:
            title = ACROSS.format(TITLES[arch]) + suffix(mode)
            found.append((title, crossovers(versus(here, arch))))
    return found


def crossovers(everything):
    """One row per pair of implementations, a column per measure and method."""
    rows = {}
    for _, row in everything.iterrows():
        arch, impl = named(row.mamba_impl)
        key = (row.llama_impl, row.mamba_impl, *(row[name] for name in Setting._fields))
        shown = rows.setdefault(
            key,
            {"llama": row.llama_impl, arch: impl, **_settings_shown(everything, row)},
        )
        column = f"{row.measure}, {row.method}"
        shown[column] = "; ".join(t for t in (shown.get(column), crossing(row)) if t)
    return pd.DataFrame(list(rows.values()))


def fits(table):
    """One row per curve and fitted model."""
    if table.empty:
        return table
    return _shown(
        table,
        {
            "measure": lambda r: r.measure,
            "arch": lambda r: r.arch,
            "impl": lambda r: r.impl,
            **_setting_columns(table),
            "model": lambda r: r.model,
            "chosen": lambda r: "yes" if r.chosen else r.reason or "",
            "a": lambda r: number(r.a),
            "b": lambda r: number(r.b),
            "c": lambda r: number(r.c),
            "p": lambda r: number(r.p),
            "Akaike weight": lambda r: f"{r.akaike_weight:.3f}" if r.akaike_weight >= 0 else "-",
            "error of the held-out longest": lambda r: _percent(r.held_out_error),
            "shares a, b, c there": lambda r: f"{r.share_a:.0%}, {r.share_b:.0%}, {r.share_c:.0%}",
            "R^2 (dof)": lambda r: f"{r.r2:.4f} ({r.dof})",
            "censored": lambda r: f"out of memory at {r.censored}" if r.censored else "-",
        },
    )


def slopes(table):
    """One row per curve and pair of neighbouring lengths."""
    return _shown(
        table,
        {
            "measure": lambda r: r.measure,
            "arch": lambda r: r.arch,
            "impl": lambda r: r.impl,
            **_setting_columns(table),
            "tokens": lambda r: f"{r['from']:,}-{r.to:,}",
            "slope [95 % interval]": lambda r: interval(r.slope, r.low, r.high),
        },
    )


def paper(table):
    """[(title, table)]: one row per claim; reasons that several claims share are numbered and stand once."""
    counts = Counter(reason for reasons in table.reason for reason in reasons.split("; "))
    shared = {
        reason: f"({n})"
        for n, reason in enumerate((r for r in counts if counts[r] > 1 and len(r) > 12), 1)
    }
    shown = _shown(
        table,
        {
            "claim": lambda r: r.claim,
            "paper": lambda r: r.paper,
            "measured": _measured,
            "why it differs": lambda r: "; ".join(shared.get(t, t) for t in r.reason.split("; ")),
        },
    )
    notes = pd.DataFrame({"": list(shared.values()), "reason": list(shared)})
    return [("The paper beside this run", shown), ("Reasons that several lines share", notes)]


def _measured(row):
    text = f"{row.measured} ({row.pairing})" if row.pairing else row.measured
    return f"{text}; best against best {row.best_pairing}" if row.best_pairing else text


def _time(row):
    return interval(row.time_ms, row.time_low, row.time_high)


def _won(row):
    return between(row) if math.isnan(row.ratio) else f"{between(row)} {row.winner}"


def _percent(value):
    return "-" if math.isnan(value) else f"{value:+.1%}"


def _kernels(group):
    """`selective_scan=numba.selective_scan` shortened to the kernels themselves, each once."""
    names = [
        part.split("=")[-1] for kernels in group.kernels for part in kernels.split("; ") if part
    ]
    return ", ".join(dict.fromkeys(names))


def _varying(table):
    return [name for name in Setting._fields if table[name].nunique() > 1]


def _setting_columns(table):
    return {name: lambda r, name=name: str(r[name]) for name in _varying(table)}


def _settings_shown(table, row):
    return {name: str(row[name]) for name in _varying(table)}


def _shown(table, columns):
    rows = [{title: text(row) for title, text in columns.items()} for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=list(columns))


def _by_architecture(grid):
    length, *names = grid
    archs = dict.fromkeys(name.split()[0] for name in names)
    return [grid[[length, *(n for n in names if n.startswith(f"{arch} "))]] for arch in archs]


def _length(setting):
    """The name of the column of lengths."""
    return "context L" if setting.mode == "decode" else "tokens"


def _joined(by_measure):
    tables = [table for table in by_measure.values() if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else next(iter(by_measure.values()))
