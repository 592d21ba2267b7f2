"""The results of a run, `records.jsonl`: one JSON object a line, appended and synced as it is measured.

A record is never rewritten. A process that dies while it writes leaves at most a torn last line, which readers
skip and `Appender` cuts off. A cell that was measured again (`--retry`) has two records: the later one counts.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.plan import Cell

STATUSES = ("ok", "oom", "timeout", "error", "unavailable", "interpreted")
NAME = "records.jsonl"


class RecordError(ValueError):
    """A run directory that cannot be read; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A run directory as it was read."""

    path: Path
    plan: dict
    machine: dict
    records: list[dict]


def make_record(cell, round_, order, status, reason="", **measured):
    """A record with every field of the schema; fields that were not measured are empty.

    Args:
        measured: any of kernels, parity, time_ms, memory_bytes, energy_j, clocks, stopped_by, warmups,
            started, padded.
    """
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    record = {
        "cell": asdict(cell),
        "round": round_,
        "order": order,
        "status": status,
        "reason": reason,
        "kernels": {},
        "parity": None,
        "time_ms": None,
        "memory_bytes": None,
        "energy_j": None,
        "clocks": {},
        "stopped_by": "",
        "warmups": 0,
        "padded": 0,
        "started": now(),
    }
    if unknown := measured.keys() - record.keys():
        raise ValueError(f"unknown field of a record: {', '.join(sorted(unknown))}")
    return record | measured


def now():
    """The time as ISO 8601 with its zone."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def one_line(error, kind=True):
    """An exception as `Type: message` on one line, short enough for a table; `kind=False` leaves the type out."""
    message = " ".join(str(error).split())
    if not message:
        return type(error).__name__
    return f"{type(error).__name__}: {message}"[:500] if kind else message[:500]


class Appender:
    """Appends records, each on the disk before `append` returns."""

    def __init__(self, path):
        self.path = Path(path)
        self._cut_torn_line()
        self._file = self.path.open("ab")

    def append(self, record):
        self._file.write((json.dumps(_finite(record), allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()

    def _cut_torn_line(self):
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)


def _finite(value):
    """The same value with NaN and infinities as strings, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_records(path, skipped=None):
    """The records of a `records.jsonl`, without a torn last line.

    Args:
        skipped: None, or a list that takes a sentence for every broken line, which is left out then.

    Raises:
        RecordError: a broken line before the last one, and `skipped` is None.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            hash(Cell(**record["cell"]))
            if record["status"] not in STATUSES or not isinstance(record["round"], int):
                raise ValueError("status or round is wrong")
        except (ValueError, KeyError, TypeError) as error:
            if skipped is None:
                raise RecordError(f"{path}, line {number}: not a record: {error}") from None
            skipped.append(f"{path.name}, line {number}: not a record: {error}")
            continue
        records.append(record)
    return records


def read_run(path, skipped=None):
    """Read plan.json, machine.json and records.jsonl of a run directory; arguments as in `read_records`."""
    path = Path(path)
    found = {}
    for name in ("plan", "machine"):
        file = path / f"{name}.json"
        try:
            found[name] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecordError(f"{path} holds no {name}.json, so it is no run") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RecordError(f"{file}: not readable as JSON: {error}") from None
    return Run(path, found["plan"], found["machine"], latest(read_records(path / NAME, skipped)))


def latest(records):
    """The last record of every (cell, round), in the order of the file."""
    last = {(Cell(**record["cell"]), record["round"]): record for record in records}
    return list(last.values())


def done(records, retry=()):
    """{(cell, round)} that need no measuring: those with a record, unless its status is in `retry`."""
    return {
        (Cell(**record["cell"]), record["round"])
        for record in latest(records)
        if record["status"] not in retry
    }
