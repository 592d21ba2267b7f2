"""Sweeps with workers that misbehave, each in a process of its own that can be killed.

The processes are forked from one that has imported `bench.sweep` already: that import takes seconds.
"""

import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from bench.plan import Cell, read_plan
from bench.records import read_records

INJECT = Path(__file__).parent / "inject"  # workers that do not measure
BROKEN = Path(__file__).parent / "broken"  # real workers with broken kernels
LENGTHS = (16, 32, 64, 128)
ROUNDS = 2
ALONE = ["--metrics", "none", "--profile", "none"]  # nothing after the measurements
PLAN = [
    "--preset", "tiny", "--arch", "mamba", "--impl", "hf", "--seqlens", ",".join(map(str, LENGTHS)),
    "--rounds", str(ROUNDS), "--device", "cpu", *ALONE,
]  # fmt: skip
PATIENCE_S = 120

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["bench.sweep", "tests.faults.sweeping"])


def sweep_here(argv, err, inject, before):
    """The body of a process: the command line with other workers, and without the tables at the end."""
    with Path(err).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["PYTHONPATH"] = str(inject)
    import bench.sweep

    bench.sweep.conclude = lambda *args: 0
    if before is not None:
        before()
    sys.exit(bench.sweep.main(argv))


class Sweep:
    """A sweep in a process of its own.

    Args:
        err: takes what it prints.
        inject: a folder whose `sitecustomize` changes the workers.
        before: called in the process first, a function of a module.
    """

    def __init__(self, err, *options, inject=INJECT, before=None):
        self.err = Path(err)
        self.err.write_text("")
        argv = [str(option) for option in options]
        self.process = forks.Process(target=sweep_here, args=(argv, str(err), str(inject), before))
        self.process.start()
        self.pid = self.process.pid

    def wait(self, seconds=PATIENCE_S):
        """(exit status, what it printed)."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the sweep hangs: {self.err.read_text()}")
        return self.process.exitcode, self.err.read_text()

    def until(self, condition):
        """Wait for `condition()`; fails if the sweep ends first."""
        end = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.process.is_alive(), self.err.read_text()
            assert time.monotonic() < end, f"the sweep got nowhere: {self.err.read_text()}"
            time.sleep(0.01)
        return found

    def workers(self):
        children = psutil.Process(self.pid).children(recursive=True)
        return [c for c in children if "bench.worker" in " ".join(c.cmdline())]

    def worker_in(self, run, seqlen):
        """The worker, once it has begun a cell of `seqlen` tokens and the cells before it have their records."""
        self.until(lambda: any(line.endswith(f" {seqlen}") for line in began(run.path)))
        self.until(lambda: len(run.records()) == len(began(run.path)) - 1)
        (worker,) = self.workers()
        return worker


class Run:
    """A copy, at `path`, of the prepared run directory; what its sweeps print goes to files in `texts`."""

    def __init__(self, prepared, path, texts):
        shutil.copytree(prepared, path)
        self.path, self.texts = path, texts
        self.records_file = path / "records.jsonl"
        self._count = 0

    def fault(self, seqlen, what):
        (self.path / f"fault-{seqlen}").write_text(what)

    def sweep(self, *options, before=None):
        """A sweep that finishes the run, started."""
        self._count += 1
        err = self.texts / f"sweep-{self._count}.txt"
        return Sweep(err, "--out", self.path, "--resume", *ALONE, *options, before=before)

    def finish(self, *options, before=None):
        """Finish the run; what the sweep printed."""
        status, text = self.sweep(*options, before=before).wait()
        assert status == 0, text
        return text

    def records(self):
        return read_records(self.records_file)

    def statuses(self):
        """{(seqlen, round): status}, where every cell and round has exactly one record."""
        records = self.records()
        pairs = Counter((Cell(**r["cell"]), r["round"]) for r in records)
        cells = read_plan(self.path / "plan.json").cells
        assert pairs == Counter({(cell, r): 1 for cell in cells for r in range(ROUNDS)})
        return {(r["cell"]["seqlen"], r["round"]): r["status"] for r in records}

    def others_ok(self, *but):
        """Whether every cell and round has one record, and all except `but` are ok."""
        found = self.statuses()
        assert {pair for pair, status in found.items() if status != "ok"} == set(but)
        return True


def began(run):
    """`round seqlen` of the cells that workers began."""
    file = Path(run) / "began"
    return file.read_text().splitlines() if file.exists() else []


def refusal(text):
    """The one line of a sweep that refuses."""
    (line,) = text.splitlines()
    assert "Traceback" not in line
    return line
