"""A Chrome trace of torch.profiler, whose `record_function` ranges have the names of ours."""

import gzip
import json
import re
import zlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from profiles.events import CALLS, OPS, RANGES, WORK, Profile, ProfileError, empty, level, number_of
from profiles.nsight_file import WAITS

WORK_KIND = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
CALL = ("cuda_runtime", "cuda_driver")
AGAIN = "write it again with export_chrome_trace"


def read(path):
    """The Profile in a trace, .json or .json.gz.

    Raises:
        ProfileError: no trace, a truncated one, or one without ranges.
    """
    path = Path(path)
    events = _events(path)
    found = {"range": [], "call": [], "work": [], "op": []}
    others = 0
    for event in events:
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        category = event.get("cat")
        if category == "user_annotation":
            ours = level(str(event.get("name"))) != "other"
            others += not ours
            found["range"] += [event] * ours
        elif category == "cpu_op":
            found["op"].append(event)
        elif category in CALL:
            found["call"].append(event)
        elif category in WORK_KIND:
            found["work"].append(event)
    if not found["range"]:
        raise ProfileError(
            f"{path} has no ranges (user_annotation events such as cell/… or op/…): they are on only under a profiler"
        )
    try:
        return _profile(found, others)
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(
            f"{path} has an event that torch.profiler does not write ({error!r}); {AGAIN}"
        ) from None


def _events(path):
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            # times are microseconds since long ago with three decimals: a float would lose nanoseconds
            document = json.load(file, parse_float=Decimal)
    except (EOFError, zlib.error) as error:
        raise ProfileError(f"{path} is cut short ({error}); {AGAIN}") from None
    except gzip.BadGzipFile as error:
        raise ProfileError(f"{path} is no gzip file ({error}); {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is cut short or no JSON ({error}); {AGAIN}") from None
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise ProfileError(f"{path} is JSON, but no Chrome trace: it has no list traceEvents")
    return events


def _profile(found, others):
    threads, processes = {}, {}
    ranges = _table(found["range"], RANGES, threads, processes).assign(stacked=True)
    calls = _table(found["call"], CALLS, threads, processes)
    calls["waits"] = [bool(WAITS.search(event["name"])) for event in found["call"]]
    calls["correlation"] = _correlations(found["call"], -1)
    ops = _table(found["op"], OPS, threads, processes)
    notes = [f"{number_of(others, 'annotation')} of others, left out"] if others else []
    if not len(found["work"]):
        return Profile(
            "torch.profiler", ranges, calls[list(CALLS)].astype(CALLS), ops=ops, notes=notes
        )
    work = _table(found["work"], WORK, {}, {})
    work["kind"] = [WORK_KIND[event["cat"]] for event in found["work"]]
    # `Memcpy HtoD (Pageable -> Device)`: what Nsight Systems calls the same
    plain = lambda event: (
        re.sub(r" \(.*", "", event["name"]) if event["cat"] != "kernel" else event["name"]
    )
    work["name"] = [plain(event) for event in found["work"]]
    work["correlation"] = _correlations(found["work"], -2)
    work["process"] = _process_of_work(work.correlation, calls)
    return Profile(
        "torch.profiler",
        ranges,
        calls[list(CALLS)].astype(CALLS),
        work[list(WORK)].astype(WORK),
        ops,
        notes,
    )


def _table(events, columns, threads, processes):
    """start, end (ns), thread and process (numbered in order), name of events."""
    if not events:
        return empty(columns)
    ns = lambda field: np.array(
        [round(1000 * event.get(field, 0)) for event in events], dtype=np.int64
    )
    start = ns("ts")
    process = [processes.setdefault(event["pid"], len(processes)) for event in events]
    thread = [threads.setdefault((event["pid"], event["tid"]), len(threads)) for event in events]
    name = [str(event["name"]) for event in events]
    table = {
        "start": start,
        "end": start + ns("dur"),
        "thread": thread,
        "process": process,
        "name": name,
    }
    return pd.DataFrame(table)


def _correlations(events, missing):
    return np.array(
        [int(event.get("args", {}).get("correlation", missing)) for event in events], dtype=np.int64
    )


def _process_of_work(correlation, calls):
    """The process that made the call of each correlation id, -1 where none or several did."""
    made = calls[["correlation", "process"]].drop_duplicates()
    made = made[~made.duplicated("correlation", keep=False)].set_index("correlation").process
    return correlation.map(made).fillna(-1).astype("int64")
