"""One worker working on a job: what its events and its silence mean, and what its end costs."""

import queue
import time

from bench.blocks import place
from bench.engines.node import END_TIMEOUT_S

START_TIMEOUT_S = 600.0  # importing, building models, compiling one implementation, one reference
STEPS = {
    "reference": ("computing the reference of",),
    "gradients": ("computing reference gradients of",),
    "memory": ("measuring the memory of",),
    "warm": ("warming up",),
}


class Attempt:
    """One worker working on a job, and what its end costs."""

    def __init__(self, runner, job, engine, place, troubled):
        self.runner, self.job, self.engine, self.place = runner, job, engine, place
        self.troubled = troubled  # steps in which a process has ended before
        self.cell = self.step = self.device = self.since = None
        self.fruitful = self.lost = False
        self.why = ""

    def run(self):
        """True if the worker did everything; else its trouble is settled and another one may go on."""
        runner = self.runner
        with runner.worker(self.job, self.engine, self.place) as worker:
            try:
                while (event := worker.event(self._left())) is not None:
                    if event["event"] == "done":
                        self._see_out(worker)
                        return True
                    with runner.lock:
                        self._take(event)
            except queue.Empty:
                status = "timeout"
                self.why = f"took longer than {self._limit():g} s"
            else:
                status = "error"
                code = worker.end(END_TIMEOUT_S)
                self.lost = bool(worker.lost)
                self.why = worker.lost or _death(code)
            finally:
                runner.count(-(self.since is not None))
        with runner.lock:
            if runner.stopping:
                return True
            self._note(self.why)
            if self.lost:
                self._lose()
            else:
                self._blame(status)
        return False

    def _see_out(self, worker):
        """Let a worker end that has done everything, and take what it printed."""
        worker.end(END_TIMEOUT_S)
        while (event := worker.event(0)) is not None:
            with self.runner.lock:
                self._take(event)

    def _left(self):
        """Seconds until the worker is late; None as long as it waits for its turn."""
        return self.since and self._limit() - (time.monotonic() - self.since)

    def _limit(self):
        return self.runner.cell_timeout if self.cell is not None else START_TIMEOUT_S

    def _take(self, event):
        """React to one event of the worker."""
        took, self.since = time.monotonic() - (self.since or 0), time.monotonic()
        runner = self.runner
        match event["event"]:
            case "started":
                self._note(f"process {event['pid']} started")
                runner.count(1)
            case "device":
                self.device = event["device"]
                self.job.arrive(place(self.device))
            case "cell":
                self.cell, self.step = runner.plan.cells[event["index"]], None
                runner.watcher.cell(self.cell, self.job.round)
            case "record":
                runner.finish(self.job, runner.plan.cells[event["index"]], event["record"], took)
                self.cell, self.fruitful = None, True
            case "step":
                self.step = tuple(event["step"])
                runner.watcher.step(" ".join(STEPS[self.step[0]] + self.step[1:]))
            case "log":
                runner.log.write(event["text"])

    def _note(self, text):
        lengths = {cell.seqlen for cell, _ in self.job.pending}
        block = f", {lengths.pop()} tokens" if self.engine.splits and len(lengths) == 1 else ""
        self.runner.note(f"{self.job.task} {self.job.round}{block}: {text}")

    def _lose(self):
        """The worker is gone with its device or node: the cell is tried again, unless it happens in it twice."""
        if self.cell is not None and self.cell in self.job.lost:
            self._settle(
                self.cell, "error", f"the worker process {self.why} twice during this cell"
            )
        elif self.cell is not None:
            self.job.lost.add(self.cell)
        self.fruitful |= self.cell is not None

    def _blame(self, status):
        """Settle what the end of the worker costs.

        A cell that was running gets its record. A step before the cells is tried once more; after a second end, the
        cells that need it get theirs.
        """
        if self.cell is not None:
            reason = f"the worker process {self.why} during this cell"
            if status == "timeout":
                reason = f"the cell {self.why} (--cell-timeout)"
            self._settle(self.cell, status, reason)
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
                self._settle(cell, status, reason)

    def _settle(self, cell, status, reason):
        self.runner.settle(self.job, cell, status, reason, self.device)


def _death(code):
    """`died (signal 9)` or `ended with status 1`."""
    return f"died (signal {-code})" if code < 0 else f"ended with status {code}"
