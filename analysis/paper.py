"""The paper's computational claims (arXiv 2601.01237) beside what this run measured, with the reasons of a difference.

A reason is printed only where the data of the run call for it; a difference without one says so.
"""

import math

import numpy as np
import pandas as pd

from analysis.load import PAIR, Setting, of, versus
from analysis.ratios import best
from analysis.scaling import means, r_squared
from analysis.wording import between, crossing, pairing

LENGTH = 4096  # of the paper's two ratios
TIME_RATIO, MEMORY_RATIO = 10.67, 12.46  # Transformer / Mamba
OUT_OF_MEMORY = 8192
SMALLEST = 512
TIME_CROSSOVER, MEMORY_CROSSOVER = 370, 220
R2_LLAMA, R2_MAMBA = 0.9987, 0.9994
PARAMETERS = 50e6
REACH = 32_000
PRESET, DTYPE, BATCH = "paper-50m", "fp32", 1
CARD = 16 << 30  # its conclusion speaks of a 16 GB GPU
CLOSE = 0.05  # relative difference that counts as agreement
COLUMNS = [
    "claim",
    "paper",
    "measured",
    "value",
    "low",
    "high",
    "pairing",
    "best_pairing",
    "reason",
]


def beside(results):
    """One row per claim: claim, paper, measured (text), value, low, high, pairing, best_pairing, reason.

    The paper measured prefill alone, so a run without it has no row.

    Args:
        results: `analysis.summary.Results`.
    """
    cells = results.cells
    if len(cells) and not (cells["mode"] == "prefill").any():
        return pd.DataFrame(columns=COLUMNS)
    setting = nearest_setting(results)
    rows = [_parameters(results)]
    if setting is not None:
        here = _Here(results, setting)
        rows = [
            here.ratio("time", "time", TIME_RATIO),
            here.ratio("memory", "peak_memory", MEMORY_RATIO),
            here.out_of_memory(),
            here.crossover("time", "time", TIME_CROSSOVER),
            here.crossover("memory", "peak_memory", MEMORY_CROSSOVER),
            here.r2("llama", 2, R2_LLAMA),
            here.r2("mamba", 1, R2_MAMBA),
            here.reach(),
            *rows,
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


class _Here:
    """The claims that need one setting and the paper's pairing of implementations in it."""

    def __init__(self, results, setting):
        self.results, self.setting = results, setting
        matrix = results.matrix["time"]
        rows = of(matrix, setting)
        rows = rows[rows.paper]
        self.llama = rows.llama_impl.iloc[0] if len(rows) else None
        self.mamba = rows.mamba_impl.iloc[0] if len(rows) else None
        self.pairing = f"llama {self.llama} / mamba {self.mamba}" if len(rows) else ""

    def ratio(self, name, measure, paper):
        claim = f"{name}, Transformer / Mamba at {LENGTH:,} tokens"
        rows = self._matrix(measure)
        chosen = rows[rows.paper & rows.ratio.notna()]
        if chosen.empty:
            return _row(claim, f"{paper}", "not measured", reason=_NO_PAIRING)
        nearest = (np.log(chosen.seqlen.astype(float)) - math.log(LENGTH)).abs().idxmin()
        row = chosen.loc[nearest]
        tops = rows[rows.best & (rows.seqlen == row.seqlen)]
        best_text = f"{between(tops.iloc[0])} ({pairing(tops.iloc[0])})" if len(tops) else ""
        measured = between(row)
        if row.seqlen != LENGTH:
            measured += f" at {row.seqlen:,}"
        reasons = [
            *([f"{LENGTH:,} tokens were not measured"] if row.seqlen != LENGTH else []),
            *self._machine(),
            *self._pairing(row.seqlen, measure),
            *(self._weights(row) if name == "memory" else []),
        ]
        return _row(
            claim, f"{paper}", measured, row.ratio, row.low, row.high, self.pairing, best_text,
            _explain(paper, row.ratio, row.low, row.high, reasons),
        )  # fmt: skip

    def out_of_memory(self):
        claim, paper = "length at which the Transformer runs out of memory", f"{OUT_OF_MEMORY:,}"
        cells = self._cells("llama", self.llama or "hf")
        tried = cells[cells.status.isin(["ok", "oom"])]
        if tried.empty:
            return _row(claim, paper, "not measured", reason="llama hf was not measured")
        out, longest = tried[tried.status == "oom"].seqlen, int(tried.seqlen.max())
        if len(out):
            first = int(out.min())
            reasons = self._machine()
            return _row(
                claim, paper, f"{first:,}", first, pairing=f"llama {self.llama or 'hf'}",
                reason=_explain(OUT_OF_MEMORY, first, math.nan, math.nan, reasons),
            )  # fmt: skip
        at = tried[tried.seqlen == longest].iloc[0]
        peak = at.memory_bytes + at.weights_bytes
        reasons = []
        if longest < OUT_OF_MEMORY:
            reasons.append(f"{OUT_OF_MEMORY:,} tokens were not measured")
        elif peak < CARD:
            stored = 8 * 8 * OUT_OF_MEMORY**2 * 4 / 2**30
            reasons.append(
                f"it peaks at {peak / 2**30:.1f} GiB, within the 16 GB card of the paper; keeping the attention "
                f"weights of its 8 layers and 8 heads at {OUT_OF_MEMORY:,} tokens would add {stored:.0f} GiB"
            )
        if (memory := self._device_memory()) and math.isfinite(peak):
            reasons.append(
                f"{peak / 2**30:.2g} GiB of {memory / 2**30:.3g} GiB used at {longest:,}"
            )
        return _row(
            claim, paper, f"none up to {longest:,}", pairing=f"llama {self.llama or 'hf'}",
            reason="; ".join(reasons) or _UNEXPLAINED,
        )  # fmt: skip

    def crossover(self, name, measure, paper):
        claim = f"crossover of {name}, tokens"
        row = self._crossover(measure)
        if row is None:
            return _row(claim, f"~{paper}", "not measured", reason=_NO_PAIRING)
        reasons = []
        lengths = self._matrix(measure).seqlen
        if paper < SMALLEST:
            reasons.append(
                f"the paper's lies below its smallest length of {SMALLEST}: extrapolated"
            )
        if row.answer not in ("crossover", "several"):
            if lengths.min() > paper:
                reasons.append(f"measured from {lengths.min():,} tokens only")
        elif row.extrapolated:
            reasons.append("extrapolated here too, from the fitted models")
        reasons += [*self._machine(), *self._pairing(int(lengths.max()), measure)]
        if measure == "peak_memory" and (apart := self._crossover("memory")) is not None:
            reasons.append(f"with the weights, as in the paper, and without them {crossing(apart)}")
        return _row(
            claim, f"~{paper}", crossing(row), row.seqlen, row.low, row.high, self.pairing,
            reason=_explain(paper, row.seqlen, row.low, row.high, reasons),
        )  # fmt: skip

    def r2(self, arch, degree, paper):
        shape = "quadratic" if degree == 2 else "line"
        claim = f"R^2 of a {shape} through the times of {arch}"
        impl = getattr(self, arch)
        curve = self.results.curves["time"].get((self.setting, arch, impl))
        if curve is None:
            return _row(claim, f"{paper}", "not measured", reason=_NO_PAIRING)
        lengths, values = means(curve)
        value, dof = r_squared(lengths, values, degree)
        if math.isnan(value):
            reason = f"{len(lengths)} lengths are too few for {degree + 1} coefficients"
            return _row(claim, f"{paper}", "-", pairing=f"{arch} {impl}", reason=reason)
        theirs = (4 if arch == "llama" else 5) - degree - 1
        reasons = [f"degrees of freedom: {theirs} in the paper, {dof} here"]
        if arch == "llama":
            line, _ = r_squared(lengths, values, 1)
            reasons.append(
                f"R^2 hardly tells: a straight line through the same points has {line:.4f}"
            )
        return _row(
            claim,
            f"{paper}",
            f"{value:.4f}",
            value,
            pairing=f"{arch} {impl}",
            reason="; ".join(reasons),
        )

    def reach(self):
        cells = self.results.cells
        cells = cells[
            (cells.arch == "mamba") & (cells.status == "ok") & (cells["mode"] == "prefill")
        ]
        claim, paper = "longest context of Mamba, tokens", f"> {REACH:,}"
        if cells.empty:
            return _row(claim, paper, "not measured", reason="no Mamba cell was measured")
        top = cells.loc[cells.seqlen.idxmax()]
        reason = f"never tested in the paper beyond {OUT_OF_MEMORY:,}"
        if top.seqlen < REACH:
            reason += f"; not tested here beyond {top.seqlen:,}"
        return _row(
            claim,
            paper,
            f"{top.seqlen:,} ran",
            top.seqlen,
            pairing=f"mamba {top.impl}",
            reason=reason,
        )

    def _matrix(self, measure):
        return versus(of(self.results.matrix[measure], self.setting), "mamba")

    def _cells(self, arch, impl):
        cells = of(self.results.cells, self.setting)
        return cells[(cells.arch == arch) & (cells.impl == impl)]

    def _crossover(self, measure):
        """The row of the paper's pairing: by interpolation, or by the fits where that finds none."""
        table = of(self.results.crossovers[measure], self.setting)
        table = table[(table.llama_impl == self.llama) & (table.mamba_impl == self.mamba)]
        found = table[table.answer.isin(["crossover", "several"])]
        table = found if len(found) else table
        return table.iloc[0] if len(table) else None

    def _machine(self):
        gpu = self.results.run.machine.get("gpu")
        if not gpu:
            yield "a CPU here, a GPU in the paper"
        elif "A100" not in gpu["name"]:
            yield f"{gpu['name']} here, an A100 in the paper"
        s = self.setting
        for name, here, there in (
            ("preset", s.preset, PRESET), ("dtype", s.dtype, DTYPE), ("batch", s.batch, BATCH),
            ("launch", s.launch, "eager"),
        ):  # fmt: skip
            if here != there:
                yield f"{name} {here} here, {there} in the paper"

    def _pairing(self, seqlen, measure):
        if self.mamba == "hf":
            yield "Mamba's scan is transformers' sequential one here, and must have been fused in the paper"
        elif self.mamba != "cuda":
            yield f"Mamba's fused scan is `{self.mamba}` here, as `cuda` was not measured"
        curves = self.results.curves[measure]
        fastest = best(curves, self.setting, "llama", seqlen)
        if fastest in (None, self.llama):
            return
        levels = [
            curves[self.setting, "llama", impl][seqlen].dropna() for impl in (self.llama, fastest)
        ]
        if np.isinf(levels[1]).any():  # all of them ran out of memory
            return
        factor = math.exp(np.log(levels[0]).mean() - np.log(levels[1]).mean())
        if math.isinf(factor):
            yield f"eager attention runs out of memory at {seqlen:,}, where `{fastest}` does not"
        elif factor > 1.05:
            what = "time" if measure == "time" else "memory"
            yield f"eager attention takes {factor:.2g} times the {what} of `{fastest}` at {seqlen:,}"

    def _weights(self, row):
        apart = self._matrix("memory")
        same = apart[(apart.seqlen == row.seqlen) & apart.paper]
        if not math.isfinite(row.ratio) or not row.ratio:
            return
        if len(same) and abs(same.ratio.iloc[0] / row.ratio - 1) > CLOSE:
            yield f"with the weights, as in the paper, and without them {between(same.iloc[0])}"

    def _device_memory(self):
        machine = self.results.run.machine
        return (machine.get("gpu") or {}).get("memory_bytes") or machine.get("memory_bytes")


def _parameters(results):
    counts = results.run.plan.get("architectures") or {}
    counts = {arch: counts[arch] for arch in PAIR if arch in counts}
    claim, paper = "parameters of each model", f"{PARAMETERS / 1e6:.0f}M"
    if not counts:
        return _row(claim, paper, "not recorded", reason="plan.json has no parameter counts")
    measured = ", ".join(f"{arch} {c['total'] / 1e6:.1f}M" for arch, c in sorted(counts.items()))
    reasons = []
    if {"mamba", "llama"} <= set(counts):
        mamba, llama = counts["mamba"], counts["llama"]
        if llama["embedding"] == 2 * mamba["embedding"]:
            reasons.append("Mamba's output head is tied to its embedding and LLaMA's is not")
    others = [f"{arch} {c['other'] / 1e6:.1f}M" for arch, c in sorted(counts.items())]
    if any(abs(c["total"] / PARAMETERS - 1) > CLOSE for c in counts.values()):
        reasons.append("without embedding and head: " + ", ".join(others))
    return _row(claim, paper, measured, reason="; ".join(reasons) or "agrees")


_UNEXPLAINED = "no reason found in the data of this run"
_NO_PAIRING = "needs llama under hf, and Mamba under any implementation"


def _explain(paper, value, low, high, reasons):
    if low <= paper <= high or (math.isfinite(value) and abs(value / paper - 1) <= CLOSE):
        return "agrees"
    return "; ".join(r for r in reasons if r) or _UNEXPLAINED


def nearest_setting(results, mode="prefill"):
    """The setting of a mode that shares most with the paper's; None if nothing was measured in that mode."""
    settings = {setting for setting, _, _ in results.curves["time"] if setting.mode == mode}
    wanted = Setting(PRESET, BATCH, DTYPE, mode, "eager")
    score = lambda s: (sum(a == b for a, b in zip(s, wanted, strict=True)), str(s))
    return max(settings, key=score, default=None)


def _row(
    claim, paper, measured, value=math.nan, low=math.nan, high=math.nan, pairing="", best_pairing="", reason=""
):  # fmt: skip
    return dict(
        zip(
            COLUMNS,
            (claim, paper, measured, value, low, high, pairing, best_pairing, reason),
            strict=True,
        )
    )
