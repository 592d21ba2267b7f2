"""One architecture's training inside a run folder: steps, log, state, display, checkpoint."""

import json
import shutil
import signal
import threading
import time
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kernels.implementations import recording
from models.bind import use
from models.build import build
from models.train_loop import Training, replacing

LOG = "loss.jsonl"
LINE_EVERY_S = 20.0


def train(arch, options, task, folder, save_every, console):
    """Train, or go on training, one architecture; True when its checkpoint is written, False after Ctrl-C.

    Args:
        options: as `models.train` resolved them; a state is continued only with equal ones.
        task: `Text`, `Copy` or `Recall` of `models.train_tasks`.
        folder: of the run. It gets ARCH/, lines of loss.jsonl, and state-ARCH.safetensors while it is not done.
        console: a rich Console.
    """
    model = build(arch, options["preset"], seed=options["seed"], device=options["device"])
    state = folder / f"state-{arch}.safetensors"
    with use(model, options["impl"]), stopping() as asked:
        training = Training(model, task, options)
        if state.is_file():
            training.load(state)
        _trim(folder / LOG, arch, training.done)
        with (
            (folder / LOG).open("a", encoding="utf-8") as log,
            Display(console, arch, options["steps"], training.done) as display,
        ):
            while training.done < options["steps"]:
                record = {"arch": arch} | _timed_step(training)
                _append(log, record)
                display.show(record)
                if asked.is_set() or training.done % save_every == 0:
                    training.save(state)
                if asked.is_set():
                    return False
            _append(log, {"arch": arch, "step": training.done, "held_out": training.held_out()})
    _write_checkpoint(model, folder / arch)
    state.unlink(missing_ok=True)
    return True


def read_log(path):
    """The records of loss.jsonl, first to last; a line that was cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _timed_step(training):
    """A step with its seconds; the first one with the kernels that ran."""
    start = time.perf_counter()
    if training.done:
        found = training.step()
    else:
        with recording() as kernels:
            found = training.step()
        found["kernels"] = dict(kernels)
    return found | {"seconds": round(time.perf_counter() - start, 4)}


def _append(log, record):
    log.write(json.dumps(record) + "\n")
    log.flush()


def _trim(path, arch, done):
    """Take the steps out of the log that come after the state, and will be done again."""
    again = lambda record: (
        record["arch"] == arch and (record["step"] > done or "held_out" in record)
    )
    kept = [record for record in read_log(path) if not again(record)]
    with replacing(path) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def _write_checkpoint(model, folder):
    """config.json and model.safetensors in `folder`, which appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    part.rename(folder)


@contextmanager
def stopping():
    """An Event that Ctrl-C sets, so that the running step ends whole; a second Ctrl-C interrupts at once."""
    asked = threading.Event()

    def ask(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class Display:
    """A bar with time left and the loss, or a line now and then in a pipe."""

    def __init__(self, console, arch, steps, done):
        self.console, self.arch, self.steps = console, arch, steps
        self.bar = None
        self._first, self._begun, self._printed = done, time.monotonic(), time.monotonic()
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[found]}"), console=console,
            )  # fmt: skip
            self.task = self.bar.add_task(arch, total=steps, completed=done, found="")

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception):
        if self.bar:
            self.bar.stop()

    def show(self, record):
        """A step is done."""
        step = record["step"]
        found = f"loss {record['loss']:.3f}, right {record['accuracy']:.1%}"
        if self.bar:
            self.bar.update(self.task, completed=step, found=found)
        elif time.monotonic() - self._printed >= LINE_EVERY_S:
            self._printed = time.monotonic()
            left = (self.steps - step) * (self._printed - self._begun) / (step - self._first)
            self.console.print(
                f"{self.arch}: {step}/{self.steps} steps, about {left:.0f} s left, {found}"
            )
