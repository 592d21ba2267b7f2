"""Compare run B with run A, cell by cell: faster, slower, equivalent or undecided.

Intervals are simultaneous: with n comparisons each is taken at 1 - (1 - confidence) / n, so that two runs of
the same code give a false alarm in at most one of twenty comparisons of runs, however many cells they have.
What a whole run shares (a warmer room, another tenant of the machine) is in no interval: repeat both runs before
a small difference is believed.

Exit status: 0 nothing regressed, 1 something did (slower, more memory, or measured in A and failed in B),
2 the runs cannot be compared.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.blocks import apart
from bench.cli import Parser
from bench.plan import Cell
from bench.records import RecordError, one_line, read_run
from bench.verdict import COUNTS, Interval, exact, statistic, unpaired, verdict

MEASURES = {"time": {}, "memory": {"faster": "less", "slower": "more"}}  # the words of a verdict
REGRESSED = ("slower", "more", "failed")
FAILED = ("error", "timeout")


@dataclass(frozen=True)
class Comparison:
    """B relative to A in one cell and measure."""

    cell: Cell
    measure: str
    interval: Interval
    verdict: str
    reason: str = ""


def compare(a, b, confidence=0.95):
    """Compare the records of two runs.

    Args:
        a, b: lists of records; b is judged relative to a.
        confidence: of all intervals together.

    Returns:
        (comparisons, missing): `Comparison`s of the cells that both runs measured, or that b failed to
        measure, and {cell: why it has none} of the others.
    """
    a, b = _by_cell(a), _by_cell(b)
    pairs, missing = [], {}
    for cell in sorted({*a, *b}, key=lambda c: c.id):
        if cell not in a or cell not in b:
            missing[cell] = "only in " + ("A" if cell in a else "B")
        elif not _measured(a[cell]) or not (_measured(b[cell]) or _failed(b[cell])):
            missing[cell] = "; ".join(
                f"{name}: {_why(run[cell])}" for name, run in (("A", a), ("B", b))
            )
        else:
            pairs += [(cell, m, _values(a[cell], m), _values(b[cell], m)) for m in MEASURES]
    pairs = [(cell, m, x, y) for cell, m, x, y in pairs if x and (y or m == "time")]
    level = 1 - (1 - confidence) / max(1, len(pairs))
    return [_compare(cell, m, x, y, b[cell], level) for cell, m, x, y in pairs], missing


def _compare(cell, measure, a, b, records, level):
    interval = unpaired(b, a, level)
    if measure in COUNTS:
        interval = exact(interval)
    if not b and _failed(records):
        return Comparison(cell, measure, interval, "failed", _why(records))
    said = verdict(interval)
    return Comparison(cell, measure, interval, MEASURES[measure].get(said, said), interval.reason)


def machine_differences(a, b):
    """What differs between two machine.json, in one line; empty if nothing that matters does."""
    name = lambda m: (m.get("gpu") or {}).get("name") or "no GPU"
    found = [("gpu", name(a), name(b))]
    found += [(key, a.get(key), b.get(key)) for key in ("cpu", "threads", "python", "tf32")]
    versions = [m.get("versions") or {} for m in (a, b)]
    found += [
        (key, *(v.get(key) for v in versions)) for key in sorted({*versions[0], *versions[1]})
    ]
    return "; ".join(f"{key} {x} -> {y}" for key, x, y in found if x != y)


def table(comparisons):
    """The comparisons as a rich table, regressions first."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, numeric in (
        ("cell", 0),
        ("measure", 0),
        ("B / A", 1),
        ("interval", 1),
        ("rounds", 1),
        ("verdict", 0),
    ):
        shown.add_column(
            title,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=title != "verdict",
        )
    for c in sorted(comparisons, key=lambda c: (c.verdict not in REGRESSED, c.measure != "time")):
        said = f"{c.verdict}: {c.reason}" if c.reason else c.verdict
        low, high = c.interval.low, c.interval.high
        between = f"[{low:.3f}, {high:.3f}]" if low == low else "-"
        ratio = f"{c.interval.ratio:.3f}" if c.interval.ratio == c.interval.ratio else "-"
        shown.add_row(*map(Text, (c.cell.id, c.measure, ratio, between, str(c.interval.n), said)))
    return shown


def not_compared(missing):
    """A line for each reason and all of the cells that differ only in their length."""
    grouped = {}
    for cell, why in missing.items():
        alike = replace(cell, seqlen=0)
        grouped.setdefault((alike, why), []).append(cell.seqlen)
    for (alike, why), lengths in grouped.items():
        name = alike.id.replace("-0-", "-", 1)
        yield f"{name} at {', '.join(map(str, sorted(lengths)))} tokens: {why}"


def _by_cell(records):
    found = {}
    for record in records:
        found.setdefault(Cell(**record["cell"]), []).append(record)
    return found


def _measured(records):
    return any(record["status"] in ("ok", "oom") for record in records)


def _failed(records):
    return any(record["status"] in FAILED for record in records)


def _values(records, measure):
    values = [statistic(record, measure) for record in records]
    return [v for v in values if v == v]


def _why(records):
    """The status and reason of the last record."""
    last = records[-1]
    reason = last.get("reason")
    return f"{last['status']} ({reason})" if reason else last["status"]


def main(argv=None):
    parser = Parser(
        prog="python -m bench.compare",
        description=__doc__,
        formatter_class=type(
            "Help",
            (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter),
            {},
        ),
    )
    parser.add_argument(
        "run_a", metavar="RUN_A", type=Path, help="the run directory to compare with"
    )
    parser.add_argument(
        "run_b", metavar="RUN_B", type=Path, help="the run directory that is judged"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of all intervals together")
    args = parser.parse_args(argv)
    if not 0 < args.confidence < 1:
        parser.error(f"--confidence must lie between 0 and 1, got {args.confidence}")
    try:
        a, b = apart(read_run(args.run_a)), apart(read_run(args.run_b))
        return report(a, b, args.confidence)
    except RecordError as error:
        said = one_line(error, kind=False)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        said = f"{args.run_a}, {args.run_b}: a record holds broken values: {one_line(error)}"
    print(f"{parser.prog}: {said}", file=sys.stderr)
    return 2


def report(a, b, confidence=0.95):
    """Print the comparison of two `Run`s; returns the exit status."""
    if different := machine_differences(a.machine, b.machine):
        print(
            f"warning: the runs come from different machines or versions: {different}",
            file=sys.stderr,
        )
    comparisons, missing = compare(a.records, b.records, confidence)
    if not comparisons:
        print(f"no cell was measured in both {a.path} and {b.path}", file=sys.stderr)
        return 2
    out = Console(highlight=False)
    out = out if out.is_terminal else Console(highlight=False, width=max(out.width, 120))
    out.print(
        Text(f"B = {b.path} relative to A = {a.path}, {confidence:.0%} simultaneous intervals")
    )
    out.print(table(comparisons))
    for line in not_compared(missing):
        out.print(Text(f"not compared: {line}"))
    counts = {}
    for c in comparisons:
        counts[c.verdict] = counts.get(c.verdict, 0) + 1
    out.print(
        Text(
            f"{len(comparisons)} comparisons: "
            + ", ".join(f"{n} {v}" for v, n in sorted(counts.items()))
        )
    )
    return int(any(v in counts for v in REGRESSED))


if __name__ == "__main__":
    sys.exit(main())
