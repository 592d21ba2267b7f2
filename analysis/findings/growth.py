"""The paper's claims about growth with length, and about the lengths that fit: an `Entry` each."""

import math

import numpy as np
import pandas as pd

from analysis import paper
from analysis.findings.costs import longest, parts, repeat
from analysis.findings.entry import CANNOT, DEPENDS, NOTHING, STANDS, Entry, capital, sides
from analysis.load import PAIR, logits_of, of
from analysis.render import markdown
from analysis.scaling import means, r_squared
from analysis.wording import TITLES, interval, listed, number
from bench.memory_model import peak_bytes
from bench.plan import Cell
from bench.slices import layers_of, sliced_sizes
from bench.verdict import t_interval

GIB, CARD = 1 << 30, paper.CARD
STEEP = 1.5  # a slope from here on is nearer to a quadratic's
LINEAR = 0.1  # distance of a slope from 1 that counts as linear
LONG = "python -m bench.long_context"


def scaling(given):
    """Claim 5: quadratic and linear."""
    timed = given.main
    curves = given.curves
    slopes = {key: octave(where.curve("time", *key)) for key, where in curves.items()}
    rows = [_curve(curves[key], *key, slope) for key, slope in slopes.items()]
    published = f"quadratic (R² {paper.R2_LLAMA}); linear (R² {paper.R2_MAMBA})"
    cells = [_slopes(slopes, pairs) for pairs in parts(timed, "time")]
    text = [
        "Slopes d ln y / d ln L over the last octave of each curve (1: linear, 2: quadratic, judged by which is "
        "nearer; memory beyond the weights), the model that AICc chooses among five, and R² as the paper quotes it. R² "
        "hardly tells a line from a quadratic; the paper's is of 3 coefficients and 4 lengths, 1 degree of freedom:",
        markdown(pd.DataFrame(rows)).rstrip(),
    ]
    what = "growth of time, LLaMA; Mamba (slopes)"
    yield Entry(
        "Quadratic against linear growth",
        [(what, published, *cells)],
        _growth_verdict(slopes, timed.matrix("time").seqlen.max()),
        text,
        "; ".join(dict.fromkeys(where.source.repeat() for where in [timed, *curves.values()])),
    )


def out_of_memory(given):
    """Claim 6: the Transformer runs out of memory at 8,192 tokens."""
    timed, length = given.main, paper.OUT_OF_MEMORY
    cells = of(timed.results.cells, timed.setting)
    out = cells[(cells.arch == "llama") & (cells.status == "oom")]
    needs = {impl: _needed(given, timed, "llama", impl, length) for impl in timed.impls("llama")}
    shown = {impl: f"`{impl}` {_gib(*need)}" for impl, need in needs.items()}
    measured = {impl for impl, (_, how) in needs.items() if how != "predicted"}
    table = timed.results.paper
    rows = table[table.claim.str.startswith("length at which the Transformer")]
    if len(out):
        at = f"{out.seqlen.min():,} ({listed(sorted({f'`{i}`' for i in out.impl}))})"
        said = STANDS if out.seqlen.min() <= length else f"it runs out at {out.seqlen.min():,}"
    else:
        said, at = CANNOT if "hf" not in measured else "not reproduced", ""
    text = [f"Here LLaMA ran out of memory at {at}."] if at else []
    sentences = [f"{capital(reason)}." for reason in _reasons(rows)]
    text += [" ".join([*sentences, *_model_error(timed)])] * bool(sentences)
    text.append(
        f"The paper names A100s (40 or 80 GB) and, in its conclusion, a card of 16 GB; what ran out is unknown"
        f"{_kept(timed)}."
    )
    what, published = f"peak of LLaMA at {length:,}, weights included", "out of memory"
    fused = "<br>".join(shown[impl] for impl in shown if impl != "hf") or NOTHING
    least = min(needs, key=lambda impl: _order(needs[impl][0]))
    row = (what, published, shown.get("hf", NOTHING), fused, shown[least])
    yield Entry(f"Out of memory at {length:,} tokens", [row], said, text, repeat(given, timed))


def reach(given):
    """Claim 7: Mamba goes beyond 32,000 tokens, as if the Transformer did not."""
    timed = given.main
    ran = {arch: _longest(given, arch) for arch in PAIR}
    length = 32_768
    needs = {arch: _least(given, timed, arch, length) for arch in PAIR}
    shown = [f"{TITLES[a]} {_gib(*need[1])} (`{need[0]}`)" for a, need in needs.items() if need]
    text = [
        f"The paper measured no more than {paper.OUT_OF_MEMORY:,} tokens. Here ran, in one pass or in chunks: "
        + "; ".join(
            f"{TITLES[a]} {n:,} tokens ([`{name}`]({name}))" for a, (n, name) in ran.items() if n
        )
        + "."
    ]
    if len(shown) == len(PAIR):
        most = max(need[1][0] for need in needs.values())
        text.append(
            f"Peak at {length:,} tokens under the implementation that needs least: {'; '.join(shown)}. So both "
            f"{'fit' if most <= CARD else 'do not fit'} the smallest card that the paper names ({CARD / GIB:.0f} GiB)."
        )
    far = {arch for arch, (n, _) in ran.items() if n > paper.REACH}
    if not far:
        said = CANNOT
        text.append(
            f"Beyond {paper.REACH:,} tokens nothing was measured: needs `{LONG} --seqlens {length}`."
        )
    else:
        said = "not peculiar to Mamba" if "llama" in far else STANDS
        said = said if "mamba" in far else "LLaMA alone went there"
    tokens = "; ".join(f"{TITLES[a]} {n:,} ran" for a, (n, _) in ran.items() if n) or NOTHING
    rows = [("longest context", f"Mamba > {paper.REACH:,}", NOTHING, tokens, NOTHING)]
    names = dict.fromkeys(name for _, name in ran.values())
    again = [s.repeat() for s in given.timed if s.name in names]
    again += [_long_command(name, given) for name, _ in given.long if name in names]
    yield Entry(f"Mamba beyond {paper.REACH:,} tokens", rows, said, text, "; ".join(again))


def octave(curve):
    """Local slope d ln y / d ln L of a curve (rounds x lengths) over its last octave: (slope, low, high), 95 %."""
    logs = np.log(curve.where(np.isfinite(curve) & (curve > 0))).dropna(axis=1, how="all")
    if logs.shape[1] < 2:
        return (math.nan,) * 3
    top = logs.columns.max()
    base = max((n for n in logs if n <= top / 2), default=logs.columns.min())
    return t_interval(((logs[top] - logs[base]) / math.log(top / base)).dropna())


def _curve(timed, arch, impl, slope):
    """A row of the table of growth."""
    memory = timed.curve("memory", arch, impl)
    fits = of(timed.results.fits["time"], timed.setting)
    chosen = fits[(fits.arch == arch) & (fits.impl == impl) & fits.chosen]
    points = means(timed.curve("time", arch, impl))
    squared = [r_squared(*points, degree)[0] for degree in (1, 2)]
    model = "-"
    for r in chosen.itertuples():
        model = f"`{r.model}`"
        model += f", {r.share_c:.0%} of it c L^2" if r.share_c else ""
        model += f", p = {number(r.p)}" if math.isfinite(r.p) else ""
    return {
        "": f"{TITLES[arch]} `{impl}`",
        "slope of time": interval(*slope),
        "slope of memory": number(octave(memory)[0]),
        "tokens": f"{memory.columns.min():,}-{memory.columns.max():,}",
        "chosen model of time": model,
        "R² of a line": "-" if math.isnan(squared[0]) else f"{squared[0]:.4f}",
        "R² of a quadratic": "-" if math.isnan(squared[1]) else f"{squared[1]:.4f}",
    }


def _slopes(slopes, rows):
    texts = []
    for row in rows.itertuples():
        pair = [interval(*slopes[a, getattr(row, f"{a}_impl")]) for a in PAIR]
        name = f"`{row.llama_impl}`" if row.diagonal else sides(row)
        texts.append(f"{name} {'; '.join(pair)}")
    return "<br>".join(texts) or NOTHING


def _growth_verdict(slopes, top):
    """Whether LLaMA has become quadratic, and Mamba is linear, under each implementation."""
    known = {key: slope for key, slope in slopes.items() if math.isfinite(slope[1])}
    quadratic = {impl for (arch, impl), s in known.items() if arch == "llama" and s[0] >= STEEP}
    llama = {impl for arch, impl in known if arch == "llama"}
    bent = [
        f"`{impl}`"
        for (arch, impl), (slope, low, high) in known.items()
        if arch == "mamba" and not (low <= 1 <= high or abs(slope - 1) <= LINEAR)
    ]
    if not known:
        return CANNOT
    if quadratic == llama:
        said = STANDS
    else:
        said = DEPENDS if quadratic else f"LLaMA nearer to linear up to {top:,}"
    return said + (f"; Mamba not linear under {listed(bent)}" if bent else "; Mamba linear")


def _needed(given, timed, arch, impl, seqlen):
    """(bytes with the weights, how that is known) of a prefill; nan where it is not."""
    for source, how in ((timed, "measured"), (given.paper_protocol, "measured by its protocol")):
        curves = {} if source is None else source.results.curves["peak_memory"]
        curve = curves.get((source.setting, arch, impl)) if curves else None
        if curve is not None and seqlen in curve and curve[seqlen].notna().any():
            return float(curve[seqlen].median()), how
    return _predicted(timed, arch, impl, seqlen), "predicted"


def _predicted(timed, arch, impl, seqlen):
    """Bytes that the model of memory gives; nan where plan.json lacks the sizes."""
    plan, s = timed.source.run.plan, timed.setting
    size = (plan.get("architectures") or {}).get(arch, {}).get("sizes")
    if not size:
        return math.nan
    cell = Cell(arch, impl, s.preset, seqlen, s.batch, s.dtype, s.mode, s.launch)
    chunk = (plan.get("options") or {}).get("chunk")
    try:
        return peak_bytes(
            cell, sliced_sizes(size, layers_of(s.preset)), logits_of(timed.source.run), chunk
        )
    except KeyError:  # plans of earlier versions have fewer sizes
        return math.nan


def _kept(timed):
    """What keeping all attention weights would add, which its other metrics need; empty without the sizes."""
    size = (timed.source.run.plan.get("architectures") or {}).get("llama", {}).get("sizes") or {}
    if not {"layers", "heads"} <= set(size):
        return ""
    kept = 4 * size["layers"] * size["heads"] * paper.OUT_OF_MEMORY**2
    return f", but keeping all attention weights, as its other metrics need, would add {number(kept / GIB)} GiB"


def _least(given, timed, arch, seqlen):
    """(implementation, (bytes, kind)) of the implementation that needs least; None where that is unknown."""
    needs = {impl: _needed(given, timed, arch, impl, seqlen) for impl in timed.impls(arch)}
    known = {impl: need for impl, need in needs.items() if math.isfinite(need[0])}
    return min(known.items(), key=lambda item: item[1][0], default=None)


def _model_error(timed):
    """How far the model of memory is from the longest peaks that were measured."""
    ratios = []
    for impl in timed.impls("llama"):
        curve = timed.curve("peak_memory", "llama", impl)
        lengths, values = means(curve)
        if len(lengths):
            ratios.append(_predicted(timed, "llama", impl, int(lengths[-1])) / values[-1])
    ratios = [r for r in ratios if math.isfinite(r)]
    if ratios:
        worst = max(abs(r - 1) for r in ratios)
        yield (
            f"Predictions are of `bench.memory_model`, fitted on CPUs: at most {worst:.1%} off the longest here."
        )


def _longest(given, arch):
    """(tokens, where) of the longest prefill of an architecture in all runs; (0, "") without any."""
    found = [(longest(s.results.cells, arch), s.name) for s in given.timed]
    found += [
        (row["seqlen"], name) for name, rows in given.long for row in rows if row["arch"] == arch
    ]
    return max((pair for pair in found if math.isfinite(pair[0])), default=(0, ""))


def _long_command(name, given):
    """The call of bench.long_context that measures the longest rows of a folder."""
    rows = dict(given.long)[name]
    top = max(rows, key=lambda row: row["seqlen"])
    archs, impls = (",".join(dict.fromkeys(row[n] for row in rows)) for n in ("arch", "impl"))
    command = (
        f"{LONG} --seqlens {top['seqlen']} --arch {archs} --impl {impls} --preset {top['preset']} "
    )
    command += f"--dtype {top['dtype']}" + (f" --chunk {top['chunk']}" if top["chunk"] else "")
    return f"`{command}` ([`{name}`]({name}))"


def _reasons(rows):
    for reason in "; ".join(rows.reason).split("; "):
        if reason and reason != "agrees" and not reason.startswith("no reason found"):
            yield reason


def _gib(size, kind):
    if math.isinf(size):
        return f"out of memory ({kind})"
    return "unknown" if math.isnan(size) else f"{number(size / GIB)} GiB ({kind})"


def _order(size):
    return (math.isnan(size), size)
