"""suite.md of a folder of `bench.gpu_suite`: version, idea, predicted, measured, in the order in which a story is told.

Everything is read from the files of the folder, so the page can be made again on a machine without a GPU.
"""

import json
import math
import statistics
from pathlib import Path

from bench import preflight
from bench.kernel_rows import NAME, read_rows
from bench.kernel_table import block_medians, markdown, ratio_to
from bench.kernel_table import rates as said_rates
from bench.ratio_figure import PEERS, goal
from bench.suite import record

STATIC = Path(__file__).parents[2] / "profiles" / "records" / "static-sm_90" / "static.json"
IDEA = "What was tried in this version, and why: for a person to write."
SAME = ("mode", "problem", "dtype")


def write(out, result):
    """suite.json (machine, stages, failed) and suite.md in the folder `out`."""
    out = Path(out)
    (out / "suite.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [line for part in (version, idea, predicted, measured) for line in part(out, result)]
    (out / "suite.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(out):
    """The pictures of kernels.jsonl, beside it; returns their names."""
    rows = read_rows(out / "kernels" / NAME)
    if not rows:
        return []
    from bench import kernel_figure, ratio_figure  # matplotlib takes a second

    folder = out / "kernels"
    return [*kernel_figure.write(rows, folder), *ratio_figure.write(rows, folder)]


def version(out, result):
    machine = result["machine"]
    gpu = machine["gpu"]
    yield f"# {gpu['name'] if gpu else machine['cpu']}, revision {machine['git']['revision']}"
    yield ""
    yield "## Version"
    yield ""
    dirty = ", with changes that are in no commit" if machine["git"].get("dirty") else ""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    yield f"Revision {machine['git']['revision']}{dirty}; {versions}."
    if machine.get("peaks"):
        yield f"Measured here: {said_rates(machine['peaks'])}."
    for path in sorted(out.glob("configurations-*.json")):
        entries = json.loads(path.read_text(encoding="utf-8")).get("entries", [])
        yield f"Configurations: {len(entries)} measured entries in {path.name}."


def idea(out, result):
    yield from ("", "## Idea", "", IDEA)


def predicted(out, result):
    yield from ("", "## Predicted", "")
    if not STATIC.exists():
        yield "unavailable, because profiles.static left no record"
        return
    static = json.loads(STATIC.read_text(encoding="utf-8"))
    yield f"Counted in machine code at revision {static['git']['revision']} (`python -m profiles.static`)."
    yield ""
    yield "| kernel | registers | per | clocks of a scheduler at least | bound |"
    yield "|---|---:|---|---|---|"
    for row in static["rows"]:
        clocks = ", ".join(f"{unit} {n:.3g}" for unit, n in row["clocks"].items())
        yield f"| {row['kernel']} | {row['registers']} | {row['unit']} | {clocks} | {row['bound']} |"


def measured(out, result):
    yield from ("", "## Measured", "")
    yield "| stage | complete | result |"
    yield "|---|---|---|"
    for name, found in result["stages"].items():
        yield f"| {name} | {'yes' if found['complete'] else 'no'} | {_cell(found['summary'])} |"
    for name, reason in result["failed"].items():
        yield f"| {name} | no | {_cell(reason)} |"
    rows = read_rows(out / "kernels" / NAME)
    sections = {
        "Preflight": _preflight(out),
        "Against peers": against_peers(rows),
        "Statistics of attention over its forward": statistics_over_forward(rows),
        "Operators": markdown(rows, result["machine"]["peaks"] or {}).splitlines()[2:] if rows else (),
        "Memory of statistics": _json_lines(out / "attention_memory.json", record.statistics_lines),
        "Determinism": _determinism(out),
        "Counters": _texts(out.glob("counters/*.md")),
        "Profiles": _profiles(out),
        "Metrics": _metrics(out),
        "Long context": _texts(out.glob("long-context/long.md")),
    }  # fmt: skip
    for folder in sorted(path.parent for path in out.glob("sweep-*/records.jsonl")):
        sections[folder.name] = record.sweep_lines(record.sweep_rows(folder))
    for title, lines in sections.items():
        if lines := list(lines):
            yield from ("", f"### {title}", "", *lines)


def against_peers(rows):
    """How many times as fast as its peer `triton` is, over all problems of an operator, mode and dtype."""
    found = {}
    for row in rows:
        by_dtype, _ = PEERS.get(row["operator"], ({}, {}))
        peer = by_dtype.get(row["dtype"], by_dtype.get("", None))
        if row["impl"] == peer and row["samples_ms"]:
            interval, base = ratio_to(rows, row)
            if base == "triton":
                key = row["operator"], row["mode"], row["dtype"], peer
                found.setdefault(key, []).append((interval.ratio, row["problem"]))
    if not found:
        return
    yield "| operator | mode | dtype | peer | problems | geometric mean | least | at | goal |"
    yield "|---|---|---|---|---:|---:|---:|---|---:|"
    for (operator, mode, dtype, peer), ratios in found.items():
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio, _ in ratios))
        least, at = min(ratios)
        wanted = goal(operator, dtype, mode)
        yield (
            f"| {operator} | {mode} | {dtype} | {peer} | {len(ratios)} | {mean:.2f} | {least:.2f} | {at} | {wanted:g} |"
        )


def statistics_over_forward(rows):
    """The time of attention_statistics over that of the forward of the same problem, under triton."""
    times = {
        (row["operator"], *(row[key] for key in SAME)): statistics.median(block_medians(row))
        for row in rows
        if row["impl"] == "triton" and row["samples_ms"]
    }
    lines = []
    for (operator, *where), ms in times.items():
        forward = times.get(("causal_attention", *where))
        if operator == "attention_statistics" and forward:
            _, problem, dtype = where
            lines.append(f"| {problem} | {dtype} | {ms:.4g} | {forward:.4g} | {ms / forward:.2f} |")
    head = ["| problem | dtype | statistics ms | forward ms | ratio |", "|---|---|---:|---:|---:|"]
    return head + lines if lines else []


def _preflight(out):
    found = preflight.read(out)
    return preflight.lines(found.values()) if found else ()


def _determinism(out):
    paths = sorted(out.glob("determinism*.json"))
    rows = [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    return record.determinism_lines(rows) if rows else ()


def _profiles(out):
    rows = record.profile_rows(out / "profiles")
    return record.profile_lines(rows) if rows else ()


def _metrics(out):
    for path in sorted(out.glob("sweep-*/metrics.jsonl")):
        yield f"{path.parent.name}: {record.metrics_line(path)}"


def _json_lines(path, lines):
    return lines(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ()


def _texts(paths):
    for path in sorted(paths):
        for line in path.read_text(encoding="utf-8").splitlines():
            # its title becomes one of this page's
            yield "####" + line.lstrip("#") if line.startswith("#") else line
        yield ""


def _cell(text):
    return text.replace("|", "/").replace("\n", " ")[:400]
