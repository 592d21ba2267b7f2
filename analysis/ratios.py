"""The ratio llama / mamba for every pair of implementations: what the architecture does and what the choice of
implementation does to it.

Above 1 Mamba is better (less time, less memory). Three places of the matrix have names: the diagonal (both under
the same implementation), best against best, and the paper's pairing. Further architectures stand on Mamba's side by
their name (`mamba2 cpu`), in none of these places; `against` says what theirs would be.
"""

import numpy as np
import pandas as pd

from analysis.load import PAIR, Setting, named, pairs, side, versus
from bench.verdict import COUNTS, exact, ratio_interval, verdict

PAPER_LLAMA = "hf"  # eager attention
# a fused scan is the only way to the paper's times; the nearest one that was measured stands in for cuda's
PAPER_MAMBA = ("cuda", "triton", "cpu", "torch", "hf")
WINNER = {
    "slower": "mamba",
    "faster": "llama",
    "equivalent": "equivalent",
    "undecided": "undecided",
}


def ratio_matrix(curves, measure):
    """One row per setting, seqlen and pair of implementations.

    Columns: setting, seqlen, measure, llama_impl, mamba_impl, ratio (llama / mamba), low, high (95 %), rounds,
    winner ("mamba", or the further architecture that stands there, "llama", "equivalent" or "undecided"), diagonal,
    best, paper (flags of the pair), reason.
    inf: llama alone ran out of memory; 0: the other side alone did; nan: see reason.
    """
    rows = []
    for setting, llama, mamba in pairs(curves):
        a, b = side(curves, setting, "llama", llama), side(curves, setting, "mamba", mamba)
        winners = WINNER | {"slower": named(mamba)[0]}
        for seqlen in sorted(set(a) & set(b)):
            found = ratio_interval(a[seqlen].to_dict(), b[seqlen].to_dict())
            if measure in COUNTS:
                found = exact(found)
            rows.append(
                {
                    **setting._asdict(), "seqlen": seqlen, "measure": measure,
                    "llama_impl": llama, "mamba_impl": mamba,
                    "ratio": found.ratio, "low": found.low, "high": found.high, "rounds": found.n,
                    "winner": winners[verdict(found)], "diagonal": llama == mamba, "best": False,
                    "paper": False, "reason": found.reason,
                }
            )  # fmt: skip
    columns = [
        *Setting._fields,
        "seqlen",
        "measure",
        "llama_impl",
        "mamba_impl",
        "ratio",
        "low",
        "high",
    ]
    columns += ["rounds", "winner", "diagonal", "best", "paper", "reason"]
    matrix = pd.DataFrame(rows, columns=columns)
    matrix["best"] = _is_best(matrix, curves) & matrix.index.isin(versus(matrix, "mamba").index)
    _mark_paper(matrix)
    return matrix.sort_values([*Setting._fields, "seqlen"], kind="stable", ignore_index=True)


def against(table, curves, arch):
    """The rows of a table of pairs in which `arch` stands beside llama, its own `diagonal` and `best` marked.

    Args:
        table: what `ratio_matrix` or `analysis.identity.identity_table` gives.
        curves: those that its ratios are of.
    """
    rows = versus(table, arch)
    if arch in PAIR:
        return rows
    same = rows.llama_impl == [named(label)[1] for label in rows.mamba_impl]
    return rows.assign(diagonal=same, best=_is_best(rows, curves))


def spread(matrix):
    """How far the implementation moves the answer about the pair: one row per setting and seqlen.

    Columns: setting, seqlen, measure, pairs (with a finite ratio), lowest, highest, factor (highest / lowest),
    diagonal_lowest, diagonal_highest (the same implementation on both sides), flips (the lowest and the highest
    ratio have different winners), out_of_memory (pairs whose ratio is 0 or infinite).
    """
    rows = []
    pair = versus(matrix, "mamba")
    for key, group in pair.groupby([*Setting._fields, "seqlen", "measure"], sort=False):
        finite = group[np.isfinite(group.ratio) & (group.ratio > 0)]
        diagonal = finite[finite.diagonal].ratio
        low, high = finite.ratio.min(), finite.ratio.max()
        rows.append(
            dict(zip([*Setting._fields, "seqlen", "measure"], key, strict=True))
            | {
                "pairs": len(finite), "lowest": low, "highest": high, "factor": high / low,
                "diagonal_lowest": diagonal.min(), "diagonal_highest": diagonal.max(),
                "flips": {"mamba", "llama"} <= set(group.winner),
                "out_of_memory": int((np.isinf(group.ratio) | (group.ratio == 0)).sum()),
            }
        )  # fmt: skip
    columns = [*Setting._fields, "seqlen", "measure", "pairs", "lowest", "highest", "factor"]
    columns += ["diagonal_lowest", "diagonal_highest", "flips", "out_of_memory"]
    return pd.DataFrame(rows, columns=columns)


def best(curves, setting, arch, seqlen):
    """The implementation of `arch` with the lowest mean logarithm at `seqlen`, one that ran out of memory only
    where all did; None if none has a value."""
    alike = {key: curve for key, curve in curves.items() if key[:2] == (setting, arch)}
    return fastest(alike).get((setting, arch, seqlen))


def fastest(curves):
    """{(setting, arch, seqlen): the implementation that `best` finds there} of all curves."""
    levels = {}
    for (setting, arch, impl), curve in curves.items():
        usable = curve.loc[:, ~(curve <= 0).any()]
        for seqlen, level in np.log(usable).mean().dropna().items():
            levels.setdefault((setting, arch, seqlen), {})[impl] = level
    return {key: min(found, key=found.get) for key, found in levels.items()}


def paper_pairing(impls):
    """(llama_impl, mamba_impl) nearest to what the paper must have run, of {"llama": [...], "mamba": [...]}."""
    if PAPER_LLAMA not in impls["llama"]:
        return None
    mamba = next((impl for impl in PAPER_MAMBA if impl in impls["mamba"]), None)
    return (PAPER_LLAMA, mamba) if mamba else None


def _is_best(matrix, curves):
    tops = fastest(curves)
    chosen = []
    for row in matrix.to_dict("records"):
        setting = Setting(*(row[name] for name in Setting._fields))
        sides = ("llama", row["llama_impl"]), named(row["mamba_impl"])
        chosen.append(all(tops.get((setting, a, row["seqlen"])) == impl for a, impl in sides))
    return np.array(chosen, dtype=bool)


def _mark_paper(matrix):
    prefill = matrix[matrix["mode"] == "prefill"]  # the paper measured nothing else
    for _, group in prefill.groupby(list(Setting._fields)):
        impls = {arch: set(group[f"{arch}_impl"]) for arch in ("llama", "mamba")}
        if (chosen := paper_pairing(impls)) is not None:
            here = (group.llama_impl == chosen[0]) & (group.mamba_impl == chosen[1])
            matrix.loc[group.index[here], "paper"] = True
