"""Runs whose workers are fake: they speak the protocol, die and hang as told, and import no torch."""

import json
import sys
from collections import defaultdict
from pathlib import Path

from bench.blocks import place, whereabouts
from bench.plan import Cell, Plan
from bench.records import NAME, Appender, done, latest, read_records, statuses
from bench.runner import Runner

FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake_worker.py")))


class Silent:
    """A watcher that notes the seconds of cells and how many workers worked at once."""

    def __init__(self):
        self.seconds, self.most, self.steps = [], 0, []

    def cell(self, cell, round_):
        pass

    def record(self, record, seconds):
        self.seconds.append(seconds)

    def step(self, text):
        self.steps.append(text)

    def working(self, workers):
        self.most = max(self.most, workers)


class Bench:
    """A run directory with a plan over `lengths` for one or more implementations."""

    def __init__(self, path, lengths, impls=("hf",), timeout=30.0, engine=None, rounds=2):
        self.path = path
        self.cells = [Cell("mamba", impl, "tiny", n) for impl in impls for n in lengths]
        options = {"threads": 1, "device": "cpu"}
        self.plan = Plan(self.cells, rounds, 0, "lab", "tiny", options=options)
        self.plan.write(path / "plan.json")
        self.appender = Appender(path / NAME)
        self.watcher = Silent()
        made = engine and engine(path, self.plan)
        self.engine = made
        self.runner = Runner(path, self.plan, self.appender, timeout, self.watcher, made, FAKE)

    def round(self, round_=0):
        """Measure one round; returns all records."""
        others = {(c, r) for c in self.cells for r in range(self.plan.rounds) if r != round_}
        self._measure(others)
        return self.records()

    def measure(self):
        """Measure all rounds; returns the records that count."""
        self._measure(set())
        return self.records()

    def _measure(self, others):
        where, behind = whereabouts(self.records())
        finished = done(statuses(self.records())) - behind
        self.runner.measure(self.cells, finished | others, where)

    def close(self):
        self.runner.close()
        self.appender.close()
        if self.engine:
            self.engine.close()

    def records(self):
        return read_records(self.path / NAME)

    def ran(self):
        return (self.path / "ran").read_text().splitlines()

    def environment(self, task):
        """TRITON_INTERPRET as the worker of a task saw it."""
        return json.loads((self.path / f"interpret-{task}").read_text())

    def prepared(self):
        """What was skipped and whose memory was measured by the preparing worker."""
        return json.loads((self.path / "prepared").read_text())

    def log(self):
        return (self.path / "log.txt").read_text()


def devices(records):
    """{(round, seqlen): places} of the records that count and have a time."""
    found = defaultdict(set)
    for record in latest(records):
        if record["status"] == "ok":
            found[record["round"], record["cell"]["seqlen"]].add(place(record["device"]))
    return found
