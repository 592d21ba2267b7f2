"""What a run shows while it goes on, on standard error: a bar with time left, or a line now and then in a pipe."""

import math
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from bench.plan import Cell

LINE_EVERY_S = 20.0


def duration(seconds):
    """`45 s`, `3 min 20 s` or `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


class Watcher:
    """Follows a run for a person.

    Args:
        console: a rich Console on standard error.
        clock: a `bench.cost.Clock`.
        todo: {round: cells without a record}; proofs count as cells of the round "proof".
        split: whether each length of a round has a process of its own.
    """

    def __init__(self, console, clock, todo, split=False):
        self.console, self.clock, self.split = console, clock, split
        self.todo = {}
        for round_, cells in todo.items():
            for cell in cells:
                self.todo.setdefault(self._process(cell, round_), set()).add(cell)
        self.total = sum(map(len, self.todo.values()))
        self.workers = 1
        self.bar = None
        if console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task("starting", total=self.total, left="")
        self._printed = -math.inf
        self._begun, self._shown = set(), set()

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception):
        if self.bar:
            self.bar.update(self.task, description="ended", left=f"{self.left()} left")
            self.bar.stop()

    def working(self, workers):
        """So many workers are at work now."""
        self.workers = workers

    def step(self, text):
        """Something other than a cell begins."""
        self._show(text)

    def cell(self, cell, round_):
        """A cell begins."""
        if cell in self.todo.get("proof", ()):
            self._show(f"proving {cell.id}")
            return
        self._begun.add(self._process(cell, round_))
        self._show(f"round {round_ + 1}: {cell.id}")

    def record(self, record, seconds):
        """A cell has its record; `seconds` is None where no worker measured it."""
        cell = Cell(**record["cell"])
        proof = cell in self.todo.get("proof", ())
        process = "proof" if proof else self._process(cell, record["round"])
        self.todo.get(process, set()).discard(cell)
        if record["status"] == "unavailable":  # nor is it measured in later rounds
            for cells in self.todo.values():
                cells.discard(cell)
        if seconds is not None and not proof:
            self.clock.observe(cell, seconds)
        if record["status"] in ("error", "timeout", "oom"):
            self._complain(cell, record)
        if self.bar:
            self.bar.update(self.task, completed=self.total - self.left())

    def _complain(self, cell, record):
        """Show what went wrong, the same trouble of an implementation once."""
        trouble = cell.arch, cell.impl, record["status"], record["reason"]
        if trouble not in self._shown:
            self._shown.add(trouble)
            self._line(
                f"{cell.id}, round {record['round'] + 1}: {record['status']}: {record['reason']}"
            )

    def _line(self, text):
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def left(self):
        """Cells without a record."""
        return sum(map(len, self.todo.values()))

    def _process(self, cell, round_):
        """What shares a fresh process: a round, or a length of a round."""
        return (round_, cell.seqlen) if self.split and round_ != "proof" else round_

    def _show(self, text):
        rounds = {round_: cells for round_, cells in self.todo.items() if round_ != "proof"}
        seconds = self.clock.remaining(rounds, self._begun) / max(1, self.workers)
        left = f"{duration(seconds)} left"
        if self.workers > 1:
            text = f"{self.workers} workers, the latest on {text}"
        if self.bar:
            self.bar.update(self.task, description=text, left=left)
        elif time.monotonic() - self._printed >= LINE_EVERY_S:
            self._printed = time.monotonic()
            done = self.total - self.left()
            self._line(f"{done}/{self.total} cells, about {left}; {text}")
