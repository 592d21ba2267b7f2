"""What a profile holds, whichever tool made it: ranges, API calls, device work and operators as tables."""

from dataclasses import dataclass, field

import pandas as pd

LEVELS = ("round", "cell", "rep", "layer", "op", "other")

RANGES = {
    "start": "int64",
    "end": "int64",
    "thread": "int64",
    "process": "int64",
    "name": "object",
    "stacked": "bool",
}
CALLS = {
    "start": "int64",
    "end": "int64",
    "thread": "int64",
    "process": "int64",
    "correlation": "int64",
    "waits": "bool",
}
WORK = {
    "start": "int64",
    "end": "int64",
    "process": "int64",
    "correlation": "int64",
    "kind": "object",
    "name": "object",
}
OPS = {"start": "int64", "end": "int64", "thread": "int64", "process": "int64", "name": "object"}  # fmt: skip


class ProfileError(ValueError):
    """A file that is no profile, or one that cannot be read; the message names it and says what to do."""


def empty(columns):
    """A table of those columns and types without rows."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


@dataclass
class Profile:
    """One capture. Times are in ns on one clock; `thread` is unique over all processes.

    Attributes:
        tool: what recorded it, for people.
        ranges: columns RANGES. `stacked` ranges were pushed and popped on their thread, the others started and ended
            anywhere, as NVTX start/end ranges do.
        calls: columns CALLS, the calls of the CUDA API; `waits` if the call returns only when the device is done.
        work: columns WORK, what ran on the device; `correlation` is that of its call, within its process.
        ops: columns OPS, operators of torch on the host; none under Nsight Systems.
        notes: sentences about what the reader left out.
    """

    tool: str
    ranges: pd.DataFrame
    calls: pd.DataFrame = field(default_factory=lambda: empty(CALLS))
    work: pd.DataFrame = field(default_factory=lambda: empty(WORK))
    ops: pd.DataFrame = field(default_factory=lambda: empty(OPS))
    notes: list[str] = field(default_factory=list)


def level(name):
    """The level of a range by its name: `layer/3` is a `layer`."""
    first = name.split("/")[0]
    return first if first in LEVELS and (name == first) == (first == "rep") else "other"


def number_of(count, thing):
    """`1 launch`, `1,200 launches`."""
    plural = f"{thing}es" if thing.endswith(("ch", "s")) else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"
