"""Results in a folder of `bench.gpu_suite` as lines of Markdown: sweeps, profiles, determinism, metrics."""

import collections
import csv
import json
import statistics

from bench.records import read_run


def sweep_rows(folder):
    """One row a cell of a run directory: median over rounds of the median wall time, memory, parity."""
    cells = {}
    for record in read_run(folder).records:
        cells.setdefault(json.dumps(record["cell"], sort_keys=True), []).append(record)
    rows = []
    for key, records in cells.items():
        times = [
            statistics.median(r["time_ms"]["wall"])
            for r in records
            if r["status"] == "ok" and r["time_ms"]
        ]
        last = records[-1]
        rows.append(
            json.loads(key)
            | {
                "status": last["status"],
                "reason": last["reason"],
                "ms": statistics.median(times) if times else None,
                "rounds_ms": times,
                "memory_bytes": last["memory_bytes"],
                "kernels": last["kernels"],
                "parity": last["parity"],
            }
        )
    return rows


def sweep_lines(rows):
    """Markdown rows of a sweep: one a cell."""
    yield "| architecture | implementation | dtype | mode | seqlen | ms | peak MiB | state MiB | status |"
    yield "|---|---|---|---|---:|---:|---:|---:|---|"
    for row in rows:
        ms = "" if row["ms"] is None else f"{row['ms']:.3f}"
        memory = row["memory_bytes"] or {}
        peak, cache = (_mebibytes(memory.get(name)) for name in ("peak_allocated", "cache"))
        status = row["status"] + (f": {_cell(row['reason'])}" if row["reason"] else "")
        head = (
            f"| {row['arch']} | {row['impl']} | {row['dtype']} | {row['mode']} | {row['seqlen']} "
        )
        yield f"{head}| {ms} | {peak} | {cache} | {status} |"


def metrics_line(path):
    """How many records of a metrics.jsonl there are, by status, and which implementations failed parity."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    counts = collections.Counter(record["status"] for record in records)
    judged = [record for record in records if record["parity"]]
    failed = {
        f"{r['unit']['arch']} under {r['unit']['impl']} ({r['unit']['group']})"
        for r in judged
        if not r["parity"]["passed"]
    }
    text = ", ".join(f"{n} {status}" for status, n in counts.items())
    return f"{text}; parity of {len(judged)} proven" + (
        f" but for {', '.join(sorted(failed))}" if failed else ""
    )


def determinism_lines(rows):
    """Markdown rows of the determinism check."""
    yield "| operator | dtype | runs | different from the first |"
    yield "|---|---|---:|---:|"
    for row in rows:
        found = row["different"]
        text = f"unavailable, because {_cell(row['reason'])}" if found is None else found
        yield f"| {row['operator']} | {row['dtype']} | {row['repetitions']} | {text} |"


def profile_rows(folder):
    """One row a capture of profiles.capture: what its manifest says, and its repetition by the device's clock."""
    rows = []
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        row = {name: manifest[name] for name in ("profiler", "status", "reason", "kernels")}
        rows.append(manifest["cell"] | row | _profiled(path.parent / "timeline.csv"))
    return rows


def _profiled(path):
    """Of one repetition in a timeline.csv: launches, ms, and the share of time inside of operators."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        ranges = list(csv.DictReader(file))
    rep = next(row for row in ranges if row["level"] == "rep")
    operators = sum(float(row["share"] or 0) for row in ranges if row["level"] == "op")
    found = {name: float(rep[name]) for name in ("launches", "busy_ms", "gap_ms", "host_ms")}
    return found | {"operators": operators, "launch_bound": rep["launch_bound"]}


def profile_lines(rows):
    """Markdown rows of the profiles: one repetition of each cell, with the profiler attached."""
    yield "| arch | impl | profiler | launches | busy ms | gap ms | in operators | launch-bound | status |"
    yield "|---|---|---|---:|---:|---:|---:|---|---|"
    for row in rows:
        status = row["status"] + (f": {_cell(row['reason'])}" if row["reason"] else "")
        numbers = "|  |  |  |  |  "
        if "busy_ms" in row:
            numbers = (
                f"| {row['launches']:.0f} | {row['busy_ms']:.3f} | {row['gap_ms']:.3f} "
                f"| {row['operators']:.1%} | {row['launch_bound']} "
            )
        yield f"| {row['arch']} | {row['impl']} | {row['profiler']} {numbers}| {status} |"


def statistics_lines(found):
    """Markdown rows of what `bench.attention_memory` wrote."""
    yield "| tokens | way | seconds | MiB beyond the weights |"
    yield "|---:|---|---:|---:|"
    for row in found["rows"]:
        if row["reason"]:
            yield f"| {row['seqlen']} | {row['way']} | {_cell(row['reason'])} |  |"
        else:
            yield f"| {row['seqlen']} | {row['way']} | {row['seconds']:.3f} | {_mebibytes(row['peak_bytes'])} |"


def _mebibytes(n):
    return "" if n is None else f"{n / 2**20:.1f}"


def _cell(text):
    return text.replace("|", "/").replace("\n", " ")[:160]
