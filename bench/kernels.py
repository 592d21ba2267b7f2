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
measures only what is missing. A contender that takes the GPU's context down with it ends the process with status 3;
the next call goes on without that contender in that operator and mode.
"""

import argparse
import contextlib
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bench import kernel_trial
from bench.cli import Parser, positives, seconds, some
from bench.contenders import NAMES, contenders
from bench.kernel_outcome import ContextLost, settling
from bench.kernel_problems import GRIDS, MODES, OPERATORS, problems, resized
from bench.kernel_rows import (
    CONTEXT_LOST,
    Rows,
    known_peaks,
    make_folder,
    new_row,
    read_rows,
    write_pages,
)
from bench.kernel_table import (
    absences,
    block_medians,
    left_out,
    rates,
    result_table,
    share_of_floor,
)
from kernels.implementations import interpreted, recording

__all__ = [
    "CONTEXT_LOST",
    "block_medians",
    "measure_problem",
    "rates",
    "read_rows",
    "run",
    "share_of_floor",
]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALL_MODES = ("forward", "backward", "decode")
BLOCKS = 10
LEAST_BLOCKS = 3  # of a contender that is slow
SAMPLES = 5  # per block
SECONDS = {"cuda": 2.0, "cpu": 0.25}  # a contender on a problem
HANG_S = 120.0  # of a contender on a GPU, compiling included


def measure_problem(
    operator, mode, problem, dtype, device, peaks, *,
    blocks=BLOCKS, samples=SAMPLES, only=None, effort=None, broken=None, trying=contextlib.nullcontext,
):  # fmt: skip
    """Check and time every contender on one problem: a list of rows, dicts of plain values.

    Args:
        peaks: those of `bench.machine.measure_peaks`; rows hold the floor that follows from them.
        only: names of contenders, or None for all.
        effort: seconds of a contender; None is SECONDS.
        broken: {contender: why it is not run any more}.
        trying: function of a contender's name that gives the context in which it first runs.

    Raises:
        ContextLost: a contender left the GPU unusable.
    """
    kind = DTYPES[dtype]
    checked = kernel_trial.checked_problem(problem, mode, device)
    truth = kernel_trial.truth(operator, checked, mode, kind, device)
    small = kernel_trial.draw(checked, kind, device)
    inputs = kernel_trial.timed_inputs(problem, checked, small, kind, device)
    clock = device_clock(device) if device.type == "cuda" else _wall_clock
    rows, admitted = [], []
    for contender in contenders(operator, mode, problem, kind, device):
        if only and contender.name not in only:
            continue
        row = new_row(operator, mode, problem, dtype, contender.name, peaks)
        rows.append(row | {"checked_on": str(checked)})
        row = rows[-1]
        if why := (broken or {}).get(contender.name):
            row.update(status="error", reason=f"not run, because it broke before: {why}")
            continue
        with trying(contender.name), settling(row, contender, device):
            contender.check_available(device)
            if not contender.checked or _admit(row, contender, small, truth):
                repeat = _repeat(row, contender, inputs, truth)
                if row["status"] == "ok":
                    once = statistics.median(clock(repeat) for _ in range(2))
                    admitted.append(
                        (row, contender, repeat, *_plan(once, blocks, samples, device, effort))
                    )
    shuffle = random.Random(f"{mode} {problem}").shuffle
    for block in range(blocks):
        shuffle(admitted)
        for row, contender, repeat, its_blocks, its_samples in admitted:
            if block < its_blocks and row["status"] == "ok":
                with settling(row, contender, device):
                    row["samples_ms"].append([clock(repeat) for _ in range(its_samples)])
    return rows


def _repeat(row, contender, inputs, truth):
    """The call that is timed; what the first one computed is checked where it can be, and not kept."""
    if not contender.checked:
        return contender.run
    trial = kernel_trial.start(contender.run, row["mode"], inputs, contender.prepare)
    if wrong := kernel_trial.wrong_at_size(trial.outputs, truth, row["mode"]):
        row.update(status="error", reason=f"fails the accuracy rule at its own size: {wrong}")
    return trial.repeat


def _plan(once, blocks, samples, device, effort=None):
    """(blocks, samples a block) of a contender that takes `once` ms."""
    affordable = int(1e3 * (effort or SECONDS[device.type]) / max(once, 1e-6))
    if affordable >= blocks * samples:
        return blocks, samples
    return min(blocks, max(LEAST_BLOCKS, affordable)), max(1, min(samples, affordable // blocks))


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


def device_clock(device):
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


def cases(operators, modes, dtypes, device_type, grid="quick", seqlens=None, batches=None):
    """[(operator, mode, problem, dtype)] of a grid, in the order of their measurement."""
    return [
        (operator, mode, problem, dtype)
        for operator in operators
        for mode in MODES[operator]
        if mode in modes
        for problem in resized(problems(operator, mode, device_type, grid), seqlens, batches)
        for dtype in dtypes
    ]


def run(
    operators, dtypes, device, peaks, out=None, progress=True, *,
    modes=ALL_MODES, grid="quick", seqlens=None, batches=None, only=None, effort=None, limit=None,
):  # fmt: skip
    """Measure the grid of `device` and return its rows, resuming from `out`/kernels.jsonl if it is there.

    Args:
        only, effort: as of `measure_problem`.
        limit: seconds after which no further problem is begun.
    """
    deadline = None if limit is None else time.monotonic() + limit
    console = Console(stderr=True)
    with contextlib.closing(Rows(None if out is None else Path(out))) as rows:
        todo = rows.missing(cases(operators, modes, dtypes, device.type, grid, seqlens, batches))
        for case in track(todo, "kernels", console=console, disable=not progress):
            if deadline is not None and time.monotonic() > deadline:
                break
            operator, mode, _, _ = case
            trying = partial(
                rows.trying, operator, mode, seconds=HANG_S if device.type == "cuda" else None
            )
            try:
                found = measure_problem(
                    *case, device, peaks, only=only, effort=effort, broken=rows.broken(operator, mode), trying=trying
                )  # fmt: skip
                rows.add(found)
            except ContextLost as lost:
                rows.note_broken(operator, mode, lost.impl, lost.reason)
                raise
        return rows.rows


def main(argv=None):
    parser = Parser(
        prog="python -m bench.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--operator", type=some(OPERATORS), default=list(OPERATORS), metavar="LIST",
           help="comma list (default: all)")  # fmt: skip
    option("--mode", type=some(ALL_MODES), default=list(ALL_MODES), metavar="LIST",
           help="comma list of forward, backward, decode (default: all that there are)")  # fmt: skip
    option("--dtype", type=some(DTYPES), default=["fp32"], metavar="LIST",
           help="comma list of fp32, bf16, fp16 (default: fp32)")  # fmt: skip
    option("--grid", choices=GRIDS, default="quick", help="of a GPU's sizes (default: quick)")
    option("--seqlen", type=positives, metavar="N,…",
           help="lengths of one's own, with the grid's first shape")  # fmt: skip
    option("--batch", type=positives, metavar="N,…", help="batches of one's own")
    option("--contender", type=some(NAMES), metavar="LIST",
           help=f"of {', '.join(NAMES)} (default: all)")  # fmt: skip
    default = "(default: {cuda} on a GPU, {cpu} on a CPU)".format(**SECONDS)
    option("--effort", type=seconds, metavar="SECONDS",
           help=f"of one contender on one problem {default}")  # fmt: skip
    option("--seconds", type=seconds, metavar="S", help="begin no problem later (default: never)")
    option("--out", type=Path, metavar="DIR",
           help="keep rows, table and picture there (default: print only)")  # fmt: skip
    option("--rows-only", action="store_true", help="print no table and draw no picture")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.out:
        make_folder(parser, "--out", args.out)
    try:
        peaks = known_peaks(args.out, device)
        rows = run(
            args.operator, args.dtype, device, peaks, args.out, modes=args.mode, grid=args.grid,
            seqlens=args.seqlen, batches=args.batch, only=args.contender, effort=args.effort, limit=args.seconds,
        )  # fmt: skip
    except ContextLost as lost:
        print(f"{lost}; the same command goes on without it", file=sys.stderr)
        return CONTEXT_LOST
    if args.rows_only:
        return 0
    console = Console(width=None if sys.stdout.isatty() else 220)
    console.print(result_table(rows))
    for reason, names in absences(rows).items():
        console.print(f"{', '.join(names)}: {reason}", soft_wrap=True)
    known = "; ".join(filter(None, (rates(peaks), left_out(rows))))
    console.print(f"Measured here: {known}.", soft_wrap=True)
    for path in write_pages(args.out, rows, peaks, device) if args.out else ():
        console.print(f"wrote {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
