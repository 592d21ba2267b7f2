"""Blocks as tasks of a Ray cluster: each in a fresh process, on one GPU or on as many cores as the plan's threads.

A task starts the same worker process as everywhere and streams its events back as they come. Files that a worker
reads travel through Ray's object store to nodes that do not see the run directory.
"""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import ray

from bench.engines.node import listing, relay_with_files
from bench.engines.stream import Stream
from bench.plan import PlanError
from bench.records import one_line

AT_ONCE = 64  # blocks that wait or run in the cluster, if nothing else was said
CANCEL_S = 20.0  # for a task to end its worker and clean up, before it is killed
ROOT = Path(__file__).resolve().parents[2]


class RayEngine:
    """A Ray cluster.

    Args:
        run, plan: the run directory and its Plan.
        address: of a cluster as `ray.init` takes it, or "local" for one on this machine alone.
        at_once: blocks that wait or run in the cluster.
    """

    splits = True

    def __init__(self, run, plan, address="local", at_once=AT_ONCE):
        self.run, self.places = run, [None] * at_once
        self._files, self._lock = None, threading.Lock()
        on_gpu = plan.options["device"] == "cuda"
        self._needs = (
            {"num_gpus": 1, "num_cpus": 1}
            if on_gpu
            else {"num_cpus": plan.options["threads"], "num_gpus": 0}
        )
        self._connect(address)
        self._check(on_gpu)

    def start(self, assignment, place, log):
        with self._lock:
            if self._files is None:
                self._files = [(*entry, self._put(entry[0])) for entry in listing(self.run)]
        # a fresh process for each, and no attempt but ours
        task = ray.remote(num_returns="streaming", max_calls=1, max_retries=0, **self._needs)(_work)
        return Task(task.remote(assignment, self._files))

    def close(self):
        self._files = None
        ray.shutdown()

    def _put(self, name):
        return ray.put(np.fromfile(Path(self.run) / name, dtype=np.uint8))

    def _connect(self, address):
        """Join or start the cluster, quietly, and leave the signals of this process as they were."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        options = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}}
        if address == "local":
            options["include_dashboard"] = False
        handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise PlanError(f"--ray-address {address}: {one_line(error, kind=False)}") from None
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)

    def _check(self, on_gpu):
        """PlanError if no node could ever take a block."""
        have = "GPU" if on_gpu else "CPU"
        most = max((n["Resources"].get(have, 0) for n in ray.nodes() if n["Alive"]), default=0)
        if most < (needs := self._needs[f"num_{have.lower()}s"]):
            ray.shutdown()
            what = "--device cuda" if on_gpu else f"--threads {needs}"
            raise PlanError(f"{what}: no node of the Ray cluster has more than {most:g} {have}")


class Task(Stream):
    """A block as a task of Ray."""

    def __init__(self, events):
        super().__init__()
        self._generator = events
        self._killed = None
        self._reader.start()

    def kill(self):
        self._killed = self._killed or time.monotonic()
        # asked to, the task ends its worker and leaves nothing behind
        patient = time.monotonic() - self._killed < CANCEL_S
        ray.cancel(self._generator, force=not patient)

    def _produce(self):
        try:
            for reference in self._generator:
                yield ray.get(reference)
        except ray.exceptions.RayError as error:
            self.lost = f"was lost by Ray ({type(error).__name__})"


def _work(assignment, files):
    """The task, on its node."""
    yield from relay_with_files(assignment, files, lambda handle: ray.get(handle).tobytes())
