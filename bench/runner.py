"""The parent's side of a run: it starts worker processes, writes what they report, and survives what they do not.

Cells end in a record whatever happens to the worker: it dies (`error`), it takes too long (`timeout`), or it reports.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import wait_policy
from bench.memory import read_peaks
from bench.plan import round_order
from bench.records import make_record
from bench.references import missing

START_TIMEOUT_S = 600.0  # importing, building models, compiling one implementation, one reference
END_TIMEOUT_S = 30.0
STEPS = {
    "reference": ("computing the reference of",),
    "gradients": ("computing reference gradients of",),
    "memory": ("measuring the memory of",),
    "warm": ("warming up",),
}
FRUITLESS = 2  # processes in a row that may end without reaching anything


class RunnerError(RuntimeError):
    """A worker that cannot run at all; the message is one line."""


@dataclass
class Job:
    """What one kind of worker process is to do.

    Attributes:
        pending: (cell, order) without a record yet.
        memory: cells whose memory is measured before the rounds.
        skip: steps that no process survives.
    """

    task: str
    round: int
    pending: list[tuple]
    env: dict
    memory: list = field(default_factory=list)
    skip: list[tuple[str, ...]] = field(default_factory=list)

    def line(self, indices):
        """The line of JSON that tells a worker what to do."""
        cells = [[indices[cell], order] for cell, order in self.pending]
        memory = [indices[cell] for cell in self.memory]
        return json.dumps(
            {"task": self.task, "round": self.round, "cells": cells}
            | {"memory": memory, "skip": self.skip}
        )


class Worker:
    """A worker process and the events that it sends."""

    def __init__(self, command, line, env, log):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which then ends the worker
        )
        with suppress(BrokenPipeError):  # it died at once, which its closed output tells
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        self._events = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def event(self, timeout):
        """The next event; None once the worker has closed its output. Raises queue.Empty after `timeout` seconds."""
        return self._events.get(timeout=max(0.0, timeout))

    def end(self, grace=0.0):
        """Let the process end by itself for `grace` seconds, then kill it; returns its exit status."""
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        return self.process.returncode

    def _read(self):
        for line in self.process.stdout:
            try:
                self._events.put(json.loads(line))
            except ValueError:
                break  # a line torn by the death of the process
        self._events.put(None)


class Runner:
    """Runs the jobs of a plan.

    Args:
        run: the run directory.
        plan: a Plan.
        appender: takes the records.
        cell_timeout: seconds that a cell may take in one round.
        watcher: told what happens: `cell(cell, round)`, `record(record, seconds)`, `step(text)`.
        command: how to start a worker; the run directory is appended.
    """

    def __init__(self, run, plan, appender, cell_timeout, watcher, command=None):
        self.run, self.plan, self.appender = Path(run), plan, appender
        self.cell_timeout, self.watcher = cell_timeout, watcher
        self.command = [*(command or (sys.executable, "-m", "bench.worker")), str(self.run)]
        self.unavailable = set()  # cells that a worker found to be so
        self.indices = {cell: index for index, cell in enumerate(plan.cells)}
        self.log = (self.run / "log.txt").open("a", encoding="utf-8", buffering=1)

    def close(self):
        self.log.close()

    def prepare(self, cells, memory, proofs):
        """What comes before the rounds: references of `cells`, memory of `memory`, proofs of `proofs`.

        What an earlier process has left here is not done again.
        """
        peaks = read_peaks(self.run)
        memory = [cell for cell in memory if cell.id not in peaks]
        if proofs or memory or missing(self.run, cells, self.plan.options.get("device", "cpu")):
            pending = [(cell, order) for order, cell in enumerate(proofs)]
            interpreter = {"TRITON_INTERPRET": "1"} if proofs else {}
            self._run(Job("prepare", 0, pending, self._env(**interpreter), memory))

    def round(self, round_, measured, done):
        """Measure one round: the cells of `measured` without a (cell, round) in `done`, in seeded order.

        A cell that turned out to be unavailable in an earlier round is left out.
        """
        order = enumerate(round_order(measured, self.plan.seed, round_))
        pending = [
            (cell, place)
            for place, cell in order
            if (cell, round_) not in done and cell not in self.unavailable
        ]
        if pending:
            self._run(Job("round", round_, pending, self._env()))

    def _env(self, **extra):
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        env["OMP_WAIT_POLICY"] = wait_policy()
        threads = self.plan.options.get("threads")
        if threads:
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
            env |= dict.fromkeys(names, str(threads))
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
        return env | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path} | extra

    def _run(self, job):
        """Start workers until the job is done."""
        fruitless, troubled = 0, set()
        while True:
            attempt = Attempt(self, job, troubled)
            if attempt.run():
                return
            fruitless = 0 if attempt.fruitful else fruitless + 1
            if fruitless >= FRUITLESS:
                raise RunnerError(
                    f"the worker process ends before it does anything ({attempt.why}); see {self.log.name}"
                )
            if job.task != "prepare" and not job.pending:
                return

    def settle(self, job, cell, status, reason):
        """Write the record of a cell that no worker could report."""
        order = next(order for other, order in job.pending if other == cell)
        self.finish(job, cell, make_record(cell, job.round, order, status, reason), None)

    def finish(self, job, cell, record, seconds):
        """Write a record and take its cell off the job."""
        self.appender.append(record)
        job.pending = [pair for pair in job.pending if pair[0] != cell]
        if record["status"] == "unavailable":
            self.unavailable.add(cell)
        self.watcher.record(record, seconds)

    def note(self, text):
        """A line of the parent's own in log.txt."""
        self.log.write(f"[crossover] {time.strftime('%H:%M:%S')} {text}\n")


class Attempt:
    """One worker process working on a job, and what its end costs."""

    def __init__(self, runner, job, troubled):
        self.runner, self.job = runner, job
        self.troubled = troubled  # steps in which a process has ended before
        self.cell = self.step = None
        self.since = time.monotonic()
        self.fruitful = False
        self.why = ""

    def run(self):
        """True if the worker did everything; else its trouble is settled and another one may go on."""
        runner = self.runner
        worker = Worker(runner.command, self.job.line(runner.indices), self.job.env, runner.log)
        runner.note(f"{self.job.task} {self.job.round}: process {worker.process.pid} started")
        try:
            while (event := self._next(worker)) is not None:
                if event["event"] == "done":
                    worker.end(END_TIMEOUT_S)
                    return True
                self._take(event)
        except queue.Empty:
            self.why = f"took longer than {self._limit():g} s"
            self._blame("timeout")
        else:
            self.why = _death(worker.end(END_TIMEOUT_S))
            self._blame("error")
        finally:
            worker.end()
        runner.note(f"{self.job.task} {self.job.round}: process {worker.process.pid} {self.why}")
        return False

    def _next(self, worker):
        return worker.event(self._limit() - (time.monotonic() - self.since))

    def _limit(self):
        return self.runner.cell_timeout if self.cell is not None else START_TIMEOUT_S

    def _take(self, event):
        """React to one event of the worker."""
        took, self.since = time.monotonic() - self.since, time.monotonic()
        runner = self.runner
        match event["event"]:
            case "cell":
                self.cell, self.step = runner.plan.cells[event["index"]], None
                runner.watcher.cell(self.cell, self.job.round)
            case "record":
                runner.finish(self.job, runner.plan.cells[event["index"]], event["record"], took)
                self.cell, self.fruitful = None, True
            case "step":
                self.step = tuple(event["step"])
                runner.watcher.step(" ".join(STEPS[self.step[0]] + self.step[1:]))

    def _blame(self, status):
        """Settle what the end of the worker costs.

        A cell that was running gets its record. A step before the cells is tried once more; after a second end, the
        cells that need it get theirs.
        """
        if self.cell is not None:
            reason = f"the worker process {self.why} during this cell"
            if status == "timeout":
                reason = f"the cell {self.why} (--cell-timeout)"
            self.runner.settle(self.job, self.cell, status, reason)
            self.fruitful = True
        elif self.step in self.troubled:
            self._give_up(status)
            self.fruitful = True
        elif self.step is not None:
            self.troubled.add(self.step)
            self.fruitful = True

    def _give_up(self, status):
        kind, *group = self.step
        if kind != "warm":
            self.job.skip.append(self.step)
            return
        reason = f"the worker process {self.why} while warming up {' '.join(group)}"
        for cell, _ in list(self.job.pending):
            if [cell.arch, cell.impl, cell.dtype, cell.mode] == group:
                self.runner.settle(self.job, cell, status, reason)


def _death(code):
    """`died (signal 9)` or `ended with status 1`."""
    return f"died (signal {-code})" if code < 0 else f"ended with status {code}"
