"""Read a run and write what it says: tables/*.md, tables/*.csv, figures/*.png, and a summary on the terminal."""

import argparse
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.text import Text

from analysis import figures, load, metric_load, metric_pages, metric_tables, render, tables
from analysis.crossover import crossover_table
from analysis.effects import effects_table
from analysis.headline import headline
from analysis.identity import floors_table, identity_table
from analysis.load import MEASURES, alternatives, named, of
from analysis.paper import beside
from analysis.ratios import against, ratio_matrix, spread
from analysis.scaling import fits_table, slopes_table
from analysis.shapley import shapley_table
from analysis.wording import between, listed, number, pairing
from bench.blocks import apart
from bench.cli import Parser
from bench.records import RecordError, Run, read_run


@dataclass
class Results:
    """Everything that is computed from a run, each part when it is first asked for; by measure where it says so."""

    run: Run

    @cached_property
    def records(self):
        return load.frame(self.run)

    @cached_property
    def cells(self):
        return load.cells(self.records)

    @cached_property
    def curves(self):
        return {m: load.curves(self.records, m) for m in MEASURES}

    @cached_property
    def matrix(self):
        return {m: ratio_matrix(self.curves[m], m) for m in MEASURES}

    @cached_property
    def spread(self):
        return {m: spread(self.matrix[m]) for m in MEASURES}

    @cached_property
    def fits(self):
        return {m: fits_table(self.curves[m], m) for m in MEASURES}

    @cached_property
    def slopes(self):
        return {m: slopes_table(self.curves[m], m) for m in MEASURES}

    @cached_property
    def crossovers(self):
        return {m: crossover_table(self.curves[m], m) for m in MEASURES}

    @cached_property
    def floors(self):
        return floors_table(self)

    @cached_property
    def identity(self):
        return identity_table(self)

    @cached_property
    def effects(self):
        return effects_table(self)

    @cached_property
    def shapley(self):
        return shapley_table(self)

    @cached_property
    def paper(self):
        return beside(self)


def write(run_dir):
    """Write the tables and figures of a run into its directory.

    Returns:
        list of rich renderables: the tables, the summary and where the files are.

    Raises:
        RecordError: the directory is no run, in one line.
    """
    run_dir = Path(run_dir)
    results = Results(apart(read_run(run_dir)))
    written = tables.write(results, run_dir / "tables")
    drawn = figures.write(results, run_dir / "figures")
    shown = tables.terminal(results)
    said = sentences(results)
    if (run_dir / metric_load.NAME).exists():
        found = metric_pages.Found(metric_load.read(run_dir / metric_load.NAME))
        written += metric_tables.write(found, run_dir / "tables")
        shown += metric_tables.terminal(found)
        said += metric_tables.sentences(found)
    shown.append(Text("\n".join(["Summary", *(f"- {s}" for s in said)]) + "\n"))
    shown.append(Text(f"{run_dir / 'tables'}: {len(written)} files"))
    shown.append(
        Text(f"{run_dir / 'figures'}: {', '.join(p.name for p in drawn) or 'nothing to draw'}")
    )
    return shown


def sentences(results):
    """What the run says, in plain sentences made from its data alone."""
    if results.records.empty:
        return headline(results)
    found = headline(results)
    for measure in ("time", "memory"):
        for setting in sorted({key[0] for key in results.curves[measure]}):
            found += _winner(results, setting, measure)
            found += _effect(results, setting, measure)
    found += _caches(results)
    return [*found, *_parity(results), *_absent(results), *_failed(results), *incomplete(results)]


def _winner(results, setting, measure):
    """Who wins at the longest length that has a ratio, LLaMA or each of the others."""
    matrix = of(results.matrix[measure], setting)
    if measure == "time" and matrix.ratio.isna().all():
        archs = {key[1] for key in results.curves["time"] if key[0] == setting}
        if len(archs) == 1:
            yield f"{setting}: only one architecture was measured, so nothing is compared."
    for arch in alternatives(matrix):
        here = against(matrix, results.curves[measure], arch)
        here = here[here.ratio.notna()]
        if len(here):
            yield _won(here[here.seqlen == here.seqlen.max()], arch, setting, measure)


def _won(here, arch, setting, measure):
    """The sentence about the rows of one length."""
    clauses = [
        f"both under {r.llama_impl} {_clause(r, measure)}"
        for _, r in here[here.diagonal].iterrows()
    ]
    for _, r in here[here.best & ~here.diagonal].iterrows():
        clauses.append(f"best against best ({_sides(r)}) {_clause(r, measure)}")
    for _, r in here[here.best & here.diagonal].iterrows():
        clauses.append(f"best against best is {r.llama_impl} on both sides")
    if not clauses:
        clauses = [f"{_sides(r)} {_clause(r, measure)}" for _, r in here.iterrows()]
    beside = "" if arch == "mamba" else f" of llama and {arch}"
    what = f"{tables.NAMES[measure].capitalize()}{beside} at {here.seqlen.max():,} tokens"
    return f"{what} ({setting}): {'; '.join(clauses)}."


def _sides(row):
    return pairing(row).replace(" /", ",")


def _clause(row, measure):
    if row.ratio in (0, math.inf):
        return f"{row.winner} wins, because {between(row).replace(' out', ' ran out')}"
    less = "is faster" if measure == "time" else "needs less"
    arch, _ = named(row.mamba_impl)
    says = f"{row.winner} {less}" if row.winner in ("llama", arch) else row.winner
    return f"{says}, llama/{arch} = {between(row)}"


def _effect(results, setting, measure):
    """How far the implementation moves the ratio, beside the architecture's own ratios."""
    here = of(results.spread[measure], setting)
    here = here[here.pairs > 1]
    if here.empty:
        return
    row = here.loc[here.seqlen.idxmax()]
    text = (
        f"The implementation alone moves llama/mamba in {tables.NAMES[measure]} at {row.seqlen:,} tokens from "
        f"{number(row.lowest)} to {number(row.highest)} over {row.pairs} pairs, a factor of {number(row.factor)}"
    )
    if row.diagonal_lowest < row.diagonal_highest:
        text += "; with the same implementation on both sides "
        text += f"from {number(row.diagonal_lowest)} to {number(row.diagonal_highest)}"
    yield text + ("; and it decides who wins." if row.flips else ".")


def _caches(results):
    """What LLaMA and each of the others keep of a context, where both were decoded."""
    cells = results.cells[results.cells.cache_bytes.notna()]
    for key, group in cells.groupby(list(load.Setting._fields), sort=False):
        held = group.pivot_table(
            index="seqlen", columns="arch", values="cache_bytes", aggfunc="min"
        )
        others = sorted(set(held) - {"llama"}, key=load.arch_order) if "llama" in held else []
        for arch in others:
            both = held[["llama", arch]].dropna()
            if len(both):
                yield _kept(both.llama, both[arch], arch, load.Setting(*key))


def _kept(llama, other, arch, setting):
    """Of caches of llama and of another architecture over the same lengths."""
    text = (
        f"Cache of {llama.index[-1]:,} tokens ({setting}): llama {_mib(llama.iloc[-1])}, "
        f"{arch} {_mib(other.iloc[-1])}, llama/{arch} = {number(llama.iloc[-1] / other.iloc[-1])}"
    )
    per_token = llama / llama.index
    if len(llama) > 1 and other.nunique() == 1 and per_token.nunique() == 1:
        text += (
            f"; {arch}'s is the same at every length, llama's takes {per_token.iloc[0]:,.0f} bytes a token: "
            f"equal at {other.iloc[0] / per_token.iloc[0]:,.0f} tokens"
        )
    return text + "."


def _mib(size):
    return f"{number(size / tables.MIB)} MiB"


def _parity(results):
    cells = results.cells
    ok = cells[cells.status == "ok"]
    if len(ok):
        passed = ok[ok.parity_passed.eq(True)]
        worst = f" (largest error {passed.parity.max():.2f} of its bound)" if len(passed) else ""
        yield f"Parity with the reference is proven for {len(passed)} of {len(ok)} measured cells{worst}."
    for impl, group in cells[cells.status == "interpreted"].groupby("impl"):
        passed = group[group.parity_passed.eq(True)]
        yield f"{impl} ran through the interpreter: parity proven for {len(passed)} of {len(group)} cells, no times."


def _absent(results):
    gone = results.cells[results.cells.status == "unavailable"]
    for (impl, reason), group in gone.groupby(["impl", "reason"], sort=False):
        archs = listed(sorted(group.arch.unique(), key=load.arch_order))
        where = _modes(results, group)
        yield f"{impl} is unavailable for {archs}{where}: {reason or 'no reason recorded'}."


def _failed(results):
    words = {"oom": "ran out of memory", "timeout": "timed out", "error": "failed"}
    failed = results.cells[results.cells.status.isin(list(words))]
    for (arch, impl, _, status), group in failed.groupby(
        ["arch", "impl", "mode", "status"], sort=False
    ):
        where = _modes(results, group)
        at = ", ".join(f"{n:,}" for n in sorted(group.seqlen.unique()))
        reason = next((r for r in group.reason if r), "")
        yield f"{arch} under {impl} {words[status]}{where} at {at} tokens{': ' + reason if reason else ''}."


def _modes(results, group):
    """` in train` where a run has several modes."""
    if results.cells["mode"].nunique() == 1:
        return ""
    return f" in {' and '.join(dict.fromkeys(group['mode']))}"


def incomplete(results):
    planned, rounds = results.run.plan.get("cells") or [], results.run.plan.get("rounds") or 1
    have = {tuple(row[name] for name in load.CELL): row for _, row in results.cells.iterrows()}
    missing = 0
    for cell in planned:
        row = have.get(tuple(cell[name] for name in load.CELL))
        missing += row is None or (row.status == "ok" and not row.reason and row.rounds < rounds)
    padded = sorted(results.records[results.records.padded > 0].seqlen.unique())
    if padded:
        yield f"Input padded with zeros, which count as tokens: {', '.join(f'{n:,}' for n in padded)} tokens."
    if missing:
        yield f"The run is incomplete: {missing} of {len(planned)} cells lack rounds; `--resume` completes it."
    if len(results.cells) and results.cells.rounds.max() == 1:
        yield "One round gives no interval and so no verdict: the numbers above are single observations."


def main(argv=None):
    parser = Parser(
        prog="python -m analysis.summary",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run directory, as bench.sweep writes it")
    run = parser.parse_args(argv).run
    try:
        shown = write(run)
    except RecordError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    out = render.console()
    for renderable in shown:
        out.print(renderable)
    return 0


if __name__ == "__main__":
    sys.exit(main())
