"""Blocks: the cells of one length in one round, which must come from one device so that their ratios are paired.

A block that has moved to another device is measured whole there; its later records are the ones that count.
"""

import json
from dataclasses import dataclass, field, replace

from bench.plan import Cell, round_order


def place(device):
    """What identifies the `device` of a record: the GPU's UUID, else the node; None where it is not known."""
    return device and (device["uuid"] or device["node"])


def machine_kind(device):
    """What of the `device` of a record may be averaged together: the name of the GPU or the CPU; "" if unknown."""
    return (device["gpu"] or device["cpu"]) if device else ""


def whereabouts(records):
    """Where the records that enter ratios were measured.

    Args:
        records: in the order of the file, any iterable.

    Returns:
        ({(cell, round): place}, {(cell, round)} whose block went on elsewhere afterwards: to be measured again).
    """
    where, last = {}, {}
    for record in records:
        cell, round_ = Cell(**record["cell"]), record["round"]
        where.pop((cell, round_), None)
        here = place(record.get("device"))
        if record["status"] in ("ok", "oom") and here is not None:
            where[cell, round_] = last[cell.seqlen, round_] = here
    behind = {(c, r) for (c, r), here in where.items() if here != last[c.seqlen, r]}
    return where, behind


def apart(run):
    """A `bench.records.Run` in which records of different kinds of machine never meet.

    If there are several kinds, the preset of each cell is labelled with its own, in the records and in the plan: so
    nothing is averaged over them and no ratio is taken across. A run of one kind, or of kinds that are apart, stays.
    """
    kinds = [machine_kind(record.get("device")) for record in run.records]
    if len(set(kinds) - {""}) < 2:
        return run
    records, found = [], {}
    for record, kind in zip(run.records, kinds, strict=True):
        cell, label = record["cell"], f"{kind}: "
        if kind and not cell["preset"].startswith(label):
            cell = cell | {"preset": label + cell["preset"]}
        records.append(record | {"cell": cell})
        found.setdefault(Cell(**record["cell"]), {})[Cell(**cell)] = cell
    cells = [
        cell
        for planned in run.plan.get("cells") or []
        for cell in found.get(Cell(**planned), {None: planned}).values()
    ]
    return replace(run, plan=run.plan | {"cells": cells}, records=records)


@dataclass
class Job:
    """What one worker process after the other is to do until it is done.

    Attributes:
        pending: (cell, order) without a record yet.
        settings: {environment variable: value or None} of the workers.
        memory: cells whose memory is measured before the rounds.
        skip: steps that no process survives.
        measured: (cell, order, place) of cells that have their record.
        lost: cells in which a worker was lost.
    """

    task: str
    round: int
    pending: list[tuple]
    settings: dict
    memory: list = field(default_factory=list)
    skip: list[tuple[str, ...]] = field(default_factory=list)
    measured: list[tuple] = field(default_factory=list)
    lost: set = field(default_factory=set)

    def line(self, indices):
        """The line of JSON that tells a worker what to do; it adds `elsewhere(job, its place)` to the cells."""
        lengths = {cell.seqlen for cell, _ in self.pending}
        measured = [entry for entry in self.measured if entry[0].seqlen in lengths]
        return json.dumps(
            {
                "task": self.task,
                "round": self.round,
                "cells": [[indices[cell], order] for cell, order in self.pending],
                "memory": [indices[cell] for cell in self.memory],
                "skip": self.skip,
                "measured": [[indices[cell], order, where] for cell, order, where in measured],
            }
        )

    def arrive(self, here):
        """Take up again what was measured elsewhere: the worker at `here` is about to do so."""
        lengths = {cell.seqlen for cell, _ in self.pending}
        moved = [e for e in self.measured if e[0].seqlen in lengths and e[2] != here]
        self.measured = [entry for entry in self.measured if entry not in moved]
        self.pending += [(cell, order) for cell, order, _ in moved]
        self.pending.sort(key=lambda pair: pair[1])

    def finish(self, cell, record):
        """Note that a cell has its record."""
        order = next(order for other, order in self.pending if other == cell)
        self.pending = [pair for pair in self.pending if pair[0] != cell]
        here = place(record.get("device"))
        if record["status"] in ("ok", "oom") and here is not None:
            self.measured.append((cell, order, here))


def cells_here(job, here):
    """[[index, order]] that a worker at `here` runs: the pending cells, and those measured elsewhere, in order."""
    again = [[index, order] for index, order, where in job["measured"] if where != here]
    return sorted(job["cells"] + again, key=lambda pair: pair[1])


def jobs(plan, measured, done, where, settings, split):
    """The jobs of all rounds: a round each, or a block each if rounds are `split`.

    Args:
        measured: cells that can be timed.
        done: {(cell, round)} that need no measuring.
        where: {(cell, round): place} of records.
    """
    for round_ in range(plan.rounds):
        groups = {}
        for order, cell in enumerate(round_order(measured, plan.seed, round_)):
            groups.setdefault(cell.seqlen if split else None, []).append((cell, order))
        for group in groups.values():
            pending = [(cell, order) for cell, order in group if (cell, round_) not in done]
            kept = [
                (cell, order, where[cell, round_])
                for cell, order in group
                if (cell, round_) in done and (cell, round_) in where
            ]
            if pending:
                yield Job("round", round_, pending, settings, measured=kept)
