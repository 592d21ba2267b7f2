"""Blocks as jobs of Slurm, submitted by submitit. The run directory must lie on a file system that the nodes share.

A job is a plain command (`bench.engines.node`): it reads its part from `parts/NAME.json` and appends events to
`parts/NAME.jsonl`, which the parent follows. What a parent that died has not read is taken
over by `bench.engines.parts.harvest`.
"""

import json
import shutil
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import submitit

from bench.engines.parts import PARTS, read_events
from bench.engines.stream import Stream

AT_ONCE = 64  # jobs that wait or run, if nothing else was said
POLL_S = 0.3
CANCEL_S = 5.0  # for Slurm to say that a job has ended
SETTLE_S = 10.0  # until a shared file system shows what a job wrote before it ended


class SlurmEngine:
    """Slurm, or another cluster that submitit knows.

    Args:
        run, plan: the run directory and its Plan.
        partition: of Slurm, or None for its default.
        minutes: the time limit of a job; a block must fit in it.
        extra: {option of sbatch: value}.
        at_once: jobs that wait or run.
        cluster: submitit's name of the cluster.
    """

    splits = True

    def __init__(
        self, run, plan, partition=None, minutes=60, extra=None, at_once=AT_ONCE, cluster="slurm"
    ):
        self.parts, self.places = Path(run).resolve() / PARTS, [None] * at_once
        self._executor = submitit.AutoExecutor(self.parts / "jobs", cluster=cluster)
        on_gpu = plan.options["device"] == "cuda"
        needs = {"gpus_per_node": 1} if on_gpu else {"cpus_per_task": plan.options["threads"]}
        if partition is not None:
            needs["slurm_partition"] = partition
        self._executor.update_parameters(
            name="crossover",
            timeout_min=minutes,
            slurm_additional_parameters=extra or {},
            **needs,
        )

    def start(self, assignment, place, log):
        part = self.parts / uuid.uuid4().hex
        order = asdict(assignment) | {"run": str(Path(assignment.run).resolve())}
        part.with_suffix(".json").write_text(json.dumps(order), encoding="utf-8")
        command = [sys.executable, "-m", "bench.engines.node", str(part)]
        root = Path(__file__).resolve().parents[2]
        job = self._executor.submit(
            submitit.helpers.CommandFunction(command, verbose=False, cwd=str(root))
        )
        return SlurmJob(part, job)

    def close(self):
        """Remove what no record needs any more."""
        if not any(self.parts.glob("*.jsonl")):
            shutil.rmtree(self.parts, ignore_errors=True)


class SlurmJob(Stream):
    """A block as a job of Slurm."""

    def __init__(self, part, job):
        super().__init__()
        self._order, self._results = part.with_suffix(".json"), part.with_suffix(".jsonl")
        self._job, self._killed = job, None
        self._reader.start()

    def kill(self):
        self._order.unlink(missing_ok=True)  # ends the command wherever it runs
        self._killed = self._killed or time.monotonic()
        self._job.cancel(check=False)

    def end(self, grace=0.0):
        status = super().end(grace)
        self._order.unlink(missing_ok=True)
        self._results.unlink(missing_ok=True)
        return status

    def _produce(self):
        offset, ended, exited = 0, None, None
        while True:
            now = time.monotonic()
            if ended is None and self._job.done():
                ended = now
            found, offset = read_events(self._results, offset)
            yield from found
            if found and found[-1]["event"] == "exit":
                exited = now
            over = exited or self._killed
            if over and (ended or now - over > CANCEL_S):
                return
            if ended and now - ended > SETTLE_S:
                self.lost = f"was lost by Slurm (job {self._job.job_id}: {self._job.state})"
                return
            time.sleep(POLL_S)
