"""The results of a run, `records.jsonl`: one JSON object a line, appended and synced as it is measured.

A record is never rewritten. A process that dies while it writes leaves at most a torn last line, which readers
skip and `Appender` cuts off. A cell that was measured again (`--retry`) has two records: the later one counts, and
later is what the file says, not the clock.
"""

import errno
import fcntl
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.plan import Cell

STATUSES = ("ok", "oom", "timeout", "error", "unavailable", "interpreted")
NAME = "records.jsonl"
MACHINE = {"cpu": str, "gpu": dict, "versions": dict, "git": dict, "peaks": dict, "resumed": list}
BLOCK = 1 << 20  # bytes read at a time from the end of a file


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
        measured: any of device (as `bench.device.describe_place` gives it), kernels, parity, time_ms, memory_bytes,
            energy_j, clocks, stopped_by, warmups, started, padded.
    """
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    record = {
        "cell": asdict(cell),
        "round": round_,
        "order": order,
        "status": status,
        "reason": reason,
        "device": None,
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
    """Appends records, each on the disk before `append` returns; one process at a time.

    Raises:
        RecordError: another process writes the file.
        OSError: it cannot be written, as on a full disk; the file then ends with the last whole record.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._cut_torn_line()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record):
        line = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
        end = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], end + written)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self):
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lock(self):
        """Keep other writers out for as long as the file is open, even if this process is killed."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordError(f"{self.path}: another process is writing it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise  # those are network file systems without locks: there, nobody can be kept out

    def _cut_torn_line(self):
        """Cut the file after the last end of a line."""
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - BLOCK)
            if whole := os.pread(self._file, end - start, start).rfind(b"\n") + 1:
                end = start + whole
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)


def _finite(value):
    """The same value with NaN and infinities as strings, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def stream_records(path, skipped=None):
    """The records of a `records.jsonl` one after the other, without a torn last line; none if there is no file.

    Names of cells and devices are shared between records, of which a million may be read.

    Args:
        skipped: None, or a list that takes a sentence for every broken line, which is left out then.

    Raises:
        RecordError: a broken line before the last one, and `skipped` is None.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                for part in (record["cell"], record.get("device") or {}):
                    part |= {k: sys.intern(v) for k, v in part.items() if isinstance(v, str)}
                hash(Cell(**record["cell"]))
                if record["status"] not in STATUSES or not isinstance(record["round"], int):
                    raise ValueError("status or round is wrong")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if skipped is None:
                    raise RecordError(
                        f"{path}, line {number}: not a record: {one_line(error, kind=False)}; without this line, "
                        "--resume measures its cell again"
                    ) from None
                skipped.append(f"{path.name}, line {number}: not a record: {error}")
                continue
            yield record


def read_records(path, skipped=None):
    """All records of a file in a list; arguments and errors as in `stream_records`."""
    return list(stream_records(path, skipped))


def scan(path):
    """`statuses` of a file, which is read a line at a time: what a resumed run needs of a million records."""
    return statuses(stream_records(path))


def read_run(path, skipped=None):
    """Read plan.json, machine.json and records.jsonl of a run directory.

    Args:
        skipped: as in `stream_records`; it also takes a sentence for every change of code or versions that the run
            was resumed with.
    """
    path = Path(path)
    found = {}
    for name in ("plan", "machine"):
        file = path / f"{name}.json"
        try:
            found[name] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecordError(f"{path} holds no {name}.json, so it is no run") from None
        except (OSError, ValueError, RecursionError) as error:
            raise RecordError(f"{file}: not readable as JSON: {error}") from None
        if not isinstance(found[name], dict):
            raise RecordError(f"{file}: not an object of JSON; start a new run")
    try:
        check_machine(found["machine"])
    except ValueError as error:
        raise RecordError(f"{path / 'machine.json'}: {error}; start a new run") from None
    if skipped is not None:
        skipped += map(mixture, found["machine"].get("resumed") or ())
    records = latest(stream_records(path / NAME, skipped))
    return Run(path, found["plan"], found["machine"], records)


def check_machine(machine):
    """ValueError if a part of a machine.json is of another type than `bench.machine.describe` gives it."""
    for name, type_ in MACHINE.items():
        if not isinstance(machine.get(name), type_ | None):
            raise ValueError(f"{name} is {machine[name]!r}"[:200])
    try:
        list(map(mixture, machine.get("resumed") or ()))
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry of resumed is broken: {one_line(error)}") from None


def mixture(resumption):
    """The warning that a report gives of one entry of `resumed` in a machine.json."""
    changes = "; ".join(resumption["changed"])
    return f"Records from {resumption['when']} on were measured after a change: {changes}."


def latest(records):
    """The last record of every (cell, round), in the order of the file."""
    last = {(Cell(**record["cell"]), record["round"]): record for record in records}
    return list(last.values())


def statuses(records):
    """{(cell, round): status of its last record}; `records` may be any iterable, and none of them is kept."""
    cells, last = {}, {}
    for record in records:
        cell = Cell(**record["cell"])
        last[cells.setdefault(cell, cell), record["round"]] = sys.intern(record["status"])
    return last


def done(last, retry=()):
    """{(cell, round)} that need no measuring: those of `statuses`, unless the status is in `retry`."""
    return {key for key, status in last.items() if status not in retry}


def untimed(last, retry=()):
    """Cells of `statuses` that cannot be timed here, unless that status is to be tried again."""
    kinds = {"unavailable", "interpreted"} - set(retry)
    return {cell for (cell, _), status in last.items() if status in kinds}
