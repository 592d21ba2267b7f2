"""Everything that needs a GPU, in one call: parity, the operators against their peers, determinism, the models.

    python -m bench.gpu_suite --out DIR

Stages run in the order of their worth and are skipped when DIR already holds their result, so a second call
goes on where the first one was stopped:

    tests              the kernel, binding and compilation tests on the device, in every dtype
    kernels-forward    bench.kernels in fp32 and bf16: every implementation and peer, and kernels-backward,
    kernels-decode     likewise
    determinism        1,000 runs of every operator and its gradients: the same bits
    sweep-prefill      bench.sweep of paper-50m, fp32 and bf16: forwards of 512 to 32,768 tokens,
    sweep-decode       one token after as many, and
    sweep-train        forward and backward
    profiles           profiles.capture of every architecture and implementation, 4,096 tokens in bf16: tables by range
    long-context       bench.long_context: 131,072 and 1,048,576 tokens in chunks of 16,384, bf16, under triton
    metrics            analysis.metrics of the first sweep: parity of every metric, 8,192 tokens, gradients
    sanitizer          every kernel once under compute-sanitizer, where it is installed

It writes DIR/suite.json (everything, with the machine and the revision), DIR/suite.md (tables) and DIR/profiles/.
Commit them under profiles/records/<machine>/; DIR/profiles/.gitignore leaves the raw traces out.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from bench import determinism, profilers, suite_record
from bench import kernels as bench_kernels
from bench.availability import fate
from bench.cli import Parser
from bench.kernel_problems import OPERATORS
from bench.machine import describe
from bench.plan import Cell
from kernels.implementations import IMPLEMENTATIONS
from models.presets import PAIR

STAGES = (
    "tests", "kernels-forward", "kernels-backward", "kernels-decode", "determinism",
    "sweep-prefill", "sweep-decode", "sweep-train", "profiles", "long-context", "metrics", "sanitizer",
)  # fmt: skip
SWEEP_LENGTHS = {
    "prefill": "512,1024,2048,4096,8192,16384,32768",
    "decode": "512,2048,8192,32768",
    "train": "512,1024,2048,4096,8192",
}
TESTS = (
    "tests/kernels",
    "tests/models/test_bind.py",
    "tests/models/test_generation.py",
    "tests/models/test_compile.py",
)
PROFILED_LENGTH = 4096
RAW_PROFILES = (
    "trace.json.gz\ncapture.*\nlog.txt\n"  # what git leaves out: the tables made of them stay
)
SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


def run_tests(out, seconds):
    """Run the tests of kernels and bindings on the device; returns {"passed", "summary", "seconds"}."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    if importlib.util.find_spec("xdist"):  # most of the time goes into compiling
        command += ["-n", "8"]
    code, last = _logged(command, out / "tests.log", seconds)
    return {"passed": code == 0, "summary": last, "seconds": time.monotonic() - start}


def run_kernels(mode, out, device, peaks):
    """Rows of bench.kernels in fp32 and bf16."""
    dtypes = ("fp32", "bf16")
    rows = bench_kernels.run(OPERATORS, dtypes, device, peaks, out / "kernels", modes=(mode,))
    return [row for row in rows if row["mode"] == mode]


def run_sweep(mode, out, seconds, extra=()):
    """The sweep of a mode as a run directory in `out`; returns one row a cell."""
    folder = out / f"sweep-{mode}"
    command = [sys.executable, "-m", "bench.sweep", "--out", str(folder)]
    if (folder / "plan.json").exists():
        command.append("--resume")
    else:
        command += ["--mode", mode, "--preset", "paper-50m", "--seqlens", SWEEP_LENGTHS[mode]]
        command += [
            "--dtype",
            "fp32,bf16",
            "--rounds",
            "3",
            "--budget",
            "0.5",
            "--cell-timeout",
            "60",
            "--metrics",
            "none",
            "--profile",
            "none",
            *extra,
        ]
    code, last = _logged(command, out / f"sweep-{mode}.log", seconds)
    if code:
        raise RuntimeError(f"bench.sweep ended with {code}: {last}")
    return suite_record.sweep_rows(folder)


def run_profiles(out, seconds, extra=()):
    """A capture of every cell of `profile_cells` with torch.profiler, and with Nsight Systems where it works."""
    deadline, folder = time.monotonic() + seconds, out / "profiles"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text(RAW_PROFILES)
    cells = profile_cells("cuda")
    command = [
        sys.executable,
        "-m",
        "profiles.capture",
        "--out",
        str(folder),
        "--missing",
        "--quiet",
    ]
    command += [part for cell in cells for part in ("--cell", cell)]
    for profiler in ("torch", "nsys"):
        if profilers.find(profiler).reason:
            continue
        command_line = [*command, "--profiler", profiler, *extra]
        code, last = _logged(command_line, out / "profiles.log", deadline - time.monotonic())
        if code:
            raise RuntimeError(f"profiles.capture ended with {code}: {last}")
    return suite_record.profile_rows(folder)


def profile_cells(device):
    """Every architecture under every implementation that can run on a device, as profiles.capture takes them."""
    cells = [
        Cell(arch, impl, "paper-50m", PROFILED_LENGTH, dtype="bf16")
        for arch in PAIR
        for impl in IMPLEMENTATIONS
    ]
    return [
        f"{cell.arch}/{cell.impl}/{cell.mode}/{cell.seqlen}/{cell.dtype}"
        for cell in cells
        if fate(cell, device)[0] == "measured"
    ]


def run_long_context(out, seconds):
    """Long prompts in chunks of both architectures under triton: {"passed", "summary": its table}."""
    folder = out / "long-context"
    command = [sys.executable, "-m", "bench.long_context", "--impl", "triton", "--dtype", "bf16"]
    command += ["--case-timeout", "120", "--out", str(folder)]
    code, last = _logged(command, out / "long-context.log", seconds)
    table = folder / "long.md"
    return {"passed": code == 0, "summary": table.read_text() if table.exists() else last}


def run_metrics(out, seconds):
    """Representation metrics of the prefill sweep, shift detection apart: {"passed", "summary"}."""
    run = out / "sweep-prefill"
    if not (run / "plan.json").exists():
        raise RuntimeError("the stage sweep-prefill has not run")
    groups = "hidden,state,attention,context,similarity"
    command = [sys.executable, "-m", "analysis.metrics", str(run), "--groups", groups]
    code, _ = _logged(command, out / "metrics.log", seconds)
    return {"passed": code == 0, "summary": suite_record.metrics_line(run / "metrics.jsonl")}


def run_sanitizer(out, seconds):
    """Every kernel once under compute-sanitizer: {"passed", "summary"}."""
    tool = next(filter(None, map(shutil.which, SANITIZERS)), None)
    if tool is None:
        return {
            "passed": None,
            "summary": "unavailable, because compute-sanitizer is not installed",
        }
    command = [
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "bench.determinism",
        "--repetitions",
        "1",
    ]
    code, _ = _logged(command, out / "sanitizer.log", seconds)
    found = [
        line for line in (out / "sanitizer.log").read_text().splitlines() if "ERROR SUMMARY" in line
    ]
    return {"passed": code == 0, "summary": (found or [f"ended with {code}"])[-1].strip("= ")}


def _logged(command, log, seconds):
    """(exit status, last line) of a command whose output goes to a file."""
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=file, timeout=seconds, check=False)
    lines = log.read_text().strip().splitlines()
    return done.returncode, lines[-1] if lines else "no output"


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


def work(out, device, peaks):
    """{stage: function of the seconds left that gives its result}."""
    found = {"tests": partial(run_tests, out)}
    for mode in bench_kernels.ALL_MODES:
        found[f"kernels-{mode}"] = lambda left, mode=mode: run_kernels(mode, out, device, peaks)
    found["determinism"] = lambda left: determinism.check("triton", device, 1000)
    for mode in SWEEP_LENGTHS:
        found[f"sweep-{mode}"] = partial(run_sweep, mode, out)
    rest = {
        "profiles": run_profiles,
        "long-context": run_long_context,
        "metrics": run_metrics,
        "sanitizer": run_sanitizer,
    }
    return found | {stage: partial(run, out) for stage, run in rest.items()}


def run_suite(out, stages, seconds, device):
    """Run what is missing of `stages`, each followed by a write of the record; 1 if a stage failed."""
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    file = out / "suite.json"
    result = json.loads(file.read_text()) if file.exists() else {"stages": {}, "failed": {}}
    result["machine"] = describe(device)
    result["failed"] = {}
    todo = work(out, device, result["machine"]["peaks"])
    for stage in stages:
        left = deadline - time.monotonic()
        if stage in result["stages"]:
            console.print(f"{stage}: already there")
        elif left <= 0:
            result["failed"][stage] = "no time left: call again with the same --out"
        else:
            console.print(f"{stage}: {left:.0f} s left")
            try:
                result["stages"][stage] = todo[stage](left)
            except (subprocess.TimeoutExpired, RuntimeError) as error:
                result["failed"][stage] = str(error)
        suite_record.write(out, result)
    print((out / "suite.md").read_text())
    for stage, reason in result["failed"].items():
        console.print(f"{stage} failed: {reason}")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
