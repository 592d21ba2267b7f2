"""From the paper's pairing to the best known one: how much of the way each switch makes.

The pairing that the paper must have measured (LLaMA with eager attention, Mamba with a fused scan, fp32, eager launch)
and the best one differ in a few switches: LLaMA's mixer, Mamba's mixer, the launch, the dtype. With the switches of a
set S turned, the ratio is v(S) = ln(t_llama / t_mamba). What a switch adds depends on those that were turned before
it, so it gets its mean over all orders, the Shapley value (Shapley 1953):

    phi_i = sum over S without i of |S|! (k - |S| - 1)! / k! (v(S + i) - v(S))

The contributions add up to v(all) - v(none) exactly. They need the times of all 2^k combinations in the same rounds; a
switch without them, and one with a single position, is "not varied in this run". Positions of the logits are an
option of a whole run, so they are a switch only between two runs on the same machine, weights and tokens. Each ratio is
then of one run, and their rounds are put side by side by number: as they are independent, the interval is as wide as
it must be.
"""

import itertools
import math

import numpy as np
import pandas as pd

from analysis.effects import GROUP
from analysis.load import PAIR, logits_of
from analysis.ratios import paper_pairing
from bench.compare import machine_differences
from bench.verdict import t_interval

SWITCHES = ("llama mixer", "mamba mixer", "launch", "dtype", "logits")
LAUNCH, DTYPE, LOGITS = "eager", "fp32", "all"  # of the paper
PREFILL = "prefill"
WEIGHTS = ("preset", "seed", "checkpoint", "vocabulary")  # options that decide the weights
START, END = "paper's pairing", "best pairing"
NOT_VARIED = "not varied in this run"
ONE_OPTION = f"{NOT_VARIED}: an option of all its cells"
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


def shapley_table(results, other=None):
    """One row per preset, batch, mode, seqlen and switch, after the pairing that it starts from and before its end.

    Columns: the group; switch ("paper's pairing", the switches, "logits", "best pairing"), before, after (its two
    positions; of a pairing its description in `after`), effect (the contribution to ln(llama / mamba); of a pairing
    that logarithm itself), factor (its exponential) with low and high (95 % over rounds), rounds, reason: why there is
    none. The effect of "best pairing" is that of "paper's pairing" plus the contributions.

    Args:
        other: Results of a run that differs in its logits (`other_logits` says so), or None.
    """
    rows = []
    pair = results.cells[results.cells.arch.isin(PAIR)]
    for group, cells in pair.groupby(GROUP, sort=False):
        sides = [results, other] if other is not None and group[-1] == PREFILL else [results]
        curves = [(logits_of(side.run), _of(side.curves["time"], group)) for side in sides]
        for seqlen in sorted(cells.seqlen.unique()):
            key = dict(zip(GROUP, group, strict=True)) | {"seqlen": seqlen}
            times = {}
            for logits, found in curves:
                times |= _times(found, seqlen, logits)
            walk = _walk(times)
            if group[-1] != PREFILL:  # a decoded token and training have no choice
                walk = [row for row in walk if row["switch"] != "logits"]
            elif len(walk) == 1:
                walk.append(_row("logits", curves[0][0], reason=ONE_OPTION))
            rows += [key | row for row in walk]
    return pd.DataFrame(rows, columns=COLUMNS)


def other_logits(a, b):
    """Why the logits cannot be a switch between two runs, in one sentence; empty if they can."""
    if logits_of(a) == logits_of(b):
        return f"both computed the logits of the same positions ({logits_of(a)})"
    if different := machine_differences(a.machine, b.machine):
        return f"their machines differ ({different})"
    for name in WEIGHTS:
        x, y = ((run.plan.get("options") or {}).get(name, run.plan.get(name)) for run in (a, b))
        if x != y:
            return f"their models differ ({name} {x} and {y})"
    x, y = ((run.plan.get("tokens") or {}).get("sha256") for run in (a, b))
    return "" if x == y else "their tokens differ"


def _of(curves, group):
    """The curves of the pair in a preset, batch and mode."""
    key = lambda setting: (setting.preset, setting.batch, setting.mode)
    return {n: curve for n, curve in curves.items() if key(n[0]) == group and n[1] in PAIR}


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
    """The rows of one length; `times` is {(arch, impl, launch, dtype, logits): logarithms by round}."""
    positions = {cell[-1] for cell in times}
    logits = LOGITS if LOGITS in positions else next(iter(positions), LOGITS)
    paper = [LAUNCH, DTYPE, logits]
    impls = {
        arch: {impl for a, impl, *setting in times if (a, setting) == (arch, paper)}
        for arch in PAIR
    }
    pairing = paper_pairing(impls)
    if pairing is None:
        where = f"in {DTYPE} with launch {LAUNCH}"
        return [_row(START, reason=f"needs a time of llama under hf and of mamba {where}")]
    start = (*pairing, *paper)
    ends = _ends(times)
    reachable = ((end, _corners(times, start, end)) for end in ends)
    end, values = next(((e, v) for e, v in reachable if v is not None), (start, None))
    if values is None:
        return [
            _row(START, after=_described(start, positions), reason="llama and mamba share no round")
        ]
    switched = [i for i in range(len(SWITCHES)) if start[i] != end[i]]
    rows = [_row(START, after=_described(start, positions), **_estimate(values[frozenset()]))]
    for i, effect in zip(switched, shapley(values, len(switched)), strict=True):
        rows.append(_row(SWITCHES[i], start[i], end[i], **_estimate(effect)))
    for i in range(len(SWITCHES)):
        if i not in switched:
            only = SWITCHES[i] == "logits" and len(positions) == 1
            rows.append(
                _row(SWITCHES[i], start[i], reason=ONE_OPTION if only else _stays(ends, end, i))
            )
    whole = values[frozenset(range(len(switched)))]
    return [*rows, _row(END, after=_described(end, positions), **_estimate(whole))]


def _corners(times, start, end):
    """{set of turned switches: ln ratio by round} between two configurations; None if a combination lacks times.

    A configuration is (llama_impl, mamba_impl, launch, dtype, logits); the sets count only the switches that differ.
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


def _times(curves, seqlen, logits):
    found = {}
    for (setting, arch, impl), curve in curves.items():
        if seqlen in curve:
            usable = curve[seqlen][np.isfinite(curve[seqlen]) & (curve[seqlen] > 0)]
            if len(usable):
                found[arch, impl, setting.launch, setting.dtype, logits] = np.log(usable)
    return found


def _described(configuration, positions):
    """A configuration in words, with its logits where there are several."""
    llama, mamba, launch, dtype, logits = configuration
    text = f"llama {llama}, mamba {mamba}, {dtype}, {launch}"
    return f"{text}, logits {logits}" if len(positions) > 1 else text


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
