"""From the paper's pairing to the best known one: how much of the way each switch makes.

The pairing that the paper must have measured (LLaMA with eager attention, Mamba with a fused scan, fp32, eager launch)
and the best one differ in a few switches: LLaMA's mixer, Mamba's mixer, the launch, the dtype. With the switches of a
set S turned, the ratio is v(S) = ln(t_llama / t_mamba). What a switch adds depends on those that were turned before
it, so it gets its mean over all orders, the Shapley value (Shapley 1953):

    phi_i = sum over S without i of |S|! (k - |S| - 1)! / k! (v(S + i) - v(S))

The contributions add up to v(all) - v(none) exactly. They need the times of all 2^k combinations in the same rounds; a
switch without them, and one with a single position, is "not varied in this run". Positions of the logits, for one,
are an option of a whole run.
"""

import itertools
import math

import numpy as np
import pandas as pd

from analysis.effects import GROUP
from analysis.ratios import paper_pairing
from bench.verdict import t_interval

SWITCHES = ("llama mixer", "mamba mixer", "launch", "dtype")
LAUNCH, DTYPE = "eager", "fp32"  # of the paper
START, END = "paper's pairing", "best pairing"
NOT_VARIED = "not varied in this run"
COLUMNS = [
    *GROUP,
    "seqlen",
    "switch",
    "before",
    "after",
    "effect",
    "factor",
    "low",
    "high",
    "rounds",
    "reason",
]


def shapley_table(results):
    """One row per preset, batch, mode, seqlen and switch, after the pairing that it starts from and before its end.

    Columns: the group; switch ("paper's pairing", the switches, "logits", "best pairing"), before, after (its two
    positions; of a pairing its description in `after`), effect (the contribution to ln(llama / mamba); of a pairing
    that logarithm itself), factor (its exponential) with low and high (95 % over rounds), rounds, reason: why there is
    none. The effect of "best pairing" is that of "paper's pairing" plus the contributions.
    """
    rows = []
    for group, cells in results.cells.groupby(GROUP, sort=False):
        curves = {
            k: c
            for k, c in results.curves["time"].items()
            if (k[0].preset, k[0].batch, k[0].mode) == group
        }
        for seqlen in sorted(cells.seqlen.unique()):
            key = dict(zip(GROUP, group, strict=True)) | {"seqlen": seqlen}
            walk = _walk(_times(curves, seqlen))
            if key["mode"] == "prefill":  # a decoded token and training have no choice
                logits = _row(
                    "logits",
                    _logits(results.run),
                    reason=f"{NOT_VARIED}: an option of all its cells",
                )
                walk.insert(max(1, len(walk) - 1), logits)
            rows += [key | row for row in walk]
    return pd.DataFrame(rows, columns=COLUMNS)


def shapley(values, count):
    """Contributions of `count` switches.

    Args:
        values: {frozenset of switch indices: array of v, one a round}, all 2^count of them.

    Returns:
        (count, rounds) array; its sum over the switches is v(all) - v(none).
    """
    found = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        subsets = [
            frozenset(s) for size in range(count) for s in itertools.combinations(others, size)
        ]
        found.append(
            sum(
                math.factorial(len(s))
                * math.factorial(count - len(s) - 1)
                * (values[s | {i}] - values[s])
                for s in subsets
            )
            / math.factorial(count)
        )
    return np.array(found)


def _walk(times):
    """The rows of one length; `times` is {(arch, impl, launch, dtype): logarithms by round}."""
    impls = {
        arch: {impl for a, impl, *setting in times if (a, setting) == (arch, [LAUNCH, DTYPE])}
        for arch in ("llama", "mamba")
    }
    pairing = paper_pairing(impls)
    if pairing is None:
        where = f"in {DTYPE} with launch {LAUNCH}"
        return [_row(START, reason=f"needs a time of llama under hf and of mamba {where}")]
    start = (*pairing, LAUNCH, DTYPE)
    ends = _ends(times)
    reachable = ((end, _corners(times, start, end)) for end in ends)
    end, values = next(((e, v) for e, v in reachable if v is not None), (start, None))
    if values is None:
        return [_row(START, after=_described(start), reason="llama and mamba share no round")]
    switched = [i for i in range(len(SWITCHES)) if start[i] != end[i]]
    rows = [_row(START, after=_described(start), **_estimate(values[frozenset()]))]
    for i, effect in zip(switched, shapley(values, len(switched)), strict=True):
        rows.append(_row(SWITCHES[i], start[i], end[i], **_estimate(effect)))
    for i in range(len(SWITCHES)):
        if i not in switched:
            rows.append(_row(SWITCHES[i], start[i], reason=_stays(ends, end, i)))
    whole = values[frozenset(range(len(switched)))]
    return [*rows, _row(END, after=_described(end), **_estimate(whole))]


def _corners(times, start, end):
    """{set of turned switches: ln ratio by round} between two configurations; None if a combination lacks times.

    A configuration is (llama_impl, mamba_impl, launch, dtype); the sets count only the switches that differ.
    """
    switched = [i for i in range(len(start)) if start[i] != end[i]]
    turned = [
        frozenset(s)
        for n in range(len(switched) + 1)
        for s in itertools.combinations(range(len(switched)), n)
    ]
    cells = []
    for s in turned:
        on = {switched[j] for j in s}
        llama, mamba, *setting = (end[i] if i in on else start[i] for i in range(len(start)))
        cells.append((("llama", llama, *setting), ("mamba", mamba, *setting)))
    if not all(cell in times for pair in cells for cell in pair):
        return None
    pairs = [times[llama] - times[mamba] for llama, mamba in cells]
    whole = pd.concat(pairs, axis=1).dropna()
    return dict(zip(turned, whole.to_numpy().T, strict=True)) if len(whole) else None


def _ends(times):
    """Every configuration whose two cells were measured, those first that are fastest for both of them together."""
    levels = {cell: float(logs.mean()) for cell, logs in times.items()}
    found = {
        (llama[1], mamba[1], *llama[2:]): levels[llama] + levels[mamba]
        for llama, mamba in itertools.product(levels, repeat=2)
        if (llama[0], mamba[0]) == ("llama", "mamba") and llama[2:] == mamba[2:]
    }
    return sorted(found, key=found.get)


def _stays(ends, end, i):
    """Why switch `i` has one position in the configuration `end`."""
    if ends[0][i] != end[i]:
        return (
            f"{NOT_VARIED}: {ends[0][i]} is faster, but not all combinations with it were measured"
        )
    return NOT_VARIED if len({e[i] for e in ends}) == 1 else f"{end[i]} is the best one as well"


def _times(curves, seqlen):
    found = {}
    for (setting, arch, impl), curve in curves.items():
        if seqlen in curve:
            usable = curve[seqlen][np.isfinite(curve[seqlen]) & (curve[seqlen] > 0)]
            if len(usable):
                found[arch, impl, setting.launch, setting.dtype] = np.log(usable)
    return found


def _logits(run):
    options = run.plan.get("options") or {}
    return options.get("logits") or ("all" if run.plan.get("protocol") == "paper" else "last")


def _described(configuration):
    llama, mamba, launch, dtype = configuration
    return f"llama {llama}, mamba {mamba}, {dtype}, {launch}"


def _estimate(effect):
    mean, low, high = t_interval(effect)
    return {
        "effect": mean,
        "factor": math.exp(mean),
        "low": math.exp(low),
        "high": math.exp(high),
        "rounds": len(effect),
    }


def _row(switch, before="", after="", reason="", **estimate):
    numbers = dict.fromkeys(("effect", "factor", "low", "high"), math.nan) | {"rounds": 0}
    return {
        "switch": switch,
        "before": before,
        "after": after,
        **numbers,
        **estimate,
        "reason": reason,
    }
