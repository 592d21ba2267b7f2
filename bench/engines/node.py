"""A worker process on the machine that this code runs on; imports no torch, so that a node starts in no time.

    python -m bench.engines.node PART       (started by the Slurm engine)

reads an `Assignment` from PART.json and appends the worker's events to PART.jsonl. It ends once PART.json is gone.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from bench.engines.stream import Stream
from bench.machine import wait_policy

END_TIMEOUT_S = 30.0  # of a process that has closed its output
LOOK_EVERY_S = 1.0
LOG_BYTES = 100_000  # of what a worker printed, the end


@dataclass(frozen=True)
class Assignment:
    """What a worker process is started with.

    Attributes:
        run: the run directory; the last argument of the command.
        line: the job, as `bench.blocks.Job` writes it.
        settings: {environment variable: value, or None to take it away}.
        command: how to start a worker, () for this Python and `bench.worker`.
    """

    run: str
    line: str
    settings: dict
    command: tuple = ()


def worker_settings(threads=None):
    """{environment variable: value, or None to take it away} of a process that runs cells on `threads` cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS") if threads else ()
    fixed = {"TRITON_INTERPRET": None, "OMP_WAIT_POLICY": wait_policy(), "HF_HUB_OFFLINE": "1"}
    return fixed | dict.fromkeys(names, str(threads))


def environment(settings):
    """The environment of this process with `settings` applied and the lab's code importable."""
    env = os.environ | settings
    root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return {name: value for name, value in env.items() if value is not None}


class Worker(Stream):
    """A worker process of this machine."""

    def __init__(self, assignment, stderr):
        super().__init__()
        command = assignment.command or (sys.executable, "-m", "bench.worker")
        self._process = subprocess.Popen(
            [*command, assignment.run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(assignment.settings),
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which then ends the worker
        )
        with suppress(BrokenPipeError):  # it died at once, which its closed output tells
            self._process.stdin.write(assignment.line.encode() + b"\n")
            self._process.stdin.flush()
        self._reader.start()

    def kill(self):
        self._process.kill()

    def _produce(self):
        yield {"event": "started", "pid": self._process.pid}
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                break  # a line torn by the death of the process
            yield event
        yield {"event": "exit", "status": self._wait()}

    def _wait(self):
        """The exit status of the process, which has closed its output."""
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.returncode


def relay(assignment, watch=lambda worker: None):
    """The events of a worker that is started here, then `log` (what it printed) and `exit` (its status).

    Args:
        watch: told the `Worker`.
    """
    with tempfile.TemporaryFile() as stderr:
        worker = Worker(assignment, stderr)
        watch(worker)
        try:
            while (event := _next_event(worker)) is not None:
                yield event
            status = worker.end(END_TIMEOUT_S)
            yield {"event": "log", "text": _tail(stderr)}
            yield {"event": "exit", "status": status}
        finally:
            worker.end()


def _next_event(worker):
    """The next event; it wakes up now and then, since a task of Ray can only be cancelled while it is awake."""
    while True:
        with suppress(queue.Empty):
            return worker.event(LOOK_EVERY_S)


def relay_with_files(assignment, files, fetch):
    """`relay` where the run directory may be out of reach; arguments as in `run_directory`."""
    with run_directory(assignment.run, files, fetch) as run:
        yield from relay(replace(assignment, run=run))


@contextmanager
def run_directory(run, files, fetch):
    """The run directory if this machine sees it, else a temporary one with its files.

    Args:
        files: [(name, size, mtime_ns, handle)] of what a worker reads, as `listing` names them.
        fetch: gives the bytes of a handle.
    """
    if sorted(listing(run)) == sorted(entry[:3] for entry in files):
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="crossover-") as copy:
        for name, _, _, handle in files:
            path = Path(copy, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fetch(handle))
        yield copy


def listing(run):
    """[(name, size, mtime_ns)] of the files that a worker reads in a run directory, none where there is no such."""
    run = Path(run)
    folders = (run.glob(f"{folder}/**/*") for folder in ("references", "slices"))
    paths = [p for p in (run / "plan.json", *chain(*folders)) if p.is_file()]
    stats = [(path, path.stat()) for path in paths]
    return [(str(path.relative_to(run)), s.st_size, s.st_mtime_ns) for path, s in stats]


def _tail(file):
    file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
    return file.read().decode(errors="replace")


def main(argv=None):
    """Work on a part; returns the exit status."""
    (part,) = sys.argv[1:] if argv is None else argv
    order, results = Path(f"{part}.json"), Path(f"{part}.jsonl")
    data = json.loads(order.read_text(encoding="utf-8"))
    assignment = Assignment(**data | {"command": tuple(data["command"])})

    def watch(worker):
        def wait():
            while order.exists():
                time.sleep(LOOK_EVERY_S)
            worker.kill()

        threading.Thread(target=wait, daemon=True).start()

    with results.open("a", encoding="utf-8") as file:
        for event in relay(assignment, watch):
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
