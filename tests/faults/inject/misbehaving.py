"""What workers of the fault tests do instead of measuring, in processes that are otherwise those of a real sweep.

A file `fault-N` in the run directory says what happens in a cell of N tokens, once if its second word is `once`:
kill (SIGKILL), hang, vanish (the device's error sticks, so that the process gives up), eat (memory, without end).
A file `fault-start` lets every worker end before it does anything. `began` gets a line for every cell that was begun.
"""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path


class Poisoned(RuntimeError):
    """As in `bench.jobs`."""


def begin():
    """Put `Lab` in the place of that of `bench.jobs`, which would import torch and measure."""
    module = types.ModuleType("bench.jobs")
    module.Lab, module.Poisoned = Lab, Poisoned
    sys.modules["bench.jobs"] = module


class Lab:
    place = {"node": "here", "gpu": None, "uuid": None, "cpu": "some CPU"}  # noqa: RUF012, nothing changes it

    def __init__(self, run):
        self.run = Path(run)
        self.cells = json.loads((self.run / "plan.json").read_text())["cells"]
        if (self.run / "fault-start").exists():
            raise RuntimeError("CUDA error: no CUDA-capable device is detected")

    def prepare(self, job, events):
        """References and memory: nothing that these tests look at."""

    def round(self, job, events):
        for index, order in job["cells"]:
            events.send("cell", index=index)
            with (self.run / "began").open("a") as began:
                began.write(f"{job['round']} {self.cells[index]['seqlen']}\n")
            self.misbehave(self.cells[index]["seqlen"])
            self.report(events, job, index, order)

    def report(self, events, job, index, order):
        from bench.plan import Cell
        from bench.records import make_record

        cell = Cell(**self.cells[index])
        samples = {"wall": [1.0] * 200, "device": []}
        record = make_record(cell, job["round"], order, "ok", device=self.place, time_ms=samples)
        events.send("record", index=index, record=record)

    def misbehave(self, seqlen):
        file = self.run / f"fault-{seqlen}"
        if not file.exists():
            return
        kind, *once = file.read_text().split()
        if once:
            file.unlink()
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(300)
            case "vanish":
                raise Poisoned("CUDA error: an illegal memory access was encountered")
            case "eat":
                eaten = []
                while True:
                    eaten.append(bytes([1]) * (1 << 24))
