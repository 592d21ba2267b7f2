"""The parent's side of a run: it has workers started, writes what they report, and survives what they do not.

Cells end in a record whatever happens to the worker: it dies (`error`), it takes too long (`timeout`), or it reports.
A worker that is lost with its device or node costs nothing but time: the rest of its job is given to another one.
"""

import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from bench.attempt import Attempt
from bench.blocks import Job, jobs
from bench.engines.local import LocalEngine
from bench.engines.node import Assignment, worker_settings
from bench.memory import read_peaks
from bench.records import make_record
from bench.references import missing

FRUITLESS = 2  # processes in a row that may end without reaching anything
LOST = 5  # processes in a row that may be lost without reaching anything


class RunnerError(RuntimeError):
    """A worker that cannot run at all; the message is one line."""


class Runner:
    """Runs the jobs of a plan.

    Args:
        run: the run directory.
        plan: a Plan.
        appender: takes the records.
        cell_timeout: seconds that a cell may take in one round.
        watcher: told what happens: `cell(cell, round)`, `record(record, seconds)`, `step(text)`, `working(workers)`.
        engine: where rounds are worked on; what comes before them always runs on this machine.
        command: how to start a worker if not as `bench.worker`; the run directory is appended.
    """

    def __init__(self, run, plan, appender, cell_timeout, watcher, engine=None, command=()):
        self.run, self.plan, self.appender = Path(run), plan, appender
        self.cell_timeout, self.watcher = cell_timeout, watcher
        self.here = LocalEngine()
        self.engine = engine or self.here
        self.command = tuple(command)
        self.unavailable = set()  # cells that a worker found to be so
        self.indices = {cell: index for index, cell in enumerate(plan.cells)}
        self.log = (self.run / "log.txt").open("a", encoding="utf-8", buffering=1)
        self.lock = threading.RLock()  # of everything above, and of jobs
        self.stopping = False
        self._workers, self._at_work = set(), 0

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
            self._finish(
                Job("prepare", 0, pending, self.settings(**interpreter), memory), self.here
            )

    def measure(self, measured, done, where):
        """Measure what is left of all rounds, in seeded order; arguments as in `bench.blocks.jobs`.

        A cell that turned out to be unavailable in an earlier round is left out. A device on which no worker starts is
        given up; RunnerError once there is no other.
        """
        split = self.engine.splits
        left = deque(jobs(self.plan, measured, done, where, self.settings(), split))
        places = self.engine.places
        while left and places:
            places = self._serve_all(places[: len(left)], left)
        if left:
            raise RunnerError(f"no device is left to work on; see {self.log.name}")

    def settings(self, **extra):
        """{environment variable: value, or None to take it away} of workers."""
        return worker_settings(self.plan.options.get("threads")) | extra

    def _serve_all(self, places, left):
        """Work on all places at once until no job is left; returns the places that are still good."""
        if len(places) == 1:
            return [place for place in places if self._serve(place, left, others=False)]
        with ThreadPoolExecutor(len(places)) as pool:
            served = {pool.submit(self._serve, place, left, True): place for place in places}
            good = []
            try:
                for future in as_completed(served):
                    if future.result():
                        good.append(served[future])
            except BaseException:
                self._stop(left)
                raise
        return good

    def _serve(self, place, left, others):
        """Work on one job after the other; False if the place is no good and its job is left to the others."""
        while (job := self._next(left)) is not None:
            try:
                self._finish(job, self.engine, place)
            except RunnerError as error:
                if place is None or not others:
                    raise
                with self.lock:
                    left.appendleft(job)
                    self.note(f"{place} is given up: {error}")
                    self.watcher.step(f"{place} is given up: {error}")
                return False
        return True

    def _next(self, left):
        """The next job that has something to do, or None."""
        with self.lock:
            while left:
                job = left.popleft()
                job.pending = [pair for pair in job.pending if pair[0] not in self.unavailable]
                if job.pending:
                    return job
        return None

    def _stop(self, left):
        """End all workers; what they were doing stays undone."""
        with self.lock:
            self.stopping = True
            left.clear()
            workers = list(self._workers)
        for worker in workers:
            worker.kill()

    def _finish(self, job, engine, place=None):
        """Start workers until the job is done."""
        fruitless, troubled = 0, set()
        while True:
            attempt = Attempt(self, job, engine, place, troubled)
            if attempt.run():
                return
            fruitless = 0 if attempt.fruitful else fruitless + 1
            if fruitless >= (LOST if attempt.lost else FRUITLESS):
                raise RunnerError(
                    f"the worker process ends before it does anything ({attempt.why}); see {self.log.name}"
                )
            if job.task != "prepare" and not job.pending:
                return

    @contextmanager
    def worker(self, job, engine, place):
        """A worker on a job, as a `bench.engines.stream.Stream`; it is ended afterwards."""
        assignment = Assignment(str(self.run), job.line(self.indices), job.settings, self.command)
        worker = engine.start(assignment, place, self.log)
        with self.lock:
            self._workers.add(worker)
        try:
            if self.stopping:
                worker.kill()
            yield worker
        finally:
            worker.end()
            with self.lock:
                self._workers.discard(worker)

    def count(self, change):
        """So many workers more are at work, and not waiting for a device."""
        with self.lock:
            self._at_work += change
            self.watcher.working(self._at_work)

    def settle(self, job, cell, status, reason, device):
        """Write the record of a cell that no worker could report."""
        order = next(order for other, order in job.pending if other == cell)
        record = make_record(cell, job.round, order, status, reason, device=device)
        self.finish(job, cell, record, None)

    def finish(self, job, cell, record, seconds):
        """Write a record and take its cell off the job."""
        self.appender.append(record)
        job.finish(cell, record)
        if record["status"] == "unavailable":
            self.unavailable.add(cell)
        self.watcher.record(record, seconds)

    def note(self, text):
        """A line of the parent's own in log.txt."""
        self.log.write(f"[crossover] {time.strftime('%H:%M:%S')} {text}\n")
