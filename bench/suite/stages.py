"""What the stages of `bench.gpu_suite` do with operators; `models` has those of models.

A stage runs commands of the lab in processes of their own. It is a function of a Suite and of the seconds that it has
and returns {"complete": whether nothing is left to do, "summary": a line}. Its results lie in the suite's folder, where
a later call finds them and goes on. A command that is out of time is interrupted so that what it measured stays.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bench import kernel_rows, preflight, profilers
from bench.contenders import absent_peers
from bench.kernels import CONTEXT_LOST, cases
from bench.tune import UNFINISHED
from kernels.tuning import FOLDER

GRACE_S = 20  # for a command that was interrupted to end by itself
PROBLEM_S = 45  # for the problem that bench.kernels or bench.tune is at when its time is over
ATTEMPTS = 4  # of bench.kernels, each without the contender that took the context down before
SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


@dataclass
class Suite:
    """Where a suite writes, and on what it runs."""

    out: Path
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    resume_anyway: bool = False

    def excluded(self):
        """{(operator, mode): why} that failed the preflight."""
        return preflight.failing(self.out)


def python(module, *arguments):
    return [sys.executable, "-m", module, *map(str, arguments)]


def logged(command, log, seconds):
    """(exit status, last line) of a command whose output goes to a file; None for one that was out of time.

    It is asked to end as by Ctrl-C, and after GRACE_S it is killed with everything that it started.
    """
    # what a shell starts in the background ignores Ctrl-C, and so would all that it starts
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, preexec_fn=heed
        )
        try:
            code = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    return code, lines[-1][:300] if lines else "no output"


def outcome(code, last, what=""):
    """Of a command that leaves nothing to do where it ends well."""
    if code is None:
        return {"complete": False, "summary": "out of time: call again with the same --out"}
    return {"complete": True, "passed": code == 0, "summary": what or last}


def run_preflight(suite, seconds, operators, modes, dtypes, grid=None):
    """Every kernel once, in parallel; what fails is left out of the stages after it."""
    command = python("bench.preflight", "--out", suite.out, "--operator", ",".join(operators))
    command += ["--mode", ",".join(modes), "--dtype", ",".join(dtypes)]
    # two waves of processes, and time to start them
    command += ["--seconds", f"{max(5.0, seconds / 2 - 12):.0f}"]
    command += ["--grid", grid] if grid else []
    code, last = logged(command, suite.out / "preflight.log", seconds)
    wanted = set(preflight.cases(operators, modes, dtypes))
    rows = {case: row for case, row in preflight.read(suite.out).items() if case in wanted}
    bad = {case: row for case, row in rows.items() if row["status"] in preflight.FAILED}
    failed = [f"{' '.join(case)} failed: {row['reason']}" for case, row in bad.items()]
    text = "; ".join(
        [f"{len(rows)} of {len(wanted)} kernels were tried", *failed, *lacking(operators)]
    )
    complete = len(rows) == len(wanted) and not bad  # what failed is tried again in the next call
    return outcome(code, last, text) | {"complete": complete, "passed": not bad}


def lacking(operators):
    """What is not installed here, and what it costs, in words."""
    if peers := absent_peers(operators):
        yield f"tables lack {', '.join(peers)}: not installed"
    if not importlib.util.find_spec("xdist"):
        yield "tests run one after the other: pytest-xdist is not installed"
    if reason := profilers.find("ncu").reason:
        yield f"no counters: {reason}"
    if not any(map(shutil.which, SANITIZERS)):
        yield "no compute-sanitizer: not installed"


def run_tests(suite, seconds, *paths):
    """Tests on the device: how many passed, and which failed; also of a run that was out of time."""
    command = python("pytest", "-v", "-p", "no:cacheprovider", *paths)
    if importlib.util.find_spec("xdist"):  # most of the time goes into compiling
        command += ["-n", str(max(1, min(12, (os.cpu_count() or 2) - 2)))]
    log = suite.out / f"tests-{Path(paths[0]).stem}.log"
    log.unlink(missing_ok=True)
    code, last = logged(command, log, seconds)
    if code is not None:
        return outcome(code, last, last.strip("= "))
    done = [line.split() for line in log.read_text(errors="replace").splitlines()]
    passed = sum("PASSED" in words for words in done)
    failed = [words[-1] for words in done if "FAILED" in words and any("::" in w for w in words)]
    text = f"out of time; until then {passed} passed, {len(failed)} failed"
    return {"complete": False, "summary": ": ".join([text, *failed[:20]])}


def run_tune(suite, seconds, kernels, dtypes):
    """Measure configurations and keep the best, here and in the suite's folder."""
    deadline = time.monotonic() + seconds
    command = python("bench.tune", "--kernel", ",".join(kernels), "--dtype", ",".join(dtypes))
    command += ["--out", str(suite.out / "tune"), "--write"]
    code, last = again(command, suite.out / "tune.log", deadline)
    for table in FOLDER.glob("*.json"):
        shutil.copy(table, suite.out / f"configurations-{table.name}")
    if code == UNFINISHED:
        code = None
    return outcome(code, last)


def again(command, log, deadline):
    """`logged` of a command that takes --seconds, once more as long as it loses the GPU's context and time is left."""
    code, last = None, ""
    for _ in range(ATTEMPTS):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        code, last = logged([*command, "--seconds", f"{left:.0f}"], log, left + PROBLEM_S)
        if code != CONTEXT_LOST:
            break
    return code, last


def run_kernels(suite, seconds, operators, mode, dtypes, grid, contenders=None, effort=0.4):
    """Rows of bench.kernels; a contender that takes the GPU's context down is left out from then on."""
    excluded = suite.excluded()
    able = [operator for operator in operators if (operator, mode) not in excluded]
    command = python("bench.kernels", "--out", suite.out / "kernels", "--operator", ",".join(able))
    command += ["--mode", mode, "--dtype", ",".join(dtypes), "--grid", grid, "--rows-only"]
    command += ["--effort", str(effort)]
    command += ["--contender", ",".join(contenders)] if contenders else []
    wanted = cases(able, (mode,), dtypes, suite.device.type, grid)
    code, last = 0, ""
    if wanted:
        code, last = again(command, suite.out / "kernels.log", time.monotonic() + seconds)
    rows = kernel_rows.Rows(None)
    rows.rows = kernel_rows.read_rows(suite.out / "kernels" / kernel_rows.NAME)
    missing = len(rows.missing(wanted))
    text = f"{len(wanted) - missing} of {len(wanted)} problems"
    text += f"; {last}" if code else ""
    out = [
        f"{operator} is left out, because it failed the preflight: {excluded[operator, mode]}"
        for operator in operators
        if operator not in able
    ]
    return {"complete": not missing, "summary": "; ".join([text, *out])}


def run_determinism(suite, seconds, operators=(), repetitions=1000):
    """Many runs of every operator and its gradients: are they the same bits."""
    name = "-".join(["determinism", *operators[:1]])  # of a plan
    command = python("bench.determinism", "--repetitions", repetitions, "--seconds", int(seconds))
    command += ["--json", str(suite.out / f"{name}.json")]
    command += ["--operator", ",".join(operators)] if operators else []
    return outcome(*logged(command, suite.out / "determinism.log", seconds + PROBLEM_S))


def run_sanitizer(suite, seconds, operators=()):
    """Every kernel once under compute-sanitizer."""
    tool = next(filter(None, map(shutil.which, SANITIZERS)), None)
    if tool is None:
        text = "unavailable, because compute-sanitizer is not installed"
        return {"complete": True, "passed": None, "summary": text}
    log = suite.out / "sanitizer.log"
    command = [tool, "--error-exitcode", "9"]
    command += python("bench.determinism", "--repetitions", "1", "--size", "small")
    command += ["--operator", ",".join(operators)] if operators else []
    code, last = logged(command, log, seconds)
    found = [line for line in log.read_text(errors="replace").splitlines() if "ERROR SUMMARY" in line]  # fmt: skip
    return outcome(code, last, (found or [f"ended with {code}"])[-1].strip("= "))


def run_counters(suite, seconds, *targets):
    """Hardware counters of a few kernels by Nsight Compute, each `operator/mode/dtype/impl`."""
    reason = profilers.find("ncu").reason
    if reason:
        return {"complete": True, "passed": None, "summary": f"unavailable, because {reason}"}
    deadline, log = time.monotonic() + seconds, suite.out / "counters.log"
    done = []
    for target in targets:
        if (suite.out / "counters" / f"{target.replace('/', '-')}.json").exists():
            done.append(target)
            continue
        names = ("--operator", "--mode", "--dtype", "--impl")
        command = python("profiles.counters", "--out", suite.out / "counters")
        command += [part for pair in zip(names, target.split("/"), strict=True) for part in pair]
        if deadline <= time.monotonic():
            break
        code, last = logged(command, log, deadline - time.monotonic())
        if code is None:
            break
        done.append(target if code == 0 else f"{target} failed: {last}")
    return {"complete": len(done) == len(targets), "summary": ", ".join(done)}


def run_statistics(suite, seconds, impl, seqlens):
    """Memory and time of attention statistics beside output_attentions=True."""
    command = python("bench.attention_memory", "--impl", impl, "--seqlens", seqlens)
    command += ["--out", str(suite.out / "attention_memory.json")]
    return outcome(*logged(command, suite.out / "attention_memory.log", seconds))
