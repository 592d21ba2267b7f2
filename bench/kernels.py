"""The operators alone, every implementation and peer beside each other on the same inputs.

    python -m bench.kernels                                  what this machine can run, at sizes that suit it
    python -m bench.kernels --operator causal_attention --dtype bf16 --out runs/kernels

Every row passed the accuracy rule first: what fails it has no time. Contenders are timed in randomised blocks,
on a GPU by device events with the L2 cache flushed before each sample, on a CPU by the wall clock. A block
counts with one number (its median); intervals of ratios are t intervals over paired blocks. The process is one,
so intervals here tell whether kernels differ, not whether processes do. The share of the floor is the least time
that the machine's own peaks allow (kernels.roofline), over the time. `--out` keeps every row in `kernels.jsonl`,
appended and synced; a second call with the same folder measures only what is missing.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import kernels
from bench.cli import Parser
from bench.contenders import GRIDS, OPERATORS, contenders
from bench.machine import measure_peaks
from bench.plan import PlanError
from bench.records import Appender, one_line
from bench.verdict import ratio_interval
from kernels.accuracy import errors
from kernels.implementations import Unavailable, interpreted, recording
from kernels.roofline import floor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BLOCKS = 10
SAMPLES = 5  # per block
LARGEST_GOLD = 32_768  # tokens: longer problems are checked on a copy of this many, and say so


def measure_problem(operator, problem, dtype, device, peaks, *, blocks=BLOCKS, samples=SAMPLES):
    """Check and time every contender on one problem: a list of rows, dicts of plain values.

    `peaks` are those of `bench.machine.measure_peaks`; rows hold the floor that follows from them.
    """
    checked = dataclasses.replace(problem, seqlen=min(problem.seqlen, LARGEST_GOLD))
    truth = _truth(operator, checked, dtype, device)
    inputs = problem.inputs(DTYPES[dtype], device)
    rows, admitted = [], []
    for name, run in contenders(operator, device):
        row = _new_row(operator, problem, dtype, name, peaks) | {"checked_on": str(checked)}
        rows.append(row)
        try:
            if _admit(row, run, checked.inputs(DTYPES[dtype], device), truth):
                with torch.no_grad():
                    run(**inputs)
                admitted.append((row, run))
        except (Unavailable, NotImplementedError) as error:
            row.update(status="unavailable", reason=str(error))
        except torch.OutOfMemoryError as error:
            row.update(status="oom", reason=one_line(error))
        except Exception as error:  # a peer that breaks is a row of the table, not the end of it
            row.update(status="error", reason=one_line(error))
    clock = _device_clock(device) if device.type == "cuda" else _wall_clock
    shuffle = random.Random(str(problem)).shuffle
    with torch.no_grad():
        for _ in range(blocks):
            shuffle(admitted)
            for row, run in admitted:
                times = [clock(lambda run=run: run(**inputs)) for _ in range(samples)]
                row["samples_ms"].append(times)
    return rows


def _new_row(operator, problem, dtype, name, peaks):
    least = floor(problem, dtype, peaks)
    return {
        "operator": operator,
        "problem": str(problem),
        "dtype": dtype,
        "impl": name,
        "status": "ok",
        "reason": "",
        "kernel": "",
        "error_over_bound": None,
        "samples_ms": [],
        "flops": problem.flops(),
        "bytes": problem.bytes(DTYPES[dtype]),
        "floor_ms": 1e3 * least.seconds,
        "bound": least.bound,
        "floor_missing": list(least.missing),
    }


def _admit(row, run, inputs, truth):
    """Run a contender once and note in its row what ran and how it erred; False if it must not be timed."""
    with torch.no_grad(), recording() as manifest:
        output = run(**inputs)
    row["kernel"] = manifest.get(row["operator"], row["impl"])
    found = errors(output, *truth)
    row["error_over_bound"] = max(error / max(bound, 1e-300) for error, bound in found.values())
    if row["error_over_bound"] > 1:
        row.update(status="error", reason=f"fails the accuracy rule: {found}")
    elif row["impl"] == "triton" and interpreted():
        row.update(status="interpreted", reason="Triton's interpreter says nothing about time")
    return row["status"] == "ok"


def _truth(operator, problem, dtype, device):
    """(baseline, gold): the definition in the dtype, and in float64, from the same rounded inputs."""
    inputs = problem.inputs(DTYPES[dtype], device)
    wide = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    function = getattr(kernels, operator)
    with torch.no_grad():
        return function(**inputs, impl="reference"), function(**wide, impl="reference")


def _wall_clock(run):
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _device_clock(device):
    """A clock of device events that empties the L2 cache before it starts."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(max(size, 1 << 27), dtype=torch.int8, device=device)

    def clock(run):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return clock


def block_medians(row):
    """One number a block, in ms."""
    return [statistics.median(block) for block in row["samples_ms"]]


def share_of_floor(row):
    """What part of a row's time the machine's peaks account for, and the term that bounds it.

    Empty without a time, and for a row of a file from before rows had floors.
    """
    if not row["samples_ms"] or "floor_ms" not in row:
        return ""
    share = row["floor_ms"] / statistics.median(block_medians(row))
    return f"{100 * share:.3g} % {row['bound']}"


def left_out(rows):
    """The terms that floors lack because their peak was not measured, in words; empty if none."""
    terms = dict.fromkeys(term for row in rows for term in row.get("floor_missing", ()))
    return (
        f"floors leave out the {' and '.join(terms)} term, whose peak is unknown" if terms else ""
    )


def result_table(rows, against="triton"):
    """A rich table of the rows that ran.

    Ratios are the time over that of `against` on the same problem (above 1: slower), or over that of the
    faster of torch and cpu where `against` has no time.
    """
    table = Table(title="Operators alone", title_justify="left")
    left = ("operator", "problem", "implementation", "kernel")
    for column in ("operator", "problem", "dtype", "implementation", "ms", "TFLOP/s", "GB/s"):
        table.add_column(column, justify="left" if column in left else "right")
    for column in ("share of floor", "time / best of ours", "error / bound", "kernel"):
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        head = [row["operator"], row["problem"], row["dtype"], row["impl"]]
        bound = "" if row["error_over_bound"] is None else f"{row['error_over_bound']:.2f}"
        if not row["samples_ms"]:
            if row["status"] != "unavailable":
                table.add_row(*head, *[""] * 5, bound, f"[red]{row['status']}[/]: {row['reason']}")
            continue
        ms = statistics.median(block_medians(row))
        table.add_row(
            *head,
            f"{ms:.4g}",
            f"{row['flops'] / ms / 1e9:.3g}",
            f"{row['bytes'] / ms / 1e6:.3g}",
            share_of_floor(row),
            _ratio(row, _reference_row(rows, row, against)),
            bound,
            row["kernel"],
        )
    return table


def absences(rows):
    """{why an implementation did not run: the operators that it concerns}."""
    found = {}
    for row in rows:
        if row["status"] == "unavailable":
            reason = row["reason"].removeprefix(f"{row['operator']}: ")
            operators = found.setdefault(reason, [])
            if row["operator"] not in operators:
                operators.append(row["operator"])
    return found


def _reference_row(rows, row, against):
    """The row of `against` on the same problem, or of the fastest of ours where `against` has no time."""
    same = [
        r
        for r in rows
        if r["samples_ms"] and all(r[k] == row[k] for k in ("operator", "problem", "dtype"))
    ]
    ours = [r for r in same if r["impl"] == against] or [
        r for r in same if r["impl"] in ("torch", "cpu")
    ]
    return min(ours, key=lambda r: statistics.median(block_medians(r)), default=None)


def _ratio(row, base):
    if base is None or base is row:
        return "1"
    interval = ratio_interval(block_medians(row), block_medians(base))
    return f"{interval.ratio:.2f} ({interval.low:.2f}..{interval.high:.2f})"


def run(operators, dtypes, device, peaks, out=None, progress=True):
    """Measure the grid of `device` and return its rows, resuming from `out`/kernels.jsonl if it is there."""
    file = None if out is None else Path(out) / "kernels.jsonl"
    rows = read_rows(file)
    known = {(row["operator"], row["problem"], row["dtype"]) for row in rows}
    todo = [
        (operator, problem, dtype)
        for operator in operators
        for problem in GRIDS[operator][device.type]
        for dtype in dtypes
        if (operator, str(problem), dtype) not in known
    ]
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        appender = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            appender = stack.enter_context(contextlib.closing(Appender(file)))
        for operator, problem, dtype in track(
            todo, "kernels", console=console, disable=not progress
        ):
            found = measure_problem(operator, problem, dtype, device, peaks)
            if appender is not None:
                appender.append({"rows": found})
            rows += found
    return rows


def read_rows(file):
    """The rows of a `kernels.jsonl`, a torn last line aside; none where there is no file."""
    if file is None or not file.exists():
        return []
    whole = file.read_bytes().split(b"\n")[:-1]
    return [row for line in whole for row in json.loads(line)["rows"]]


def rates(peaks):
    """Copy bandwidth and exponential rate in words."""
    found = [f"a copy moves {peaks['copy_bytes_per_s'] / 1e9:.0f} GB/s, read plus written"]
    if peaks.get("exp_per_s"):
        found.append(f"{peaks['exp_per_s'] / 1e12:.3g} T exponentials/s")
    return "; ".join(found)


def main(argv=None):
    parser = Parser(
        prog="python -m bench.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--operator", default=",".join(OPERATORS), help="comma list (default: all)")
    parser.add_argument(
        "--dtype", default="fp32", help="comma list of fp32,bf16,fp16 (default: fp32)"
    )
    parser.add_argument("--out", metavar="DIR", help="keep the rows there (default: print only)")
    args = parser.parse_args(argv)
    try:
        operators = _choices("--operator", args.operator, OPERATORS)
        dtypes = _choices("--dtype", args.dtype, DTYPES)
    except PlanError as error:
        parser.error(str(error))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = measure_peaks(device)
    rows = run(operators, dtypes, device, peaks, args.out)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(result_table(rows))
    for reason, names in absences(rows).items():
        console.print(f"{', '.join(names)}: {reason}", soft_wrap=True)
    known = "; ".join(filter(None, (rates(peaks), left_out(rows))))
    console.print(f"Measured here: {known}.", soft_wrap=True)
    return 0


def _choices(option, text, known):
    names = text.split(",")
    for name in names:
        if name not in known:
            raise PlanError(f"{option} takes {', '.join(known)}, got {name!r}")
    return names


if __name__ == "__main__":
    sys.exit(main())
