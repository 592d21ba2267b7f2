"""The page of findings: what each claim becomes, how much is implementation, what remains unknown."""

import math

import numpy as np
import pandas as pd

from analysis.findings.costs import (
    MAIN,
    SWEEP,
    crossovers,
    decoding_and_training,
    equal_size,
    parts,
    ratio_at_length,
)
from analysis.findings.entry import capital, paired, same
from analysis.findings.figure import NAME as FIGURE
from analysis.findings.growth import out_of_memory, reach, scaling
from analysis.findings.metrics import METRICS, context, dynamics, shifts
from analysis.headline import headline
from analysis.load import of
from analysis.paper import TIME_RATIO
from analysis.readme import DTYPES, machine_name, wrapped
from analysis.render import markdown
from analysis.wording import between, listed, number

WIDTH = 120
UNTIMED = "What would change with"  # begins a sentence of the headline
PAPER = "[arXiv 2601.01237](https://arxiv.org/abs/2601.01237)"
COLUMNS = (
    "claim",
    "published",
    "paper's kind of pairing, here",
    "held equal",
    "best against best",
    "verdict",
)
CLAIMS = (
    ratio_at_length, crossovers, scaling, out_of_memory, reach, context, dynamics, shifts, equal_size,
    decoding_and_training,
)  # fmt: skip


def page(given, base):
    """The whole page in Markdown.

    Args:
        given: `analysis.findings.runs.Given` whose main run has a ratio.
        base: the folder that the page lies in.
    """
    main = given.main
    entries = [entry for claim in CLAIMS for entry in claim(given)]
    found = [
        f"# Findings on {_kind(main)}: {_machine(main)}",
        *map(_wrapped, _opening(main)),
        _table(entries),
        *_figure(main, base),
        *(_entry(i, e) for i, e in enumerate(entries, 1)),
        *_implementation(main),
        *_unknown(given, main),
    ]
    return "\n\n".join(found) + "\n"


def _opening(main):
    theirs, equal, best = parts(main, "time")
    trained = (main.source.run.plan.get("options") or {}).get("checkpoint")
    yield (
        f"What the claims of {PAPER} become when the implementation is held equal: both architectures under the same "
        f"one, from {'trained' if trained else 'random'} weights, on the same tokens, each cell behind its parity gate."
    )
    if _gpu(main):
        yield f"Measured on {_machine(main)}; the paper names A100s."
    else:
        yield (
            f"**This is the story of a CPU ({_machine(main)}). The paper used GPUs; no GPU has been measured yet:** "
            "signs and factors on a GPU may differ, and every verdict on time and memory is about this machine."
        )
    ratios = equal.ratio[np.isfinite(equal.ratio)]
    if len(ratios):
        text = f"In short: at {main.seqlen:,} tokens the paper's {TIME_RATIO} for time is "
        text += f"{between(theirs.iloc[0])} in its kind of pairing, " if len(theirs) else ""
        text += f"{number(ratios.min())} to {number(ratios.max())} with the same implementation on both sides"
        text += f", and {paired(best)} at the best of both." if len(best) else "."
        yield f"**{text}**"
    s = main.setting
    yield (
        f"`{s.preset}`, {DTYPES.get(s.dtype, s.dtype)}, batch {s.batch}, launch {s.launch}, {main.rounds} rounds of "
        "fresh processes. Ratios are LLaMA / Mamba: above 1 Mamba is better. Pairs: LLaMA's implementation / Mamba's. "
        "In brackets are 95 % t intervals, of times over paired rounds, of representations over initialisations; bytes "
        "of memory repeat exactly. The paper's kind of pairing is eager attention (`hf`) against a fused scan."
    )


def _table(entries):
    rows = [
        dict(zip(COLUMNS, (f"{f'[{i}](#{_anchor(i, entry)})' if first else ''} {what}".strip(), *cells,
                           f"**{entry.verdict}**" if first else ""), strict=True))
        for i, entry in enumerate(entries, 1)
        for first, (what, *cells) in zip([True] + [False] * len(entry.rows), entry.rows, strict=False)
    ]  # fmt: skip
    return markdown(pd.DataFrame(rows)).rstrip()


def _heading(i, entry):
    return f"{i}. {entry.title}: {entry.verdict}"


def _anchor(i, entry):
    """The name that GitHub gives a heading."""
    kept = [c for c in _heading(i, entry).lower() if c.isalnum() or c in " -"]
    return "".join(kept).replace(" ", "-")


def _entry(i, entry):
    """A section: what was measured, a table if there is one, the command."""
    lines = [f"## {_heading(i, entry)}"]
    for text in [*entry.text, *[f"Repeat: {entry.repeat}."] * bool(entry.repeat)]:
        lines += ["", text, ""] if text.startswith("|") else [_bullet(text)]
    return "\n".join(lines)


def _figure(main, base):
    file = f"{main.source.name}/{FIGURE}"
    if (base / file).exists():
        yield f"![Time of LLaMA / time of Mamba over length, and the paper's number]({file})"


def _implementation(main):
    """How far the choice of implementation moves the answer, and what the floors and the switches say."""
    yield "## How much is implementation"
    said = " ".join(s for s in headline(main.results) if not s.startswith(UNTIMED))
    if "only bounds" in said:
        said += (
            " (A floor is the least time of a model's work on the measured peaks of the machine. CPUs have no measured "
            "rate of exponentials; GPUs have, and there the split is exact.)"
        )
    yield _wrapped(f"{said} {_shares(main)}".strip())
    spread = of(main.results.spread["time"], main.setting)
    every = spread[spread.seqlen.isin(_octaves(spread.seqlen))]
    rows = []
    for row in every.itertuples():
        here = main.matrix("time")
        here = here[here.seqlen == row.seqlen]
        rows.append(
            {
                "tokens": f"{row.seqlen:,}",
                "lowest ratio": number(row.lowest),
                "highest": number(row.highest),
                "factor": number(row.factor),
                "the same on both sides": same(here[here.diagonal], ", "),
                "best against best": paired(here[here.best]),
            }
        )
    yield "Time, over all pairs of implementations:"
    yield markdown(pd.DataFrame(rows)).rstrip()


def _shares(main):
    """What the factorial gives to architecture, implementation and their interaction."""
    table = main.results.effects
    keys = ["preset", "batch", "mode", "seqlen", "measure"]
    s = main.setting
    here = table[(table[keys] == [s.preset, s.batch, s.mode, main.seqlen, "time"]).all(axis=1)]
    shares = here.drop_duplicates("term").set_index("term").share
    names = {"arch": "architecture", "impl": "implementation", "arch x impl": "their interaction"}
    said = [
        f"{name} {shares[t]:.1%}" for t, name in names.items() if t in shares and shares[t] >= 0
    ]
    if len(said) < len(names):
        return ""
    return f"Of the variance of ln time at {main.seqlen:,} tokens over these cells: {listed(said)}."


def _unknown(given, main):
    """What the runs leave open, and the command that closes it."""
    yield "## What remains unknown"
    cells = main.results.cells
    found = []
    if not _gpu(main):
        found.append(
            "**Everything on a GPU: not measured yet.** One command measures it, resumable: `python -m bench.gpu_suite "
            "--plan answer --out DIR`; then `python -m analysis.findings DIR` writes this page from it."
        )
    found += [s for s in headline(main.results) if s.startswith(UNTIMED)]
    longest = int(cells[cells.status == "ok"].seqlen.max())
    found.append(
        f"Lengths beyond {longest:,} tokens: what is said of them is a fit or a prediction. `{SWEEP} --seqlens …` and "
        "`python -m bench.long_context` go on."
    )
    if len(_octaves(cells.seqlen)) < 4:
        found.append(f"The course over length, from a short run: `{MAIN}`.")
    if not any(s.results.records.energy_j.notna().any() for s in given.timed):
        found.append(
            "Energy: not measured, because nothing here counts it (records hold it where a GPU does)."
        )
    found.append(
        "Which kernels, card and weights the paper's numbers come from: it says A100 and 16 GB, CUDA 11.0 and PyTorch "
        "2.0.1, and no name of a kernel. So why its factors differ is inferred here, not known."
    )
    s = main.setting
    found.append(
        "Trained weights, on which representations depend (a run with `--checkpoint`); other sizes, batches and dtypes "
        f"than `{s.preset}`, {s.batch} and {s.dtype} (`--preset`, `--batch`, `--dtype`)."
    )
    if given.measured("shifts") is None:
        found.append(f"Shift detection with labels: `{METRICS} shifts --sessions 80`.")
    yield "\n".join(map(_bullet, found))


def _octaves(lengths):
    """The lengths that are a power of two times the longest, at most an octave apart."""
    longest = max(lengths)
    exact = [n for n in sorted(set(lengths)) if math.log2(longest / n) % 1 < 0.01]
    return exact or [longest]


def _machine(main):
    return machine_name(main.source.run.machine)


def _gpu(main):
    return main.source.run.machine.get("gpu")


def _kind(main):
    return "a GPU" if _gpu(main) else "a CPU"


def _wrapped(text):
    return wrapped(text, WIDTH)


def _bullet(text):
    return wrapped(f"- {capital(text)}", WIDTH - 2).replace("\n", "\n  ")
