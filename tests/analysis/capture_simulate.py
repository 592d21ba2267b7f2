"""Captures with planted times, as `profiles.capture` leaves them in a run."""

import csv
import json
from dataclasses import asdict

from bench.plan import Cell
from tests.analysis.simulate import MACHINE

TIMELINE = [
    "path", "level", "name", "count", "host_ms", "host_self_ms", "launches", "inclusive_ms", "innermost_ms", "busy_ms",
    "span_ms", "gap_ms", "share", "clock", "launch_bound",
]  # fmt: skip
WORK = ["path", "kind", "name", "count", "ms", "share"]
OPERATORS = {
    "mamba": {"op/selective_scan": 30.0, "op/causal_conv1d": 10.0},
    "llama": {"op/causal_attention": 20.0},
}
LAYERS = 2


def write(
    run,
    arch="mamba",
    impl="cpu",
    seqlen=512,
    device="host",
    kernel="aten::mm",
    operators=None,
    **fields,
):
    """A capture of a cell with two layers in RUN/profiles; returns its folder.

    Every layer has the planted ms of its operators and 5 ms of its own; 10 ms lie outside of the layers. `device` is
    the clock; on a device every range is launch-bound that has more than 20 ms.
    """
    cell = Cell(arch, impl, "paper-50m", seqlen, **fields)
    folder = run / "profiles" / f"{cell.id}.torch"
    folder.mkdir(parents=True)
    operators = OPERATORS[arch] if operators is None else operators
    layer = 5.0 + sum(operators.values())
    rows, work = [], []

    def add(path, level, whole, own):
        of_device = [4, whole, own, whole, whole, 0.5] if device == "device" else [0, 0, 0, 0, 0, 0]
        launches, inclusive, innermost, busy, span, gap = of_device
        bound = str(whole > 20).lower() if device == "device" else ""
        rows.append([" > ".join(path), level, path[-1], 1, whole, own, launches, inclusive, innermost, busy, span, gap,
                     own / (10 + LAYERS * layer), device, bound])  # fmt: skip
        kind = "kernel" if device == "device" else "cpu_op"
        work.append([" > ".join(path), kind, kernel, 3, 0.75 * own, 0])
        work.extend([" > ".join(path), kind, f"small {i}", 1, 0.01 * own, 0] for i in range(6))

    top = [f"cell/{cell.id}"]
    add(top, "cell", 10 + LAYERS * layer, 7.0)  # before the repetitions: no part of them
    add([*top, "rep"], "rep", 10 + LAYERS * layer, 10.0)
    for i in range(LAYERS):
        add([*top, "rep", f"layer/{i}"], "layer", layer, 5.0)
        for name, ms in operators.items():
            add([*top, "rep", f"layer/{i}", name], "op", ms, ms)
    for name, columns, lines in (("timeline", TIMELINE, rows), ("work", WORK, work)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *lines])
    manifest = {
        "cell": asdict(cell), "id": cell.id, "profiler": "torch", "profiler_version": "2.13.0",
        "command": f"python -m profiles.capture --cell {cell.id}", "started": "2026-11-22T07:00:00+00:00", "reps": 3,
        "device": "cpu", "machine": MACHINE, "kernels": {}, "wall_ms": [101.0, 100.0, 102.0], "files": {}, "notes": [],
        "status": "ok", "reason": "",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def change(folder, **fields):
    """Write other fields into the manifest of a capture."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
