"""The paper's claims about time and memory, and what the runs add to them: an `Entry` each."""

import math
import re

import numpy as np

from analysis import paper
from analysis.findings.entry import (
    CANNOT,
    CLOSE,
    DEPENDS,
    NOTHING,
    STANDS,
    UNDECIDED,
    Entry,
    capital,
    in_words,
    missing,
    paired,
    same,
    sides,
    verdict,
    winner,
)
from analysis.load import MODES, PAIR, of
from analysis.paper import LENGTH, MEMORY_RATIO, TIME_RATIO
from analysis.wording import TITLES, between, crossing, number
from bench.verdict import COUNTS

MIB = 1 << 20
SWEEP = "python -m bench.sweep"
MAIN = f"{SWEEP} --seqlens 128,181,256,362,512,724,1024,1448,2048,2896,4096 --rounds 10"
WHAT = {
    "time": "time",
    "peak_memory": "peak memory, weights included",
    "memory": "peak memory beyond the weights",
}


def ratio_at_length(given):
    """Claims 1 and 2: the two ratios at 4,096 tokens."""
    timed = given.main
    yield Entry(
        f"Time ratio {TIME_RATIO} at {LENGTH:,} tokens",
        [_row(timed, "time", TIME_RATIO)],
        verdict(TIME_RATIO, *_held_equal(timed, "time")),
        [_measured(timed, "time"), *_by_the_paper(given, "time"), *_why(timed, "time, ")],
        repeat(given, timed),
    )
    peak, beyond = _held_equal(timed, "peak_memory"), _held_equal(timed, "memory")
    said = verdict(MEMORY_RATIO, *peak)
    if not winner(*beyond).startswith("Mamba"):
        fewer = winner(*peak).startswith("Mamba") and winner(*beyond).startswith("LLaMA")
        said = "only because its weights are fewer" if fewer else winner(*peak, *beyond)
    parameters = timed.results.paper.set_index("claim").loc["parameters of each model"]
    yield Entry(
        f"Memory ratio {MEMORY_RATIO} at {LENGTH:,} tokens",
        [_row(timed, "peak_memory", MEMORY_RATIO), _row(timed, "memory")],
        said,
        [
            _measured(timed, "peak_memory"),
            _measured(timed, "memory"),
            f"Parameters of each model: {parameters.measured} ({parameters.reason}).",
            *_by_the_paper(given, "peak_memory"),
            *_why(timed, "memory, "),
        ],
        repeat(given, timed),
    )


def crossovers(given):
    """Claims 3 and 4: the lengths from which on Mamba is better."""
    timed = given.main
    lengths = timed.matrix("time").seqlen
    below = (
        f"The paper's lies below its smallest length, {paper.SMALLEST} tokens, so it is an extrapolation of its fits. "
        f"Here {lengths.min():,} to {lengths.max():,} tokens were measured."
    )
    for title, claimed, measures in (
        (
            f"Crossover of time at about {paper.TIME_CROSSOVER} tokens",
            paper.TIME_CROSSOVER,
            ["time"],
        ),
        (
            f"Crossover of memory at about {paper.MEMORY_CROSSOVER} tokens",
            paper.MEMORY_CROSSOVER,
            ["peak_memory", "memory"],
        ),
    ):
        found = {m: _crossings(timed, m) for m in measures}
        rows, text = [], [below]
        for measure, (theirs, equal, best) in found.items():
            published = f"~{claimed} tokens" if measure == measures[0] else NOTHING
            rows.append(
                (f"crossover of {WHAT[measure]}", published, *map(_crossed, (theirs, equal, best)))
            )
            text += [
                f"In the paper's kind of pairing {WHAT[measure]} crosses at {crossing(row)} tokens, as published."
                for _, row in theirs
                if _is_near(claimed, row)
            ]
        _, equal, best = found[measures[0]]
        said = _crossing_verdict(claimed, [row for _, row in (*equal, *best)], lengths)
        text += _fitted(timed, measures[0])
        yield Entry(title, rows, said, text, timed.source.repeat())
        below = "The paper's lies below its smallest length as well."


def decoding_and_training(given):
    """What the paper did not measure: a token after a context, and a training step."""
    for mode, title in (
        ("decode", "Beyond the paper, decoding one token"),
        ("train", "Beyond the paper, training"),
    ):
        timed = given.mode(mode)
        what = MODES[mode].split(" (")[0]
        if timed is None:
            yield missing(title, f"time, {what}", NOTHING, f"{SWEEP} --mode {mode}")
            continue
        text = [_measured(timed, "time"), _measured(timed, "memory"), *_caches(timed)]
        rows = [_row(timed, "time", what=f"time, {what} at {timed.seqlen:,}")]
        said = winner(*_held_equal(timed, "time"))
        yield Entry(title, rows, said, text, timed.source.repeat())


def equal_size(given):
    """What remains where the two models have as many parameters."""
    title, timed = "Beyond the paper, models of equal size", given.equal_size
    if timed is None:
        yield missing(title, "time, equal size", NOTHING, f"{SWEEP} --preset matched-50m")
        return
    counts = timed.source.run.plan["architectures"]
    totals = [f"{TITLES[a]} {counts[a]['total'] / 1e6:.1f}M" for a in PAIR]
    where = f"{timed.setting.preset}, {timed.seqlen:,}"
    yield Entry(
        title,
        [_row(timed, m, what=f"{WHAT[m]}, {where}") for m in ("time", "peak_memory")],
        winner(*_held_equal(timed, "time")),
        [
            f"Parameters: {', '.join(totals)}.",
            *(_measured(timed, m) for m in ("time", "peak_memory")),
        ],
        timed.source.repeat(),
    )


def parts(timed, measure):
    """Rows of the ratio matrix at the length of `timed`: the paper's pairing, one implementation, best of both."""
    rows = timed.at(measure)
    return rows[rows.paper], rows[rows.diagonal], rows[rows.best]


def _held_equal(timed, measure):
    return parts(timed, measure)[1:]


def _row(timed, measure, published=None, what=None):
    theirs, equal, best = parts(timed, measure)
    what = what or f"{WHAT[measure]}, {timed.seqlen:,} tokens"
    return what, str(published or NOTHING), paired(theirs), same(equal), paired(best)


def _measured(timed, measure):
    """One sentence: the length, the rounds, and who is better in the paper's kind of pairing and held equal."""
    theirs, equal, best = parts(timed, measure)
    better = "is faster" if measure == "time" else "needs less"
    rounds = f", {timed.rounds} rounds" if measure == "time" else ""
    text = f"{capital(WHAT[measure])} at {timed.seqlen:,} tokens{rounds}: "
    for row in theirs.itertuples():
        text += f"{between(row)} in the paper's kind of pairing ({sides(row)}); "
    text += f"with the same implementation on both sides {in_words(equal, better)}"
    return f"{text}; best against best {paired(best)}."


def _by_the_paper(given, measure):
    """The same by the paper's protocol, if that was run."""
    timed = given.paper_protocol
    if timed is None:
        if measure == "time":
            yield f"By the paper's own protocol: not measured, needs `{SWEEP} --protocol paper`."
        return
    said = _measured(timed, measure)
    how = "2 warm-ups and 5 runs, zero-padded input, logits of all positions"
    yield f"By the paper's own protocol ({how}): {said[0].lower()}{said[1:]}"


def repeat(given, timed):
    """The commands of a run and of the one by the paper's protocol."""
    text = timed.source.repeat()
    other = given.paper_protocol
    return text if other is None else f"{text}; {other.source.repeat()}"


def _why(timed, claim):
    """The reasons of a difference that the data of the run call for."""
    table = timed.results.paper
    rows = table[table.claim.str.startswith(claim)]
    if len(rows) and rows.reason.iloc[0] != "agrees":
        yield f"Why the paper's kind of pairing differs from the paper: {rows.reason.iloc[0]}."


def _crossings(timed, measure):
    """([(sides, row of the crossover table)] of the paper's pairing, of one implementation, of the best pair)."""
    table = of(timed.results.crossovers[measure], timed.setting)
    found = []
    for pairs in parts(timed, measure):
        here = []
        for pair in pairs.itertuples():
            rows = table[
                (table.llama_impl == pair.llama_impl) & (table.mamba_impl == pair.mamba_impl)
            ]
            if len(rows):
                here += [(pair, row) for row in rows[rows.method == "interpolation"].itertuples()]
        found.append(here)
    return found


def _fitted(timed, measure):
    """Crossovers that the fits find beyond the measured lengths, of one implementation on both sides."""
    table = of(timed.results.crossovers[measure], timed.setting)
    rows = table[(table.method == "fit") & (table.llama_impl == table.mamba_impl)]
    found = [f"`{r.llama_impl}` {_spelt(r)}" for r in rows.itertuples() if r.extrapolated]
    if found:
        yield f"What the fits extrapolate with one implementation on both sides: {'; '.join(found)}."


def _spelt(row):
    """A crossover in words, for readers who have not seen the table of them."""
    text = crossing(row).replace(", llama above", ", above which LLaMA is better")
    if row.extrapolated and row.measure in COUNTS:  # of one round, whose interval is none
        text = re.sub(r" \[.*?\]", "", text)
    for arch in PAIR:
        text = text.replace(f"none: {arch}", f"none, {TITLES[arch]} throughout")
    return text.removeprefix("extrapolated: ")


def _crossed(found):
    """Crossovers in words; a pair of one implementation by its name."""
    texts = []
    for pair, row in found:
        name = f"`{pair.llama_impl}`" if pair.diagonal else sides(pair)
        texts.append(f"{name} {_spelt(row)}")
    return "<br>".join(texts) or NOTHING


def _crossing_verdict(claimed, rows, lengths):
    """What becomes of a crossover at `claimed` tokens."""
    if not rows:
        return CANNOT
    kinds = {f"{r.answer} {r.better_above}" for r in rows}
    if kinds == {"crossover mamba"}:
        return STANDS if all(_is_near(claimed, r) for r in rows) else "there is one, elsewhere"
    if kinds == {"none in range llama"}:
        return f"none up to {lengths.max():,}: LLaMA is better"
    if kinds == {"none in range mamba"}:
        return f"none from {lengths.min():,} on: Mamba is better"
    return DEPENDS if len(kinds) > 1 else UNDECIDED


def _is_near(claimed, row):
    """Whether a row of the crossover table is a crossover at so many tokens, above which Mamba is better."""
    if row.answer != "crossover" or row.better_above != "mamba":
        return False
    return row.low <= claimed <= row.high or abs(row.seqlen / claimed - 1) <= CLOSE


def _caches(timed):
    """What a decoded token finds of its context."""
    cells = of(timed.results.cells, timed.setting)
    held = cells[cells.cache_bytes.notna()].groupby(["seqlen", "arch"]).cache_bytes.min().unstack()
    if not set(PAIR) <= set(held) or timed.seqlen not in held.index:
        return
    llama, mamba = (held[arch][timed.seqlen] for arch in PAIR)
    if np.isfinite([llama, mamba]).all():
        yield (
            f"What is kept of {timed.seqlen:,} tokens: LLaMA {number(llama / MIB)} MiB, Mamba {number(mamba / MIB)} "
            f"MiB; equal at {mamba / llama * timed.seqlen:,.0f} tokens."
        )


def longest(cells, arch):
    """The most tokens of a prefill that an architecture ran; nan for none."""
    ran = cells[(cells.arch == arch) & (cells["mode"] == "prefill") & (cells.status == "ok")]
    return int(ran.seqlen.max()) if len(ran) else math.nan
