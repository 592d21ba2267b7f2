"""The exact identity: what the architecture costs by itself, and what the implementations make of it.

    ln(t_llama / t_mamba) = ln(floor_llama / floor_mamba) + ln(efficiency_mamba / efficiency_llama)
                            architecture                    implementation

floor: the least time of the model's work on the measured peaks of the machine (`models.floor.model_floor`), a
constant of the machine. efficiency = floor / time. The two logarithms add up to the measured one whatever the floors
are, so the split is as good as the floors are.

A floor may lack a term for which no peak was measured (a CPU has no rate of exponentials) and is then too low. All
that is known of the true one is that it is at least this and at most the time of the fastest implementation that was
measured, since nothing is faster than its floor: `architecture_least` and `architecture_most` are what follows.
"""

import math

import numpy as np
import pandas as pd

from analysis.load import PAIR, Setting, logits_of, named
from analysis.load import side as curve_of
from analysis.ratios import fastest
from kernels.roofline import DTYPES, MODES, work
from models.floor import model_floor, model_problems
from models.presets import PRESETS

NO_PEAKS = "machine.json holds no measured peaks"
_FLOOR = [
    *Setting._fields,
    "arch",
    "seqlen",
    "floor_ms",
    "bound",
    "missing",
    "flops",
    "bytes",
    "exps",
    "reason",
]
_KEPT = [
    "llama_impl",
    "mamba_impl",
    "ratio",
    "low",
    "high",
    "rounds",
    "winner",
    "diagonal",
    "best",
    "paper",
]
_SPLIT = [
    "architecture", "architecture_least", "architecture_most",
    "implementation", "implementation_low", "implementation_high",
]  # fmt: skip
_SIDES = [
    f"{arch}_{what}" for arch in PAIR for what in ("floor_ms", "bound", "missing", "efficiency")
]
COLUMNS = [*Setting._fields, "seqlen", *_KEPT, *_SPLIT, *_SIDES, "reason"]
_NUMBERS = [
    "ratio",
    "low",
    "high",
    *_SPLIT,
    *(c for c in _SIDES if c.endswith(("_ms", "_efficiency"))),
]


def floors_table(results):
    """One row per setting, architecture and seqlen that was tried: the floor of the model's pass.

    Columns: setting, arch, seqlen, floor_ms (nan: see reason), bound ("memory", "matrix" or "exponential"), missing
    (terms without a measured peak, joined), flops, bytes and exps of the pass (nan where unknown), reason.
    """
    rows = []
    done = set()
    for (setting, arch, _), curve in results.curves["time"].items():
        for seqlen in curve:
            if (key := (setting, arch, seqlen)) not in done:
                done.add(key)
                rows.append(
                    {
                        **setting._asdict(),
                        "arch": arch,
                        "seqlen": seqlen,
                        **_floor(results.run, *key),
                    }
                )
    table = pd.DataFrame(rows, columns=_FLOOR)
    return table.sort_values([*Setting._fields, "arch", "seqlen"], ignore_index=True)


def identity_table(results):
    """One row per setting, seqlen and pair of implementations, as in the ratio matrix of time.

    Columns: setting, seqlen, llama_impl, mamba_impl; ratio (llama / mamba), low, high, rounds, winner and flags as in
    `analysis.ratios.ratio_matrix`; architecture (floor_llama / floor_mamba) with architecture_least and
    architecture_most, the range that missing peaks leave (equal to it where none is missing); implementation
    (efficiency_mamba / efficiency_llama) with its 95 % interval over rounds, given these floors; floor_ms, bound,
    missing and efficiency of either side; reason: why the ratio or the split is unavailable. Where a further
    architecture stands on mamba's side, what is called mamba's is its.
    """
    curves = results.curves["time"]
    floors = {
        (Setting(*(getattr(row, name) for name in Setting._fields)), row.seqlen, row.arch): row
        for row in results.floors.itertuples()
    }
    tops = fastest(curves)
    least = {
        key: _geometric_mean(curves[key[0], key[1], impl][key[2]]) for key, impl in tops.items()
    }
    rows = []
    for row in results.matrix["time"].to_dict("records"):
        setting, seqlen = Setting(*(row[name] for name in Setting._fields)), row["seqlen"]
        archs = {"llama": "llama", "mamba": named(row["mamba_impl"])[0]}
        sides = {role: floors[setting, seqlen, arch] for role, arch in archs.items()}
        best = {role: least.get((setting, a, seqlen), math.nan) for role, a in archs.items()}
        pair = [curve_of(curves, setting, role, row[f"{role}_impl"])[seqlen] for role in archs]
        rows.append(row | _split(row, sides, best, _paired(*pair)))
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(_NUMBERS, float))


def model_sizes(run, arch):
    """The sizes that a floor needs of one architecture of a run, by transformers' names.

    Raises:
        ValueError: neither plan.json nor a preset of the lab holds them.
    """
    plan = run.plan
    recorded = (plan.get("architectures") or {}).get(arch, {}).get("config")
    if recorded:
        return recorded
    preset = PRESETS.get(plan.get("preset"))  # plans had no sizes by these names at first
    if preset is not None and preset.of(arch) is not None:
        return preset.of(arch)
    raise ValueError(
        f"plan.json holds no sizes of {arch}, and {plan.get('preset')} is no preset of it"
    )


def _floor(run, setting, arch, seqlen):
    """The columns of one pass; a decoded token has its context before it."""
    peaks = run.machine.get("peaks")
    logits = logits_of(run)
    tokens = seqlen + (setting.mode == "decode")
    row = {"floor_ms": math.nan, "bound": "", "missing": "", "reason": ""}
    row |= dict.fromkeys(("flops", "bytes", "exps"), math.nan)
    try:
        sizes = model_sizes(run, arch)
        row |= _work(sizes, arch, setting, tokens, logits)
        if not peaks:
            raise ValueError(NO_PEAKS)
        found = model_floor(
            sizes, arch, setting.batch, tokens, setting.dtype, peaks, logits, setting.mode
        )
    except (ValueError, KeyError) as error:
        reason = (
            f"no {error} among the sizes of {arch}" if isinstance(error, KeyError) else str(error)
        )
        return row | {"reason": reason}
    missing = ", ".join(found.missing)
    return row | {"floor_ms": 1e3 * found.seconds, "bound": found.bound, "missing": missing}


def _work(sizes, arch, setting, tokens, logits):
    """FLOPs, least bytes and exponentials of one pass, of the same parts as its floor."""
    steps = model_problems(sizes, arch, setting.batch, tokens, logits, setting.mode)
    parts = [
        [count * amount for amount in work(problem, DTYPES[setting.dtype], direction)]
        for count, problem in steps
        for direction in MODES[setting.mode]
    ]
    return dict(zip(("flops", "bytes", "exps"), map(sum, zip(*parts, strict=True)), strict=True))


def _split(row, sides, quickest, times):
    """The columns that the identity adds to a row of the ratio matrix; quickest and times are ms by architecture."""
    llama, mamba = (sides[role].floor_ms for role in PAIR)
    architecture = llama / mamba
    least = llama / (quickest["mamba"] if sides["mamba"].missing else mamba)
    most = (quickest["llama"] if sides["llama"].missing else llama) / mamba
    reasons = [row["reason"]] if math.isnan(row["ratio"]) else []
    reasons += dict.fromkeys(side.reason for side in sides.values() if side.reason)
    found = {
        "architecture": architecture,
        # a floor above the fastest time (an understated peak) must not turn the range round
        "architecture_least": min(least, architecture),
        "architecture_most": max(most, architecture),
        "implementation": row["ratio"] / architecture,
        "implementation_low": row["low"] / architecture,
        "implementation_high": row["high"] / architecture,
        "reason": "; ".join(reasons),
    }
    for arch, side in sides.items():
        found |= {
            f"{arch}_floor_ms": side.floor_ms, f"{arch}_bound": side.bound, f"{arch}_missing": side.missing,
            f"{arch}_efficiency": side.floor_ms / times[arch],
        }  # fmt: skip
    return found


def _paired(llama, mamba):
    """{arch: geometric mean of the time} over the rounds that have both sides, as the ratio has."""
    if not llama.index.equals(mamba.index):
        llama, mamba = llama.align(mamba, join="inner")
    both = (llama.notna() & mamba.notna()).to_numpy()
    return {"llama": _geometric_mean(llama[both]), "mamba": _geometric_mean(mamba[both])}


def _geometric_mean(values):
    logs = np.log(values.to_numpy(dtype=float))
    logs = logs[~np.isnan(logs)]
    return float(np.exp(logs.mean())) if len(logs) else math.nan
