"""Everything that needs a GPU, in one call: parity, the operators against their peers, the sweep of the models.

    python -m bench.gpu_suite --out DIR

Stages run in the order of their worth and are skipped when DIR already holds their result, so a second call
goes on where the first one was stopped:

    tests       the kernel and binding tests on the device, in every dtype
    kernels     bench.kernels in fp32 and bf16: every implementation and peer
    sweep       bench.sweep of paper-50m, 512 to 32,768 tokens, fp32 and bf16

It writes DIR/suite.json (everything, with the machine and the revision) and DIR/suite.md (one table). Commit
both under profiles/records/<machine>/.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from bench import kernels as bench_kernels
from bench.cli import Parser
from bench.contenders import OPERATORS
from bench.machine import describe
from bench.records import read_run

STAGES = ("tests", "kernels", "sweep")
SWEEP_LENGTHS = "512,1024,2048,4096,8192,16384,32768"
TESTS = ("tests/kernels", "tests/models/test_bind.py")


def run_tests(out, seconds):
    """Run the tests of kernels and bindings on the device; returns {"passed", "summary", "seconds"}."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    if importlib.util.find_spec("xdist"):  # most of the time goes into compiling
        command += ["-n", "8"]
    with (out / "tests.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False)
    lines = (out / "tests.log").read_text().strip().splitlines()
    return {
        "passed": done.returncode == 0,
        "summary": lines[-1] if lines else "no output",
        "seconds": time.monotonic() - start,
    }


def run_kernels(out, device, peaks):
    """Rows of bench.kernels in fp32 and bf16."""
    return bench_kernels.run(OPERATORS, ("fp32", "bf16"), device, peaks, out)


def run_sweep(out, seconds, extra=()):
    """The sweep as a run directory in `out`/sweep; returns one row a cell."""
    folder = out / "sweep"
    command = [sys.executable, "-m", "bench.sweep", "--out", str(folder)]
    if (folder / "plan.json").exists():
        command.append("--resume")
    else:
        command += ["--preset", "paper-50m", "--seqlens", SWEEP_LENGTHS, "--dtype", "fp32,bf16"]
        command += ["--rounds", "3", "--budget", "0.5", "--cell-timeout", "60", *extra]
    with (out / "sweep.log").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False)
    if done.returncode:
        last = (out / "sweep.log").read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"bench.sweep ended with {done.returncode}: {' '.join(last)}")
    return sweep_rows(folder)


def sweep_rows(folder):
    """One row a cell of a run directory: median over rounds of the median wall time, memory, parity."""
    cells = {}
    for record in read_run(folder).records:
        cells.setdefault(json.dumps(record["cell"], sort_keys=True), []).append(record)
    rows = []
    for key, records in cells.items():
        times = [
            statistics.median(r["time_ms"]["wall"])
            for r in records
            if r["status"] == "ok" and r["time_ms"]
        ]
        last = records[-1]
        rows.append(
            json.loads(key)
            | {
                "status": last["status"],
                "reason": last["reason"],
                "ms": statistics.median(times) if times else None,
                "rounds_ms": times,
                "memory_bytes": last["memory_bytes"],
                "kernels": last["kernels"],
                "parity": last["parity"],
            }
        )
    return rows


def kernel_lines(rows):
    """Markdown rows: operator, problem, dtype, contender, its time and rates, and its share of the floor."""
    columns = "ms | TFLOP/s | GB/s | share of floor | error/bound | note"
    yield f"| operator | problem | dtype | implementation | {columns} |"
    yield "|---|---|---|---|---:|---:|---:|---:|---:|---|"
    for row in rows:
        head = f"| {row['operator']} | {row['problem']} | {row['dtype']} | {row['impl']} |"
        bound = "" if row["error_over_bound"] is None else f"{row['error_over_bound']:.2f}"
        if row["samples_ms"]:
            ms = statistics.median(bench_kernels.block_medians(row))
            rates = f"{row['flops'] / ms / 1e9:.1f} | {row['bytes'] / ms / 1e6:.0f}"
            share = bench_kernels.share_of_floor(row)
            yield f"{head} {ms:.4f} | {rates} | {share} | {bound} | {row['kernel']} |"
        else:
            yield f"{head} | | | | {bound} | {row['status']}: {_cell(row['reason'])} |"


def sweep_lines(rows):
    """Markdown rows of the sweep."""
    yield "| architecture | implementation | dtype | seqlen | ms | peak MiB | status |"
    yield "|---|---|---|---:|---:|---:|---|"
    for row in rows:
        ms = "" if row["ms"] is None else f"{row['ms']:.3f}"
        peak = (row["memory_bytes"] or {}).get("peak_allocated")
        peak = "" if peak is None else f"{peak / 2**20:.0f}"
        status = row["status"] + (f": {_cell(row['reason'])}" if row["reason"] else "")
        yield (
            f"| {row['arch']} | {row['impl']} | {row['dtype']} | {row['seqlen']} "
            f"| {ms} | {peak} | {status} |"
        )


def _cell(text):
    return text.replace("|", "/").replace("\n", " ")[:160]


def write_record(out, result):
    """suite.json and suite.md."""
    (out / "suite.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    machine = result["machine"]
    gpu = machine["gpu"]
    lines = [
        f"# {gpu['name'] if gpu else machine['cpu']}, revision {machine['git']['revision']}",
        "",
        f"torch {machine['versions']['torch']}, triton {machine['versions'].get('triton')}, "
        f"{bench_kernels.rates(machine['peaks'])}.",
    ]
    if tests := result["stages"].get("tests"):
        lines += ["", f"Tests on the device: {tests['summary']}"]
    if rows := result["stages"].get("kernels"):
        lines += ["", *kernel_lines(rows)]
    if rows := result["stages"].get("sweep"):
        lines += ["", *sweep_lines(rows)]
    (out / "suite.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv=None):
    parser = Parser(
        prog="python -m bench.gpu_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--stages", default=",".join(STAGES), help=f"comma list (default: {','.join(STAGES)})"
    )
    parser.add_argument(
        "--seconds", type=float, default=540, help="time for everything (default: 540)"
    )
    args = parser.parse_args(argv)
    stages = args.stages.split(",")
    for stage in stages:
        if stage not in STAGES:
            parser.error(f"--stages takes {', '.join(STAGES)}, got {stage!r}")
    if not torch.cuda.is_available():
        parser.error(
            "there is no CUDA device on this machine: python -m bench.doctor says what can run"
        )
    return run_suite(Path(args.out), stages, args.seconds, torch.device("cuda"))


def run_suite(out, stages, seconds, device):
    """Run what is missing of `stages`, each followed by a write of the record; 1 if a stage failed."""
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    file = out / "suite.json"
    result = json.loads(file.read_text()) if file.exists() else {"stages": {}, "failed": {}}
    result["machine"] = describe(device)
    result["failed"] = {}
    work = {
        "tests": lambda left: run_tests(out, left),
        "kernels": lambda left: run_kernels(out, device, result["machine"]["peaks"]),
        "sweep": lambda left: run_sweep(out, left),
    }
    for stage in stages:
        left = deadline - time.monotonic()
        if stage in result["stages"]:
            console.print(f"{stage}: already there")
        elif left <= 0:
            result["failed"][stage] = "no time left: call again with the same --out"
        else:
            console.print(f"{stage}: {left:.0f} s left")
            try:
                result["stages"][stage] = work[stage](left)
            except (subprocess.TimeoutExpired, RuntimeError) as error:
                result["failed"][stage] = str(error)
        write_record(out, result)
    print((out / "suite.md").read_text())
    for stage, reason in result["failed"].items():
        console.print(f"{stage} failed: {reason}")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
