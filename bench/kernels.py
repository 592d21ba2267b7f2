"""The operators alone, every implementation and peer beside each other on the same inputs.

    python -m bench.kernels                                  what this machine can run, at sizes that suit it
    python -m bench.kernels --operator causal_attention --mode forward,backward --dtype bf16 --out runs/kernels
    python -m bench.kernels --operator selective_scan --seqlen 1024,4096 --batch 1,8

Every row passed the accuracy rule first (in the backward: every gradient of it): what fails has no time. Contenders
are timed in randomised blocks, on a GPU by device events with the L2 cache flushed before each sample and the launch
hidden behind a wait, on a CPU by the wall clock. A block counts with one number (its median); intervals of ratios are
t intervals over paired blocks. Whoever is slow has fewer blocks. The process is one, so intervals here tell whether
kernels differ, not whether processes do. The share of the floor is the least time that the machine's own peaks allow
(kernels.roofline), over the time; `copy` is a copy of as many bytes as the problem has to move. `--out` keeps every
row in `kernels.jsonl`, appended and synced, beside `kernels.md` and a picture; a second call with the same folder
measures only what is missing.
"""

import argparse
import contextlib
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bench import kernel_trial
from bench.cli import Parser
from bench.contenders import contenders
from bench.kernel_problems import GRIDS, MODES, OPERATORS, problems, resized
from bench.kernel_table import (
    absences,
    block_medians,
    left_out,
    markdown,
    rates,
    result_table,
    share_of_floor,
)
from bench.machine import describe, measure_peaks
from bench.plan import PlanError
from bench.records import Appender, one_line
from kernels.implementations import Unavailable, interpreted, recording
from kernels.roofline import floor, work

__all__ = ["block_medians", "measure_problem", "rates", "read_rows", "run", "share_of_floor"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALL_MODES = ("forward", "backward", "decode")
BLOCKS = 10
LEAST_BLOCKS = 3  # of a contender that is slow
SAMPLES = 5  # per block
SECONDS = {"cuda": 2.0, "cpu": 0.25}  # a contender on a problem


def measure_problem(
    operator, mode, problem, dtype, device, peaks, *, blocks=BLOCKS, samples=SAMPLES
):
    """Check and time every contender on one problem: a list of rows, dicts of plain values.

    `peaks` are those of `bench.machine.measure_peaks`; rows hold the floor that follows from them.
    """
    kind = DTYPES[dtype]
    checked = kernel_trial.checked_problem(problem, mode, device)
    truth = kernel_trial.truth(operator, checked, mode, kind, device)
    small, inputs = checked.inputs(kind, device), problem.inputs(kind, device)
    clock = _device_clock(device) if device.type == "cuda" else _wall_clock
    rows, admitted = [], []
    for contender in contenders(operator, mode, problem, kind, device):
        row = _new_row(operator, mode, problem, dtype, contender.name, peaks)
        rows.append(row | {"checked_on": str(checked)})
        row = rows[-1]
        try:
            contender.check_available(device)
            if not contender.checked or _admit(row, contender, small, truth):
                repeat = _repeat(contender, mode, inputs)
                once = statistics.median(clock(repeat) for _ in range(2))
                admitted.append((row, repeat, *_plan(once, blocks, samples, device)))
        except (Unavailable, NotImplementedError) as error:
            row.update(status="unavailable", reason=" ".join(str(error).split()))
        except ImportError as error:  # a peer whose own dependencies are missing
            status = "unavailable" if contender.module else "error"
            row.update(status=status, reason=" ".join(str(error).split()))
        except torch.OutOfMemoryError as error:
            row.update(status="oom", reason=one_line(error))
        except Exception as error:  # a peer that breaks is a row of the table, not the end of it
            row.update(status="error", reason=one_line(error))
        if row["status"] in ("oom", "error"):
            _free(device)
    shuffle = random.Random(f"{mode} {problem}").shuffle
    for block in range(blocks):
        shuffle(admitted)
        for row, repeat, its_blocks, its_samples in admitted:
            if block < its_blocks:
                row["samples_ms"].append([clock(repeat) for _ in range(its_samples)])
    return rows


def _repeat(contender, mode, inputs):
    """The call that is timed; what the first one computed is not kept."""
    if not contender.checked:
        return contender.run
    return kernel_trial.start(contender.run, mode, inputs, contender.prepare).repeat


def _plan(once, blocks, samples, device):
    """(blocks, samples a block) of a contender that takes `once` ms."""
    affordable = int(1e3 * SECONDS[device.type] / max(once, 1e-6))
    if affordable >= blocks * samples:
        return blocks, samples
    return min(blocks, max(LEAST_BLOCKS, affordable)), max(1, min(samples, affordable // blocks))


def _free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _new_row(operator, mode, problem, dtype, name, peaks):
    direction = "backward" if mode == "backward" else "forward"
    least = floor(problem, dtype, peaks, direction)
    flops, moved, _ = work(problem, DTYPES[dtype], direction)
    return {
        "operator": operator,
        "mode": mode,
        "problem": str(problem),
        "dtype": dtype,
        "impl": name,
        "status": "ok",
        "reason": "",
        "kernel": "",
        "error_over_bound": None,
        "samples_ms": [],
        "flops": flops,
        "bytes": moved,
        "floor_ms": 1e3 * least.seconds,
        "bound": least.bound,
        "floor_missing": list(least.missing),
    }


def _admit(row, contender, inputs, truth):
    """Run a contender once and note in its row what ran and how it erred; False if it must not be timed."""
    mode = row["mode"]
    with recording() as manifest:
        trial = kernel_trial.start(contender.run, mode, inputs, contender.prepare)
    wanted = f"{row['operator']}_backward" if mode == "backward" else row["operator"]
    row["kernel"] = manifest.get(wanted) or manifest.get(row["operator"], contender.name)
    row["error_over_bound"], found = kernel_trial.worst_error(trial.outputs, *truth, mode)
    if row["error_over_bound"] > 1:
        row.update(status="error", reason=f"fails the accuracy rule: {found}")
    elif row["impl"] == "triton" and interpreted():
        row.update(status="interpreted", reason="Triton's interpreter says nothing about time")
    return row["status"] == "ok"


def _wall_clock(run):
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _device_clock(device):
    """A clock of device events that empties the L2 cache before it starts, and then waits for the launch."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(max(size, 1 << 27), dtype=torch.int8, device=device)

    def clock(run):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        # about half a millisecond, in which the host enqueues what is timed
        torch.cuda._sleep(1_000_000)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return clock


def run(
    operators, dtypes, device, peaks, out=None, progress=True, *,
    modes=ALL_MODES, grid="quick", seqlens=None, batches=None,
):  # fmt: skip
    """Measure the grid of `device` and return its rows, resuming from `out`/kernels.jsonl if it is there."""
    file = None if out is None else Path(out) / "kernels.jsonl"
    rows = read_rows(file)
    known = {(row["operator"], row["mode"], row["problem"], row["dtype"]) for row in rows}
    todo = [
        (operator, mode, problem, dtype)
        for operator in operators
        for mode in MODES[operator]
        if mode in modes
        for problem in resized(problems(operator, mode, device.type, grid), seqlens, batches)
        for dtype in dtypes
        if (operator, mode, str(problem), dtype) not in known
    ]
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        appender = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            appender = stack.enter_context(contextlib.closing(Appender(file)))
        for case in track(todo, "kernels", console=console, disable=not progress):
            found = measure_problem(*case, device, peaks)
            if appender is not None:
                appender.append({"rows": found})
            rows += found
    return rows


def read_rows(file):
    """The rows of a `kernels.jsonl`, a torn last line aside; none where there is no file."""
    if file is None or not file.exists():
        return []
    whole = file.read_bytes().split(b"\n")[:-1]
    # a file from before there were modes has forwards only
    return [{"mode": "forward"} | row for line in whole for row in json.loads(line)["rows"]]


def main(argv=None):
    parser = Parser(
        prog="python -m bench.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--operator", default=",".join(OPERATORS), help="comma list (default: all)")
    option("--mode", default=",".join(ALL_MODES), help="comma list (default: all that there are)")
    option("--dtype", default="fp32", help="comma list of fp32,bf16,fp16 (default: fp32)")
    option("--grid", choices=GRIDS, default="quick", help="of a GPU's sizes (default: quick)")
    option("--seqlen", metavar="N,…", help="lengths of one's own, with the grid's first shape")
    option("--batch", metavar="N,…", help="batches of one's own")
    option("--out", metavar="DIR", help="keep rows, table and picture there (default: print only)")
    args = parser.parse_args(argv)
    try:
        operators = _choices("--operator", args.operator, OPERATORS)
        modes = _choices("--mode", args.mode, ALL_MODES)
        dtypes = _choices("--dtype", args.dtype, DTYPES)
        sizes = {
            "seqlens": _sizes("--seqlen", args.seqlen),
            "batches": _sizes("--batch", args.batch),
        }
    except PlanError as error:
        parser.error(str(error))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = measure_peaks(device)
    rows = run(operators, dtypes, device, peaks, args.out, modes=modes, grid=args.grid, **sizes)
    console = Console(width=None if sys.stdout.isatty() else 220)
    console.print(result_table(rows))
    for reason, names in absences(rows).items():
        console.print(f"{', '.join(names)}: {reason}", soft_wrap=True)
    known = "; ".join(filter(None, (rates(peaks), left_out(rows))))
    console.print(f"Measured here: {known}.", soft_wrap=True)
    if args.out:
        from bench import kernel_figure  # matplotlib takes a second

        machine = describe(device, peaks=False)
        name = machine["gpu"]["name"] if machine["gpu"] else machine["cpu"]
        title = f"Operators alone: {name}, revision {machine['git']['revision']}"
        (Path(args.out) / "kernels.md").write_text(markdown(rows, peaks, title), encoding="utf-8")
        for path in ("kernels.md", *kernel_figure.write(rows, Path(args.out))):
            console.print(f"wrote {Path(args.out) / path}", soft_wrap=True)
    return 0


def _choices(option, text, known):
    names = text.split(",")
    for name in names:
        if name not in known:
            raise PlanError(f"{option} takes {', '.join(known)}, got {name!r}")
    return names


def _sizes(option, text):
    if text is None:
        return None
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise PlanError(f"{option} takes positive integers, separated by commas, got {text!r}")
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
