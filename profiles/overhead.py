"""What named ranges cost while no profiler is attached.

    python -m profiles.overhead [--preset paper-50m] [--seqlens 128,2048] [--out DIR]

Two answers for every architecture and implementation that can run here:

    share     the time of one `annotate` with nothing attached, times how many there are in a forward, over its time
    measured  forwards with `annotate` against forwards with a bare nullcontext in its place, in pairs of random order
              in one process: the ratio of their times, its 95 % t interval over the pairs, and the verdict

--out also writes overhead.json and overhead.md. Give it the environment of the sweep's workers,
OMP_WAIT_POLICY=PASSIVE.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import options as sweep
from bench.availability import fate
from bench.cli import Parser, positive, seconds
from bench.machine import describe
from bench.measure import no_collection, stopwatch
from bench.plan import PlanError
from bench.planning import make_plan
from bench.verdict import ratio_interval, verdict
from profiles import ranges
from profiles.captured import Setting
from profiles.ranges import annotate, record_with

WIDTH_OF_PIPES = 140
CALLS = 100_000  # of annotate in one sample of its time
SAMPLES = 7
SAMPLE_S = 0.02  # a sample of a fast cell is several forwards that take at least this
LEAST_PAIRS = 5
NOTHING = nullcontext()
COLUMNS = ("arch", "impl", "seqlen", "ms", "ranges", "share", "with / without ranges", "pairs", "verdict")  # fmt: skip


def call_ns():
    """ns of entering and leaving one range with nothing attached: the median over SAMPLES loops, loop included."""
    taken = []
    for _ in range(SAMPLES):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            with annotate("op/selective_scan", payload=512):
                pass
        taken.append((time.perf_counter_ns() - start) / CALLS)
    return statistics.median(taken)


@contextmanager
def replaced(replacement):
    """Every module that calls `annotate` calls `replacement` instead."""
    users = [m for m in list(sys.modules.values()) if vars(m).get("annotate") is annotate]
    users = [module for module in users if module not in (ranges, sys.modules[__name__])]
    for module in users:
        module.annotate = replacement
    try:
        yield
    finally:
        for module in users:
            module.annotate = annotate


def calls_of(work):
    """How many ranges one run of a cell opens."""
    opened = []

    def count(name, category=None, payload=None):
        opened.append(name)
        return NOTHING

    with replaced(count):
        work()
    work.reset()
    return len(opened)


def bare(name, category=None, payload=None):
    """What `annotate` is compared with."""
    return NOTHING


def pairs_of(work, watch, budget, rng):
    """([s with ranges], [s without]), one value a pair: a run of each in random order, until the budget is spent."""
    times = {annotate: [], bare: []}
    once, _ = watch(work)
    work.reset()
    runs = max(1, math.ceil(SAMPLE_S / once))
    pairs = max(LEAST_PAIRS, int(budget / (2 * runs * once)))
    with no_collection():
        for _ in range(pairs):
            order = [annotate, bare]
            rng.shuffle(order)
            for which in order:
                with replaced(which):
                    total = 0.0
                    for _ in range(runs):
                        total += watch(work)[0]
                        work.reset()
                times[which].append(total / runs)
    return times[annotate], times[bare]


def measure(setting, cell, ns, budget, rng):
    """One row: the cost of ranges in one cell."""
    watch = stopwatch(setting.device)
    with setting.bound(cell) as (_, work):
        work()
        work.reset()
        calls = calls_of(work)
        with_ranges, without = pairs_of(work, watch, budget, rng)
    interval = ratio_interval(with_ranges, without)
    typical = statistics.median(with_ranges)
    return {
        "cell": asdict(cell),
        "ms": 1e3 * typical,
        "ranges": calls,
        "share": calls * ns * 1e-9 / typical,
        "ratio": interval.ratio,
        "low": interval.low,
        "high": interval.high,
        "pairs": interval.n,
        "verdict": verdict(interval),
        "samples_s": {"with": with_ranges, "without": without},
    }


def text_of(row):
    """A row as people read it, by COLUMNS."""
    cell = row["cell"]
    ratio = f"{row['ratio']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
    return (
        cell["arch"], cell["impl"], f"{cell['seqlen']:,}", f"{row['ms']:.3g}", str(row["ranges"]),
        f"{100 * row['share']:.2g} %", ratio, str(row["pairs"]), row["verdict"],
    )  # fmt: skip


def summary(ns, rows):
    worst = max(rows, key=lambda row: row["share"])
    most = f"{100 * worst['share']:.2g} %"
    return (
        f"One range with nothing attached takes {ns:.0f} ns; all of a forward take at most {most} of its "
        f"time ({worst['cell']['arch']} under {worst['cell']['impl']}, {worst['cell']['seqlen']:,} tokens)."
    )


def write(out, ns, rows, machine):
    """overhead.json and overhead.md in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    data = {"annotate_ns": ns, "machine": machine, "rows": rows}
    (out / "overhead.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(text_of(row)) + " |" for row in rows]
    where = f"{machine['cpu']}, revision {machine['git']['revision']}"
    text = f"# What ranges cost without a profiler\n\n{where}\n\n{summary(ns, rows)}\n\n"
    (out / "overhead.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


def planned(preset, seqlens):
    """(plan, tokens) of a prefill of every architecture and implementation, as python -m bench.sweep plans it."""
    parser = sweep.make_parser("")
    parser.prog = "python -m profiles.overhead"
    argv = ["--preset", preset, *(["--seqlens", seqlens] if seqlens else [])]
    options = sweep.resolve(parser.parse_args(argv), sweep.given(parser, argv))
    if not seqlens:
        options["seqlens"] = [min(options["seqlens"]), max(options["seqlens"])]
    return make_plan(options)


def main(argv=None):
    parser = Parser(
        prog="python -m profiles.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", default="paper-50m", metavar="NAME", help="(default: paper-50m)")
    add("--seqlens", metavar="LIST", help="(default: the sweep's shortest and longest)")
    add("--budget", type=seconds, default=6.0, metavar="SECONDS", help="of each cell (default: 6)")
    add("--seed", type=positive, default=1, help="of the order in a pair (default: 1)")
    add("--out", type=Path, metavar="DIR", help="where the record goes (default: nowhere)")
    args = parser.parse_args(argv)
    try:
        plan, tokens = planned(args.preset, args.seqlens)
    except PlanError as error:
        parser.error(str(error))
    setting, rng = Setting(plan, tokens.ids), random.Random(args.seed)
    cells = [cell for cell in plan.cells if fate(cell, setting.device)[0] == "measured"]
    table = Table(title="What ranges cost without a profiler", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    with record_with(None):
        ns = call_ns()
        console = Console(stderr=True)
        rows = [
            measure(setting, cell, ns, args.budget, rng)
            for cell in track(cells, "measuring", console=console)
        ]
    for row in rows:
        table.add_row(*text_of(row))
    out = Console(width=None if sys.stdout.isatty() else WIDTH_OF_PIPES)
    out.print(table, summary(ns, rows))
    if args.out:
        write(args.out, ns, rows, describe(setting.device, peaks=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
