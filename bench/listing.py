"""What `--list` and `--dry-run` print."""

from collections import defaultdict

from rich.table import Table

from bench.availability import fate
from bench.calibrate import calibrated
from bench.cost import clock_of, size_of, sweep_seconds
from bench.doctor import implementation_table
from bench.memory import free_bytes
from bench.memory_model import LONGEST, longest, needed_bytes, why_hopeless
from bench.plan import DTYPES, LAUNCHES, MODES, PROTOCOLS
from bench.progress import duration
from models.build import outline, parameter_counts
from models.presets import PRESETS


def plain(value):
    """A value of an option as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={inner}" for key, inner in value.items()) or "none"
    return str(value)


def choices():
    """Tables of implementations with their availability, presets with their sizes, and the other factors."""
    table = implementation_table()
    presets = Table(title="Presets", title_justify="left")
    for column in ("preset", "arch", "parameters", "embedding", "other"):
        presets.add_column(column, justify="left" if column in ("preset", "arch") else "right")
    for preset in PRESETS.values():
        for arch in preset.archs:
            counts = parameter_counts(outline(arch, preset))
            presets.add_row(
                preset.name, arch, f"{counts.total:,}", f"{counts.embedding:,}", f"{counts.other:,}"
            )
    factors = Table(title="Other factors", title_justify="left", show_header=False)
    for name, values in (
        ("dtype", DTYPES),
        ("launch", LAUNCHES),
        ("mode", MODES),
        ("protocol", PROTOCOLS),
    ):
        factors.add_row(f"--{name}", ", ".join(values))
    return table, presets, factors


def dry_run(plan, finished=frozenset(), metrics="none", profiler="none"):
    """The plan as a table, how long what is left of it takes here, and how much memory.

    Args:
        finished: {(cell, round)} that are not measured again.
        metrics: the extent of the representation metrics.
        profiler: what profiles the fastest cells, or "none".
    """
    device, options = plan.options["device"], plan.options
    peaks, factors = calibrated(plan)
    clock, groups = clock_of(plan, peaks, factors), defaultdict(list)
    free = free_bytes(device)
    for cell in plan.cells:
        groups[
            cell.arch,
            cell.impl,
            cell.preset,
            cell.mode,
            cell.dtype,
            cell.launch,
            *fate(cell, device),
        ].append(cell)
    table = Table(title=f"Plan: {len(plan.cells)} cells, {plan.rounds} rounds, {plan.preset}, on {device}",
                  title_justify="left")  # fmt: skip
    left = ("arch", "impl", "preset", "mode", "dtype", "launch", "will be")
    for column in (*left, "cells", "time", "memory", "fits up to", "because"):
        right = column in ("cells", "time", "memory", "fits up to")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for (*factors_of, kind, reason), cells in groups.items():
        time = memory = fits = ""
        if kind == "measured":
            size = size_of(cells[0], plan.architectures)
            hopeless = {cell: why_hopeless(cell, plan, device) for cell in cells}
            reason = "; ".join(
                sorted({f"{c.seqlen:,} tokens: {why}" for c, why in hopeless.items() if why})
            )
            wanted = [c for c in cells if not hopeless[c]
                      for r in range(plan.rounds) if (c, r) not in finished]  # fmt: skip
            time = duration(sum(map(clock.expect, wanted)))
            how = options["logits"], options.get("chunk")
            memory = f"{max(needed_bytes(cell, size, *how) for cell in cells) / 2**20:,.0f} MiB"
            largest = max(cells, key=lambda cell: cell.batch)
            fits = tokens(longest(largest, size, free, *how))
        if kind == "interpreted":
            reason = "no GPU: outputs are proven through Triton's interpreter, nothing is timed"
        table.add_row(*factors_of, kind, str(len(cells)), time, memory, fits, reason)
    lengths = f"seqlens {plain(options['seqlens'])}; batch {plain(options['batch'])}"
    parts = sweep_seconds(plan, clock, metrics, profiler, finished, peaks)
    words = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items())
    basis = "a few layers that ran here" if peaks else "typical rates: calibrating failed"
    estimate = (
        f"rough estimate from {basis}: {duration(sum(parts.values()))} ({words}); predicted memory fits up to so many "
        f"tokens in the {free / 2**30:.1f} GiB that are free; nothing was written"
    )
    return table, lengths, estimate


def tokens(count):
    """A length as it is shown; `any` where no length that was tried is too long."""
    return "any" if count >= LONGEST else f"{count:,}"
