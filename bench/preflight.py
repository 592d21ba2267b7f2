"""Does every Triton kernel compile, run and compute the right thing here? Seconds instead of a broken long run.

    python -m bench.preflight                         every operator and mode in bf16 (on a CPU: fp32), in parallel
    python -m bench.preflight --dtype bf16,fp32 --grid scan --out DIR

Each operator, mode and dtype has a process of its own, so a kernel that takes the GPU's context down, or the compiler
that dies of it, costs one line of the table. It is compared with PyTorch by the accuracy rule on a small problem. With
--grid it is then launched once on every problem of that grid that is not too large: what is compiled lies in Triton's
cache on the disk, where `bench.kernels` finds it. --out keeps preflight.jsonl; what passed there is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import kernels
from bench import kernel_trial
from bench.cli import Parser, positive, seconds, some
from bench.kernel_problems import GRIDS, MODES, OPERATORS, problems
from bench.kernel_rows import make_folder
from bench.kernels import ALL_MODES, DTYPES
from bench.mixer import MixerProblem, public
from bench.records import Appender, one_line
from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.scan_statistics.problem import ScanStatisticsProblem
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem

NAME = "preflight.jsonl"
FAILED = ("error", "died", "timeout")
WARM_BYTES = 1 << 30  # of one operand's problem: many processes share the GPU
# ragged, and long enough for more than one tile
SMALL = {
    "selective_scan": SelectiveScanProblem(2, 259, 136),
    "causal_conv1d": CausalConv1dProblem(2, 136, 259),
    "causal_attention": CausalAttentionProblem(1, 4, 259, 64, 2),
    "selective_state_update": StateUpdateProblem(3, 136),
    "causal_conv1d_update": ConvUpdateProblem(3, 136),
    "attention_statistics": AttentionStatisticsProblem(1, 4, 259, 64, 2),
    "scan_statistics": ScanStatisticsProblem(1, 131, 64),
    "mamba_mixer": MixerProblem(2, 259, 64),
}
DECODED = CausalAttentionProblem(2, 4, 1027, 64, 2, seqlen_q=1)
TINY = {  # through the interpreter, which takes milliseconds for an operation
    "selective_scan": SelectiveScanProblem(1, 9, 8, 4),
    "causal_conv1d": CausalConv1dProblem(1, 8, 9),
    "causal_attention": CausalAttentionProblem(1, 2, 17, 16, 1),
    "selective_state_update": StateUpdateProblem(2, 8, 4),
    "causal_conv1d_update": ConvUpdateProblem(2, 8),
    "attention_statistics": AttentionStatisticsProblem(1, 2, 17, 16, 1),
    "scan_statistics": ScanStatisticsProblem(1, 9, 8, 4),
    "mamba_mixer": MixerProblem(1, 9, 8, 4),
}


def small_problem(operator, mode, device_type):
    """What an operator is checked on."""
    if device_type == "cpu":
        return TINY[operator]
    return DECODED if (operator, mode) == ("causal_attention", "decode") else SMALL[operator]


def check(operator, mode, dtype, device, grid=None, limit=60.0):
    """{"operator", "mode", "dtype", "status", "reason", "error_over_bound", "launched", "seconds"} of one kernel."""
    row = {"operator": operator, "mode": mode, "dtype": dtype, "status": "ok", "reason": ""}
    row |= {"error_over_bound": None, "launched": 0, "seconds": 0.0}
    start = time.monotonic()
    try:
        _check(row, device, grid, start + limit)
    except (kernels.Unavailable, NotImplementedError) as error:
        row |= {"status": "unavailable", "reason": one_line(error, kind=False)}
    except Exception as error:
        row |= {"status": "error", "reason": one_line(error)}
    return row | {"seconds": time.monotonic() - start}


def _check(row, device, grid, deadline):
    operator, mode, kind = row["operator"], row["mode"], DTYPES[row["dtype"]]
    run = partial(public(operator), impl="triton")
    problem = small_problem(operator, mode, device.type)
    truth = kernel_trial.truth(operator, problem, mode, kind, device)
    trial = kernel_trial.start(run, mode, kernel_trial.draw(problem, kind, device))
    row["error_over_bound"], found = kernel_trial.worst_error(trial.outputs, *truth, mode)
    if row["error_over_bound"] > 1:
        row |= {"status": "error", "reason": f"fails the accuracy rule: {found}"}
        return
    for problem in problems(operator, mode, device.type, grid) if grid else ():
        if time.monotonic() > deadline:
            return
        if problem.bytes(kind) <= WARM_BYTES:
            checked = kernel_trial.checked_problem(problem, mode, device)
            small = kernel_trial.draw(checked, kind, device)
            inputs = kernel_trial.timed_inputs(problem, checked, small, kind, device)
            kernel_trial.start(run, mode, inputs)
            row["launched"] += 1


def check_all(todo, out=None, grid=None, limit=60.0, workers=None, progress=True):
    """Check each (operator, mode, dtype) in a process of its own, many at once; yields rows as they come."""
    workers = workers or max(1, min(12, len(os.sched_getaffinity(0)) - 2))
    console = Console(stderr=True)
    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(_in_process, *case, grid, limit) for case in todo]
        for run in track(
            as_completed(runs), "preflight", len(runs), console=console, disable=not progress
        ):
            row = run.result()
            if out is not None:
                out.append(row)
            yield row


def _in_process(operator, mode, dtype, grid, limit):
    row = {"operator": operator, "mode": mode, "dtype": dtype, "reason": ""}
    command = [sys.executable, "-m", "bench.preflight", "--child", f"{operator}/{mode}/{dtype}"]
    command += ["--seconds", str(limit)] + (["--grid", grid] if grid else [])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=2 * limit + 60, check=False
        )
    except subprocess.TimeoutExpired as error:
        return row | {"status": "timeout", "reason": f"took longer than {error.timeout:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return row | {"status": "died", "reason": f"ended with {done.returncode}: {last[:300]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def read(folder):
    """{(operator, mode, dtype): its newest row} of a folder."""
    file = Path(folder) / NAME
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    rows = map(json.loads, lines)
    return {(row["operator"], row["mode"], row["dtype"]): row for row in rows}


def failing(folder):
    """{(operator, mode): why} of what must not be run; a dtype that fails counts for all."""
    return {
        (operator, mode): f"{dtype}: {row['reason']}"
        for (operator, mode, dtype), row in read(folder).items()
        if row["status"] in FAILED
    }


def cases(operators, modes, dtypes):
    """[(operator, mode, dtype)] that there are."""
    return [(o, m, d) for d in dtypes for o in operators for m in MODES[o] if m in modes]


def lines(rows):
    """The table in Markdown."""
    yield "| operator | mode | dtype | status | error / bound | launched | seconds |"
    yield "|---|---|---|---|---:|---:|---:|"
    for row in rows:
        bound = row.get("error_over_bound")
        why = f": {row['reason']}".replace("|", "/")[:200] if row["reason"] else ""
        yield (
            f"| {row['operator']} | {row['mode']} | {row['dtype']} | {row['status']}{why} "
            f"| {'' if bound is None else f'{bound:.2f}'} | {row.get('launched', '')} | {row.get('seconds', 0):.1f} |"
        )


def main(argv=None):
    parser = Parser(
        prog="python -m bench.preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    on_gpu = torch.cuda.is_available()
    option = parser.add_argument
    option("--operator", type=some(OPERATORS), default=list(OPERATORS), metavar="LIST",
           help="comma list (default: all)")  # fmt: skip
    option("--mode", type=some(ALL_MODES), default=list(ALL_MODES), metavar="LIST",
           help="comma list (default: all)")  # fmt: skip
    option("--dtype", type=some(DTYPES), default=["bf16" if on_gpu else "fp32"], metavar="LIST",
           help="comma list (default: bf16; on a CPU, through the interpreter, fp32)")  # fmt: skip
    option("--grid", choices=GRIDS, help="also launch these problems once (default: none)")
    option("--seconds", type=seconds, default=60.0, help="of one process (default: 60)")
    option(
        "--workers", type=positive, help="processes at once (default: cores less two, at most 12)"
    )
    option("--out", type=Path, metavar="DIR", help="keep the rows there")
    option("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        device = torch.device("cuda" if on_gpu else "cpu")
        print(json.dumps(check(*args.child.split("/"), device, args.grid, args.seconds)))
        return 0
    known, appender = {}, None
    if args.out:
        make_folder(parser, "--out", args.out)
        known, appender = read(args.out), Appender(args.out / NAME)
    todo = cases(args.operator, args.mode, args.dtype)
    left = [case for case in todo if known.get(case, {}).get("status") not in ("ok", "unavailable")]
    found = list(check_all(left, appender, args.grid, args.seconds, args.workers))
    if appender:
        appender.close()
    rows = [known[case] for case in todo if case not in left] + found
    table = Table("operator", "mode", "dtype", "status", "error / bound", "launched", "seconds")
    for line in list(lines(rows))[2:]:
        table.add_row(*(cell.strip() for cell in line.strip("|").split("|")))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 1 if any(row["status"] in FAILED for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
