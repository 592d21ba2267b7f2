"""Hardware counters of one operator's kernels by Nsight Compute, beside what their machine code predicts.

    python -m profiles.counters --operator selective_scan --mode forward --dtype bf16
    python -m profiles.counters --operator causal_attention --mode backward --impl torch --out DIR
    python -m profiles.counters --csv FILE                   the table of counters that were recorded before

ncu starts this module again as a child, which warms the operator up and runs it once between cudaProfilerStart and
cudaProfilerStop; clocks are left alone (--clock-control none). For every kernel launched in between the table says how
busy each unit was, which is the limit (the busiest one, or waiting if all are below 60 %), why warps waited, and how
many instructions were issued per 32 units of work, beside the count of `profiles.static` for the kernel of that name.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import profilers
from bench.cli import Parser, at_least
from bench.kernel_problems import GRIDS, MODES, OPERATORS, problems
from bench.kernel_rows import make_folder
from bench.kernels import ALL_MODES, DTYPES
from kernels.implementations import IMPLEMENTATIONS

STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    "long_scoreboard", "short_scoreboard", "math_pipe_throttle", "mio_throttle", "lg_throttle", "tex_throttle", "wait",
    "barrier", "membar", "not_selected", "no_instruction", "dispatch_stall", "branch_resolving", "sleeping", "drain",
    "imc_miss", "gmma",
)  # fmt: skip
# {unit: how busy it was, percent}
BUSY = {
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "exponential": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "FMA": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "ALU": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "load/store": "sm__inst_executed_pipe_lsu.avg.pct_of_peak_sustained_active",
    "tensor core": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "shared memory": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "L2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "DRAM": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
}
# {name: metric}, in ncu's base units: ns, bytes, instructions
COUNTS = {
    "duration_ns": "gpu__time_duration.sum",
    "instructions": "smsp__inst_executed.sum",
    "dram_bytes": "dram__bytes.sum",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "local_loads": "smsp__inst_executed_op_local_ld.sum",
    "registers": "launch__registers_per_thread",
    "occupancy_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "threads": "launch__block_size",
    "blocks": "launch__grid_size",
}
METRICS = (*BUSY.values(), *COUNTS.values(), *map(STALL.format, STALLS))
WAITING = 60.0  # percent: where no unit is busier, warps wait
# units of the work that a kernel's machine code is counted by: `work` of its `static_cases`
WORK = {
    "selective_scan": lambda p: p.batch * p.seqlen * p.dim,
    "causal_conv1d": lambda p: p.batch * p.seqlen * p.dim,
    "selective_state_update": lambda p: p.batch * p.dim * p.dstate,
    "causal_conv1d_update": lambda p: p.batch * p.dim,
    "scan_statistics": lambda p: p.batch * p.seqlen * p.dim,
    "mamba_mixer": lambda p: p.batch * p.seqlen * p.dim,
}
UNKNOWN = re.compile(r"\b[a-z0-9]+__[\w.]+")
STATIC = Path(__file__).parent / "records" / "static-sm_90" / "static.json"


class CountersError(RuntimeError):
    """ncu gave no counters; the message says why."""


def read_csv(text):
    """Rows of `ncu --csv --page raw`: {"kernel", "counters": {metric: number}}, one a launch.

    Lines before the head are ncu's own messages; the line after it has units. What a chip does not count is left out.
    """
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise CountersError(f"ncu wrote no table: {_last(text)}")
    head, _, *rows = csv.reader(lines[first:])
    name = head.index("Kernel Name")
    found = []
    for row in rows:
        if len(row) == len(head):
            pairs = zip(head, map(_number, row), strict=True)
            counters = {metric: n for metric, n in pairs if "__" in metric and n is not None}
            found.append({"kernel": row[name], "counters": counters})
    return found


def _number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:  # n/a, or nothing
        return None


def facts(row, units=None):
    """What the table says of one launch, as plain values; counters that are missing give None.

    Args:
        row: of `read_csv`.
        units: of work that the launch did, or None.
    """
    counters = row["counters"]
    counts = {name: counters.get(metric) for name, metric in COUNTS.items()}
    busy = {unit: counters[m] for unit, m in BUSY.items() if m in counters}
    stalls = {name: counters[m] for name in STALLS if (m := STALL.format(name)) in counters}
    top = sorted(stalls.items(), key=lambda item: -item[1])[:3]
    per_32 = None
    if units and counts["instructions"]:
        per_32 = 32 * counts["instructions"] / units
    return {
        "kernel": row["kernel"],
        **counts,
        "busy": busy,
        "stalls": dict(top),
        "instructions_per_32": per_32,
        "limit": limit(busy, top),
    }


def limit(busy, stalls):
    """The unit that limits a kernel, in words."""
    if not busy:
        return "unknown"
    unit = max(busy, key=busy.get)
    if busy[unit] >= WAITING or not stalls:
        return f"{unit} ({busy[unit]:.0f} %)"
    return f"waiting: {stalls[0][0]} ({unit} {busy[unit]:.0f} %)"


def units_of(operator, problem):
    """Units of work of a problem; of attention and its statistics the scores that the mask keeps."""
    return WORK[operator](problem) if operator in WORK else problem.flops() / (4 * problem.headdim)


def static_counts(kernel, dtype, record=None):
    """ "least..most issue slots per 32 UNITS" of the static record of kernels like one that was launched; "" if none.

    A kernel function `selective_scan_fwd_kernel` is in the record as `selective_scan_fwd-bf16-…`.
    """
    path = record or STATIC
    if not path.exists():
        return ""
    stem = kernel.removesuffix("_kernel")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    alike = [
        row for row in rows
        if f"{stem}-{dtype}" in row["kernel"] and row["unit"].startswith("32 ") and "issue" in row["clocks"]
    ]  # fmt: skip
    if not alike:
        return ""
    issued = [row["clocks"]["issue"] for row in alike]
    span = f"{min(issued):.3g}..{max(issued):.3g}" if len(set(issued)) > 1 else f"{issued[0]:.3g}"
    return f"{span} per {alike[0]['unit']}"


def record(command):
    """The rows of `command` under ncu; metrics that this chip does not know are left out."""
    metrics = list(METRICS)
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        for _ in range(3):
            done = subprocess.run(
                ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
                 "--print-units", "base", "--log-file", file.name, "--metrics", ",".join(metrics), *command],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            text = Path(file.name).read_text(encoding="utf-8", errors="replace")
            unknown = unknown_metrics(text + done.stdout + done.stderr) & set(metrics)
            if not unknown:
                break
            metrics = [name for name in metrics if name not in unknown]
    if '"ID"' not in text:
        raise CountersError(f"ncu recorded nothing: {_last(text + done.stderr)}")
    return read_csv(text)


def unknown_metrics(said):
    """Names that ncu complained of."""
    lines = [line for line in said.splitlines() if "==ERROR==" in line or "Failed to find" in line]
    return {name for line in lines for name in UNKNOWN.findall(line)}


def _last(text):
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def run_child(operator, mode, problem, dtype, impl):
    """Warm an operator up, and run it once where ncu looks."""
    import torch

    from bench import kernel_trial
    from bench.mixer import public

    device = torch.device("cuda")
    checked = kernel_trial.checked_problem(problem, mode, device)
    small = kernel_trial.draw(checked, DTYPES[dtype], device)
    inputs = kernel_trial.timed_inputs(problem, checked, small, DTYPES[dtype], device)
    trial = kernel_trial.start(partial(public(operator), impl=impl), mode, inputs)
    trial.repeat()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    trial.repeat()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


HEAD = (
    "kernel", "µs", "instructions per 32", "static count", "limit", "busy %", "waits", "registers", "occupancy %",
    "DRAM MB",
)  # fmt: skip


def cells(found, dtype):
    """One line of the table, a text a column."""
    number = lambda value, scale=1.0: "" if value is None else f"{value * scale:.4g}"
    busy = sorted(found["busy"].items(), key=lambda item: -item[1])[:4]
    return (
        found["kernel"],
        number(found["duration_ns"], 1e-3),
        number(found["instructions_per_32"]),
        static_counts(found["kernel"], dtype),
        found["limit"],
        ", ".join(f"{unit} {n:.0f}" for unit, n in busy),
        ", ".join(f"{name} {n:.2g}" for name, n in found["stalls"].items()),
        number(found["registers"]),
        number(found["occupancy_pct"]),
        number(found["dram_bytes"], 1e-6),
    )


def markdown(rows, title, dtype):
    lines = [f"# {title}", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(cells(found, dtype))} |" for found in rows]
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = Parser(
        prog="python -m profiles.counters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--operator", choices=OPERATORS, default="selective_scan", help="(default: %(default)s)")
    option("--mode", choices=ALL_MODES, default="forward", help="(default: %(default)s)")
    option("--dtype", choices=DTYPES, default="bf16", help="(default: %(default)s)")
    option("--impl", choices=IMPLEMENTATIONS, default="triton", help="(default: %(default)s)")
    option(
        "--grid", choices=GRIDS, default="quick", help="where the problem is from (default: quick)"
    )
    option("--number", type=at_least(0), default=1, metavar="N",
           help="of the problem in the grid, from 0 (default: 1)")  # fmt: skip
    option("--csv", type=Path, metavar="FILE", help="read this output of ncu instead of recording")
    option(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write OPERATOR-MODE-DTYPE-IMPL.json and .md there",
    )
    option("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.mode not in MODES[args.operator]:
        parser.error(f"--mode {args.mode}: {args.operator} has {', '.join(MODES[args.operator])}")
    grid = problems(args.operator, args.mode, "cuda", args.grid)
    if args.number >= len(grid):
        parser.error(f"--number {args.number}: the grid {args.grid} has {len(grid)} such problems")
    problem = grid[args.number]
    if args.child:
        run_child(args.operator, args.mode, problem, args.dtype, args.impl)
        return 0
    try:
        if args.csv:
            rows = read_csv(args.csv.read_text(encoding="utf-8"))
        else:
            if reason := profilers.ncu().reason:
                parser.error(f"unavailable, because {reason}")
            again = sys.argv[1:] if argv is None else argv
            rows = record([sys.executable, "-m", "profiles.counters", *again, "--child"])
    except (CountersError, OSError) as error:
        parser.error(str(error))
    found = [facts(row, units_of(args.operator, problem)) for row in rows]
    title = f"{args.operator} {args.mode} {args.dtype} {args.impl}, {problem}"
    table = Table(title=title, title_justify="left")
    for column in HEAD:
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_row(*cells(one, args.dtype))
    Console(width=None if sys.stdout.isatty() else 220).print(table)
    if args.out:
        make_folder(parser, "--out", args.out)
        name = args.out / f"{args.operator}-{args.mode}-{args.dtype}-{args.impl}"
        made = {"problem": str(problem), "impl": args.impl, "rows": found}
        name.with_suffix(".md").write_text(markdown(found, title, args.dtype), encoding="utf-8")
        name.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
