"""The folder of `bench.kernels`: kernels.jsonl, a problem a line, and what is made of it.

A line is {"rows": [...]} of a problem that was measured, or {"broken": {...}} of a contender that took the GPU's
context down: it is left out of that operator and mode from then on.
"""

import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

from bench.kernel_table import markdown
from bench.machine import describe, measure_peaks
from bench.mixer import floor_of
from bench.records import Appender
from kernels.roofline import DTYPES, work

NAME = "kernels.jsonl"
TRYING = "trying.json"
CONTEXT_LOST = 3  # exit status of a process whose GPU context is gone


def new_row(operator, mode, problem, dtype, name, peaks):
    """A row before anything is known of it but its floor and its work."""
    direction = "backward" if mode == "backward" else "forward"
    least = floor_of(problem, dtype, peaks, direction)
    flops, moved, _ = work(problem, DTYPES[dtype], direction)
    return {
        "operator": operator, "mode": mode, "problem": str(problem), "dtype": dtype, "impl": name,
        "status": "ok", "reason": "", "kernel": "", "error_over_bound": None, "samples_ms": [],
        "flops": flops, "bytes": moved,
        "floor_ms": 1e3 * least.seconds, "bound": least.bound, "floor_missing": list(least.missing),
    }  # fmt: skip


class Rows:
    """The rows of a folder, or of this process alone if `folder` is None."""

    def __init__(self, folder):
        file = None if folder is None else folder / NAME
        self.rows = read_rows(file)
        self._broken = read_broken(file)
        self._appender = self._trying = None
        if file is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._appender, self._trying = Appender(file), folder / TRYING
            if self._trying.exists():
                self.note_broken(**json.loads(self._trying.read_text(encoding="utf-8")))
                self._trying.unlink()

    def missing(self, cases):
        """Those of (operator, mode, problem, dtype) that have no row."""
        known = {(row["operator"], row["mode"], row["problem"], row["dtype"]) for row in self.rows}
        return [case for case in cases if (*case[:2], str(case[2]), case[3]) not in known]

    def broken(self, operator, mode):
        """{contender: why} that are not run any more."""
        alike = [b for b in self._broken if (b["operator"], b["mode"]) == (operator, mode)]
        return {b["impl"]: b["reason"] for b in alike}

    def add(self, rows):
        if self._appender:
            self._appender.append({"rows": rows})
        self.rows += rows

    def note_broken(self, operator, mode, impl, reason):
        found = {"operator": operator, "mode": mode, "impl": impl, "reason": reason}
        if self._appender:
            self._appender.append({"broken": found})
        self._broken.append(found)

    @contextmanager
    def trying(self, operator, mode, impl, seconds=None):
        """Within it a contender runs: if the process ends in it, or it takes `seconds`, it is broken from then on."""
        if self._trying is None:
            yield
            return
        why = {
            "operator": operator,
            "mode": mode,
            "impl": impl,
            "reason": "the process ended while it ran",
        }
        self._trying.write_text(json.dumps(why), encoding="utf-8")
        timer = threading.Timer(seconds or 0, os._exit, (CONTEXT_LOST,))
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._trying.unlink()

    def close(self):
        if self._appender:
            self._appender.close()


def read_rows(file):
    """The rows of a `kernels.jsonl`, a torn last line aside; none where there is no file."""
    # a file from before there were modes has forwards only
    return [{"mode": "forward"} | row for line in _lines(file) for row in line.get("rows", ())]


def read_broken(file):
    """[{"operator", "mode", "impl", "reason"}] of contenders that took the GPU's context down."""
    return [line["broken"] for line in _lines(file) if "broken" in line]


def _lines(file):
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def make_folder(parser, option, folder):
    """Make a folder that an option names, or end with one line that says why it cannot be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{option} {folder}: cannot be made: {error.strerror or error}")


def known_peaks(folder, device):
    """The measured rates of the machine; those of a folder are measured once, so that its floors are of one kind."""
    file = None if folder is None else folder / "peaks.json"
    if file is not None and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    peaks = measure_peaks(device)
    if file is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(peaks, indent=1) + "\n", encoding="utf-8")
    return peaks


def write_pages(folder, rows, peaks, device):
    """Write kernels.md and the pictures of rows into a folder; returns their paths."""
    from bench import kernel_figure, ratio_figure  # matplotlib takes a second

    folder = Path(folder)
    machine = describe(device, peaks=False)
    name = machine["gpu"]["name"] if machine["gpu"] else machine["cpu"]
    title = f"Operators alone: {name}, revision {machine['git']['revision']}"
    (folder / "kernels.md").write_text(markdown(rows, peaks, title), encoding="utf-8")
    pictures = [*kernel_figure.write(rows, folder), *ratio_figure.write(rows, folder)]
    return [folder / name for name in ("kernels.md", *pictures)]
