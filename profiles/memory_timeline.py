"""What torch's allocator gave out and took back, by named range: memory.csv and memory_by_range.csv.

On a CPU the events are those of torch.profiler, on a GPU those of the allocator's own history; both carry the time of
day, as the ranges of torch.profiler do. An event belongs to the ranges that are open at its time, on whatever thread,
so what the backward's own threads allocate belongs to the operator whose gradient they compute.
"""

import csv
from dataclasses import dataclass, field

import torch
from torch.autograd.profiler import profile

SEPARATOR = " > "  # as in the paths of timeline.csv
MOST_ROWS = 5_000
HISTORY = 1_000_000  # allocator events that a GPU remembers
TIMELINE = ("time_ms", "path", "allocated_bytes", "delta")
BY_RANGE = ("path", "count", "allocated_bytes", "freed_bytes", "net_bytes", "peak_bytes")
SIGNS = {
    "alloc": 1,
    "free_completed": -1,
}  # of the history's actions; the others move no bytes of tensors


@dataclass
class Usage:
    """Bytes under one path. `peak_bytes` is the most that was held beyond what was held when the range began."""

    count: int = 0
    allocated_bytes: int = 0
    freed_bytes: int = 0
    net_bytes: int = 0
    peak_bytes: int = 0


@dataclass
class _Open:
    name: str
    path: str
    held: int = field(default=0)


def write(folder, device, run):
    """Call `run`, whose ranges go to torch's profiler, and write both files into a folder."""
    ranges, changes = record(device, run)
    rows, usage = attribute(ranges, changes)
    with (folder / "memory.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([TIMELINE, *thinned(rows)])
    table = [(path, *vars(found).values()) for path, found in usage.items()]
    with (folder / "memory_by_range.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([BY_RANGE, *table])


def record(device, run):
    """(ranges, changes) of one call: [(start ns, end ns, name)] and [(ns, bytes)], both in ns of the day."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.memory._record_memory_history(stacks="python", context=None, max_entries=HISTORY)
    try:
        with profile(use_kineto=True, profile_memory=not on_gpu) as recorded:
            run()
        if on_gpu:
            changes = history(torch.cuda.memory._snapshot(device), torch.device(device).index or 0)
    finally:
        if on_gpu:
            torch.cuda.memory._record_memory_history(enabled=None)
    events = recorded.kineto_results.events()
    ranges = [(e.start_ns(), e.end_ns(), e.name()) for e in events if e.is_user_annotation()]
    if not on_gpu:
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return ranges, changes


def history(snapshot, index):
    """[(ns, bytes)] of the allocator's history of one GPU, as `torch.cuda.memory._snapshot` gives it."""
    return [
        (1000 * entry["time_us"], SIGNS[entry["action"]] * entry["size"])
        for entry in snapshot["device_traces"][index]
        if entry["action"] in SIGNS
    ]


def attribute(ranges, changes):
    """(rows of memory.csv, {path: Usage}), with bytes counted from the start of the first range.

    Args:
        ranges: [(start ns, end ns, name)]; changes: [(ns, bytes, negative for what was freed)].
            What lies outside of every range is left out.
    """
    # at the same time: what ends, then what begins (the longer first), then what is allocated
    points = [(max(end, start + 1), 0, 0, name) for start, end, name in ranges]
    points += [(start, 1, -end, name) for start, end, name in ranges]
    points += [(at, 2, 0, size) for at, size in changes]
    began = min((start for start, _, _ in ranges), default=0)
    rows, usage, stack, held = [], {}, [], 0
    for at, kind, _, what in sorted(points, key=lambda point: point[:3]):
        if kind == 0:
            last = max(i for i, entered in enumerate(stack) if entered.name == what)
            del stack[last]
        elif kind == 1:
            path = SEPARATOR.join([stack[-1].path, what]) if stack else what
            stack.append(_Open(what, path, held))
            usage.setdefault(path, Usage()).count += 1
        elif stack:
            held += what
            rows.append(((at - began) / 1e6, stack[-1].path, held, what))
            for entered in stack:
                _add(usage[entered.path], what, held - entered.held)
    return rows, usage


def _add(usage, change, above):
    usage.allocated_bytes += max(change, 0)
    usage.freed_bytes += max(-change, 0)
    usage.net_bytes += change
    usage.peak_bytes = max(usage.peak_bytes, above)


def thinned(rows, most=MOST_ROWS):
    """At most `most` rows: of equal parts of them the highest and the last; `delta` is since the row before."""
    if len(rows) <= most:
        return rows
    parts = most // 2
    kept = []
    for part in range(parts):
        first, end = part * len(rows) // parts, (part + 1) * len(rows) // parts
        highest = max(range(first, end), key=lambda i: rows[i][2])
        kept += sorted({highest, end - 1})
    before = rows[0][2] - rows[0][3]
    found = []
    for time_ms, path, held, _ in (rows[i] for i in kept):
        found.append((time_ms, path, held, held - before))
        before = held
    return found
