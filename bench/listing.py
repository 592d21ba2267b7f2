"""What `--list` and `--dry-run` print."""

from collections import defaultdict

from rich.table import Table

from bench.availability import fate
from bench.cost import FIXED_S, clock_of, held_bytes, rates_of, reference_seconds
from bench.doctor import implementation_table
from bench.plan import DTYPES, LAUNCHES, MODES, PROTOCOLS
from bench.progress import duration
from bench.references import gradient_keys
from models.build import build, parameter_counts
from models.presets import ARCHITECTURES, PRESETS


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
    for preset in PRESETS:
        for arch in ARCHITECTURES:
            counts = parameter_counts(build(arch, preset))
            presets.add_row(
                preset, arch, f"{counts.total:,}", f"{counts.embedding:,}", f"{counts.other:,}"
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


def dry_run(plan, finished=frozenset()):
    """The plan as a table, and a rough estimate of what is left of it in time and memory.

    Args:
        finished: {(cell, round)} that are not measured again.
    """
    device = plan.options["device"]
    clock, groups = clock_of(plan), defaultdict(list)
    for cell in plan.cells:
        groups[
            cell.arch, cell.impl, cell.mode, cell.dtype, cell.launch, *fate(cell, device)
        ].append(cell)
    table = Table(title=f"Plan: {len(plan.cells)} cells, {plan.rounds} rounds, {plan.preset}, on {device}",
                  title_justify="left")  # fmt: skip
    for column in (
        "arch",
        "impl",
        "mode",
        "dtype",
        "launch",
        "will be",
        "cells",
        "time",
        "memory",
        "because",
    ):
        right = column in ("cells", "time", "memory")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    total, most = FIXED_S * (plan.rounds + 1), 0
    if not finished:
        able = [cell for cell in plan.cells if fate(cell, device)[0] != "unavailable"]
        keys = gradient_keys(able, device)
        total += reference_seconds(keys, plan.architectures, rates_of(plan))
    for (arch, impl, mode, dtype, launch, kind, reason), cells in groups.items():
        time = memory = ""
        if kind == "measured":
            size = plan.architectures[arch]["sizes"]
            left = [c for c in cells for r in range(plan.rounds) if (c, r) not in finished]
            seconds = sum(map(clock.expect, left))
            held = max(held_bytes(cell, size) for cell in cells) + 4 * size["total"]
            total, most = total + seconds, max(most, held)
            time, memory = duration(seconds), f"{held / 2**20:,.0f} MiB"
        if kind == "interpreted":
            reason = "no GPU: outputs are proven through Triton's interpreter, nothing is timed"
        table.add_row(arch, impl, mode, dtype, launch, kind, str(len(cells)), time, memory, reason)
    lengths = f"seqlens {plain(plan.options['seqlens'])}; batch {plain(plan.options['batch'])}"
    estimate = (
        f"rough estimate: {duration(total)}, {most / 2**20:,.0f} MiB at most; nothing was written"
    )
    return table, lengths, estimate
