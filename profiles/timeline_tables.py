"""The printed tables of a timeline: what is shown of the paths, how they fold together, and columns that fit."""

import math
import re

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from analysis.render import console
from analysis.wording import number
from profiles.events import LEVELS, number_of

SUMMED = ("count", "host_ms", "launches", "inclusive_ms", "busy_ms", "span_ms", "gap_ms")
OWN = ("host_self_ms", "innermost_ms", "share")  # these add up over the paths of a repetition
SHOWN_LEVELS = {"cell": ("cell", "rep"), "layer": ("cell", "rep", "layer"), "op": LEVELS}
HEADINGS = {
    "count": "count", "host_ms": "host ms", "host_self_ms": "host self", "launches": "launches",
    "inclusive_ms": "inclusive", "innermost_ms": "innermost", "busy_ms": "busy", "gap_ms": "gap", "share": "share",
    "bound": "launch-bound",
}  # fmt: skip
MS = ("host_ms", "host_self_ms", "inclusive_ms", "innermost_ms", "busy_ms", "gap_ms")
ON_DEVICE = ("launches", "inclusive_ms", "innermost_ms", "busy_ms", "gap_ms", "bound")
DROPPED_FIRST = ("host_self_ms", "gap_ms", "inclusive_ms", "count", "launches", "bound", "busy_ms")
NARROWEST_NAME = 30


def all_layers(path):
    """A path with its layers folded together: `… > layer/* > op/…`."""
    return re.sub(r"(^| > )layer/\d+(?= > |$)", r"\1layer/*", path)


def fold(ranges, layers=False, depth="op"):
    """Rows to show: layers added up unless `layers`, rows deeper than `depth` added to what holds them.

    Args:
        ranges: as `Timeline.ranges`, of one cell or more.

    Returns:
        the same columns but `launch_bound`, which becomes `bound`: `yes`, `no`, `3 of 24`, or nothing; and a Series
        {path in `ranges`: path in the result}.
    """
    key = ranges.path if layers else ranges.path.map(all_layers)
    visible = ranges.level.isin(SHOWN_LEVELS[depth]) | ~ranges.path.str.contains(" > ", regex=False)
    shown = set(key[visible])
    holder = key.map({path: _nearest(path, shown) for path in key.unique()})
    own = ranges.groupby(holder, sort=False)[list(OWN)].sum(min_count=1)
    some = ranges[visible]
    grouped = some.groupby(key[visible], sort=False)
    result = grouped[["level", "clock"]].first().join(grouped[list(SUMMED)].sum()).join(own)
    result["bound"] = grouped.launch_bound.agg(_some_bound)
    result["name"] = [path.split(" > ")[-1] for path in result.index]
    result = result.rename_axis("path").reset_index()
    return result, pd.Series(holder.to_numpy(), index=ranges.path)


def _nearest(path, shown):
    while path not in shown:
        path = path.rpartition(" > ")[0]
    return path


def _some_bound(values):
    known = values.dropna()
    if not len(known):
        return ""
    if known.all() or not known.any():
        return "yes" if known.all() else "no"
    return f"{int(known.sum())} of {len(known)}"


def show(timeline, cells, depth="op", layers=False, top=3, out=None):
    """Print a table for each of the cells, or one of all of them if `depth` is cell, then the notes."""
    out = out or console()
    if depth == "cell":
        out.print(Text(f"one repetition of each cell · ms · {timeline.tool}"), soft_wrap=True)
        out.print(render(_one_table(timeline, cells, top), out.width))
    for cell in cells if depth != "cell" else ():
        rows, bare = rows_of(timeline, cell, depth, layers, top)
        out.print(*_heading(timeline, cell, rows), sep="\n", soft_wrap=True)
        out.print(render(rows, out.width))
        if bare:
            ranges = number_of(bare, "range")
            out.print(
                f"{ranges} of the cell outside of its repetitions (warm-up): see timeline.csv\n"
            )
    if timeline.notes:
        out.print("\n".join(f"Note: {note}" for note in timeline.notes), markup=False)


def _heading(timeline, cell, rows):
    reps, clock = timeline.reps[cell], rows[0].clock
    device = "device time" if clock == "device" else "host time (nothing ran on a device)"
    yield Text(cell, style="bold")
    processes = number_of(timeline.processes, "process")
    yield Text(
        f"one repetition of {reps:,} · ms · shares of {device} · {timeline.tool}, {processes}"
    )


def _one_table(timeline, cells, top):
    rows = []
    for cell in cells:
        (first, *under), _ = rows_of(timeline, cell, "cell", False, top)
        first["label"] = cell.removeprefix("cell/")
        rows += [first, *under]
    return rows


def rows_of(timeline, cell, depth, layers, top):
    """The rows of a cell's table, Series with `label` and `kind` (range or work), and how many ranges are not shown."""
    ranges = timeline.ranges
    ranges = ranges[(ranges.path == cell) | ranges.path.str.startswith(f"{cell} > ")]
    bare = ranges.share.isna()
    folded, holder = fold(ranges[~bare], layers, depth)
    work = timeline.work[timeline.work.path.isin(holder.index)]
    kinds = work.kind == "cpu_op" if folded.clock.iloc[0] == "host" else work.kind != "cpu_op"
    work = work[kinds].assign(path=work.path.map(holder))
    work = work.groupby(["path", "kind", "name"], sort=False, as_index=False)[
        ["count", "ms", "share"]
    ].sum()
    under = dict(tuple(work.groupby("path", sort=False)))
    rows = []
    for row in folded.itertuples(index=False):
        indent = "  " * (row.path.count(" > ") - folded.path.iloc[0].count(" > "))
        rows.append(pd.Series(row._asdict() | {"label": indent + row.name, "kind": "range"}))
        if row.path in under:
            rows += _work_rows(under[row.path], row, indent, top)
    return rows, round(ranges["count"][bare & (ranges.path != cell)].sum() * timeline.reps[cell])


def _work_rows(work, row, indent, top):
    own = "host_self_ms" if row.clock == "host" else "innermost_ms"
    if row.clock == "host":
        # what torch's profiler sees no operator in: Python, and kernels that are no operators of torch
        ms = row.host_self_ms - work.ms.sum()
        share = row.share * ms / row.host_self_ms if row.host_self_ms else 0.0
        rest = {"name": "(in no operator of torch)", "count": np.nan, "ms": ms, "share": share}
        work = pd.concat([work, pd.DataFrame([rest])], ignore_index=True)
    for one in work.nlargest(top, "ms").itertuples(index=False):
        values = {
            "label": f"{indent}  · {plain(one.name)}",
            "kind": "work",
            own: one.ms,
            "share": one.share,
        }
        yield pd.Series(values | {"count": one.count})


def plain(name):
    """A kernel's name without return type, namespaces and parameters."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\b(\w+::)+", "", name)
    return re.sub(r"(?<=[>\w])\([^()]*\)( const)?$", "", name)


def render(rows, width):
    """A rich table of rows that fits into so many columns: numbers are dropped, names cut, in this order."""
    on_device = any(row.clock == "device" for row in rows if row.kind == "range")
    columns = [name for name in HEADINGS if name not in ON_DEVICE or on_device]
    digits = decimals(max(row.get(name, 0) for name in MS for row in rows if row.kind == "range"))
    texts = {name: [_text(row, name, digits) for row in rows] for name in columns}
    heads = {name: HEADINGS[name].replace("-", " ").split() for name in columns}
    widths = {name: max(map(len, texts[name] + heads[name])) for name in columns}
    longest = max(len(row.label) for row in rows)
    room = lambda: width - 4 - sum(widths[name] + 2 for name in columns)  # 4: edges of the table
    for name in DROPPED_FIRST:
        if room() >= min(NARROWEST_NAME, longest):
            break
        columns = [other for other in columns if other != name]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("range", no_wrap=True)
    for name in columns:
        table.add_column("\n".join(heads[name]), justify="right", no_wrap=True, vertical="bottom")
    for i, row in enumerate(rows):
        label = row.label if len(row.label) <= room() else row.label[: max(room() - 1, 1)] + "…"
        style = "dim" if row.kind == "work" else "bold" if row.level in ("cell", "rep") else ""
        table.add_row(Text(label), *(texts[name][i] for name in columns), style=style)
    return table


def decimals(largest):
    """How many decimals show four digits of the largest number of a table, two at least: so that points align."""
    return min(max(3 - math.floor(math.log10(largest)), 2), 7) if largest > 0 else 2


def _text(row, name, digits):
    value = row.get(name)
    if name == "bound":
        return value or ""
    if value is None or np.isnan(value):
        return ""
    if name == "share":
        return f"{100 * value:.1f}%"
    if name in MS:
        return f"{value:,.{digits}f}" if value else "0"
    return f"{value:,.0f}" if value == round(value) else number(value)
