"""The process whose work is recorded: it warms cells up, and marks and records their steady state only.

    python -m profiles.captured RUN INTO --profiler torch CELL-ID …        (started by profiles.capture)

RUN holds the plan and the tokens, INTO gets a folder for every cell, with what this process knows of it in ANSWER.
Steps are told on the standard output, one line of JSON each, as those of `bench.worker` are. Nothing is recorded of
building, compiling and warming up: until then ranges go to nobody, whatever profiler is attached.
"""

import argparse
import json
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.forward import Models
from bench.machine import describe
from bench.measure import SOLE_S, no_collection, rep, stopwatch
from bench.modes import bound
from bench.plan import read_plan
from bench.records import now, one_line
from bench.slices import layers_of
from bench.worker import Events, follow_parent, volunteer
from models.bind import layers
from profiles import memory_timeline
from profiles.ranges import annotate, record_with

ANSWER = "captured.json"
WARMUPS = 1  # after the run that collects the kernels, unless that one took longer than SOLE_S
REPS = 5
WINDOW_S = 2.0  # a slow cell is repeated less often, so that all repetitions take about this
RANGES = {"nsys": "nvtx", "ncu": "nvtx", "torch": "torch", "proton": "proton"}


class Setting:
    """A plan as one process sees it: its tokens, device and models."""

    def __init__(self, plan, ids):
        self.options = plan.options
        self.cells = {cell.id: cell for cell in plan.cells}
        self.device = torch.device(self.options["device"])
        if self.options["threads"]:
            torch.set_num_threads(self.options["threads"])
        self._ids = ids
        self._models = Models(self.options, self.device)

    def bound(self, cell):
        """The cell ready to run, as `bench.modes.bound` yields it."""
        ids = self._ids[: cell.batch, : cell.tokens].to(self.device)
        models = self._models.of(layers_of(cell.preset))
        return bound(models, cell, ids, self.options["logits"])


def capture(setting, cell, folder, profiler, reps=None, with_memory=False, say=lambda text: None):
    """Record the steady state of one cell into a folder; returns those fields of its manifest that only it knows.

    Args:
        reps: repetitions; None: REPS, fewer for a slow cell.
        with_memory: also write the memory timeline, of a repetition of its own.
        say: called with what it is doing.
    """
    started, watch = now(), stopwatch(setting.device)
    say("builds the model and warms up")
    with record_with(None), setting.bound(cell) as (model, work):
        outputs = []
        seconds, _ = watch(lambda: outputs.extend(work.outputs()))
        kernels = outputs.pop()
        outputs.clear()
        work.reset()
        for _ in range(WARMUPS if seconds < SOLE_S[setting.device.type] else 0):
            seconds, _ = watch(work)
            work.reset()
        reps = reps or max(1, min(REPS, int(WINDOW_S / seconds)))
        say(f"records {reps} of {seconds:.2g} s")
        with (
            no_collection(),
            record_with(RANGES[profiler], layers(model)),
            RECORDERS[profiler](folder, setting.device),
        ):
            wall = window(cell, work, reps, watch)
        if with_memory:
            say("records the memory")
            with record_with("torch", layers(model)):
                memory_timeline.write(folder, setting.device, lambda: window(cell, work, 1, watch))
    return {
        "started": started,
        "reps": reps,
        "device": setting.device.type,
        "machine": describe(setting.device, peaks=False),
        "kernels": kernels,
        "wall_ms": wall,
        "notes": notes(cell, reps),
    }


def window(cell, work, reps, watch):
    """Run a cell under the ranges `cell/<id>` > `rep`; returns the wall time of every repetition in ms."""
    wall = []
    with annotate(f"cell/{cell.id}", payload=cell.seqlen):
        for _ in range(reps):
            seconds, _ = rep(work, watch)
            wall.append(1e3 * seconds)
            work.reset()
    return wall


def notes(cell, reps):
    """What a reader of the profile has to know."""
    found = [
        "wall_ms was taken with a profiler attached: it is no measurement, never for comparison."
    ]
    if cell.launch == "graph":
        found.append(
            "A CUDA graph replays without the host: its work lies under rep, not under layers and operators."
        )
    if reps < REPS:
        found.append(f"{reps} repetitions only.")
    return found


@contextmanager
def _torch(folder, device):
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(
            activities=activities
        ):  # the first one sets CUPTI up, which takes long
            torch.zeros(1, device=device)
    with torch.profiler.profile(activities=activities) as recorded:
        yield
    recorded.export_chrome_trace(str(folder / "trace.json.gz"))


@contextmanager
def _attached(folder, device):
    """Nsight records from here to there by cudaProfilerApi; without a GPU it records the whole process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.profiler.start()
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.profiler.stop()


@contextmanager
def _proton(folder, device):
    from triton import profiler

    profiler.start(str(folder / "proton"))
    try:
        yield
    finally:
        profiler.finalize()


RECORDERS = {"torch": _torch, "nsys": _attached, "ncu": _attached, "proton": _proton}


def main(argv=None):
    """Record the cells one after the other; a cell that fails is told, and the next one follows."""
    parser = argparse.ArgumentParser(prog="python -m profiles.captured", description=__doc__)
    add = parser.add_argument
    add("run", type=Path)
    add("into", type=Path)
    add("cells", nargs="+")
    add("--profiler", choices=RANGES, required=True)
    add("--reps", type=int)
    add("--memory", action="store_true")
    args = parser.parse_args(argv)
    events = Events()
    follow_parent(os.fdopen(os.dup(0), "rb", buffering=0))
    volunteer()
    tokens = load_file(args.run / "references" / "tokens.safetensors")
    setting = Setting(read_plan(args.run / "plan.json"), tokens["ids"])
    for id in args.cells:
        folder = args.into / id
        folder.mkdir(parents=True, exist_ok=True)
        say = lambda text, id=id: events.send("step", cell=id, text=text)
        try:
            found = capture(
                setting, setting.cells[id], folder, args.profiler, args.reps, args.memory, say
            )
        except Exception as error:
            traceback.print_exc()
            found = {"reason": one_line(error)}
        (folder / ANSWER).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
