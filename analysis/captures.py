"""Profiles of a run as tables: where the time of a cell goes, by named range.

`profiles.capture` leaves one folder a capture in RUN/profiles, which holds manifest.json, timeline.csv (a row per
range, per repetition) and work.csv (what ran under each range). Ranges nest: cell > rep > layer/3 >
op/selective_scan. Layers are alike, so they are read as one.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.load import impl_order
from bench.plan import Cell
from bench.records import one_line

FOLDER = "profiles"
ABOVE = ("round", "cell")  # levels above a repetition
LAYERS = "layers"  # the name of all layers together
REST, OUTSIDE = "rest of the layer (projections, norms)", "outside of layers (embedding, head)"
OUTSIDE_TRAIN = "outside of layers (embedding, head, loss, backward of projections)"
TIMES = ["host_ms", "host_self_ms", "inclusive_ms", "innermost_ms", "busy_ms", "gap_ms"]
TIMELINE = ["path", "level", "name", "count", "launches", *TIMES, "clock", "launch_bound"]
OF_HOST = ["count", "host_ms", "host_self_ms"]
OF_DEVICE = ["count", "host_ms", "launches", "inclusive_ms", "innermost_ms", "busy_ms", "gap_ms"]
WORK = ["path", "kind", "name", "count", "ms"]
_TEXT = ("path", "level", "name", "clock", "launch_bound", "kind")


class BrokenCapture(Exception):
    """What is wrong with a capture, in one line."""


@dataclass(frozen=True)
class Capture:
    """One profile of one cell; `memory` is None where it was not asked for."""

    cell: Cell
    manifest: dict
    timeline: pd.DataFrame
    work: pd.DataFrame
    memory: pd.DataFrame | None

    @property
    def self_column(self):
        """The column of the time that a range has for itself: on the device, on the host where nothing ran there."""
        return "innermost_ms" if (self.timeline.clock == "device").any() else "host_self_ms"

    @property
    def clock(self):
        return "device" if self.self_column == "innermost_ms" else "host"


def read(run, warnings):
    """The captures of a run directory, by architecture and implementation; broken ones are named in `warnings`."""
    found = []
    for folder in sorted(p for p in (Path(run) / FOLDER).glob("[!.]*") if p.is_dir()):
        try:
            found.append(_read(folder))
        except BrokenCapture as error:
            warnings.append(f"The profile {folder.name} is skipped: {error}.")
    return sorted(
        found, key=lambda c: (c.cell.arch, impl_order(c.cell.impl), c.cell.seqlen, c.cell.id)
    )


def by_operator(capture):
    """One row per operator: part, ms (per repetition, all layers together) and share (a fraction of the repetition).

    Time of a range counts for the innermost operator that it lies in; what is in none belongs to the rest of its layer.
    """
    table = capture.timeline[~capture.timeline.level.isin(ABOVE)]
    part = [_part(path, capture.cell.mode) for path in table.path]
    ms = table[capture.self_column].groupby(part, sort=False).sum()
    ms = ms[ms > 0]
    rows = pd.DataFrame({"part": ms.index, "ms": ms.values, "share": ms.values / ms.sum()})
    last = lambda parts: parts.map({REST: 1, OUTSIDE: 2, OUTSIDE_TRAIN: 2}).fillna(0)
    return rows.sort_values("part", key=last, kind="stable", ignore_index=True)


def folded(capture):
    """The timeline with its layers as one: path (tuple of names) and the numbers of TIMELINE added up, in its order.

    Columns besides: share (its own time, as a fraction of a repetition), ranges (how many were added), launch_bound
    (how many of them are; nan where nothing ran on a device).
    """
    table = capture.timeline[capture.timeline.level != "round"].copy()
    table["path"] = [_fold(path) for path in table.path]
    table["ranges"] = 1
    own = table[capture.self_column].where(~table.level.isin(ABOVE))
    table["share"] = own / own.sum()
    table["launch_bound"] = table.launch_bound.str.lower().map({"true": 1.0, "false": 0.0})
    summed = ["count", "launches", *TIMES, "share", "ranges"]
    groups = table.groupby("path", sort=False)
    bound = groups.launch_bound.sum(min_count=1)
    return groups[summed].sum(min_count=1).assign(launch_bound=bound).reset_index()


def most_work(capture, most=5):
    """What took most time under each folded range: path, kind, name, count and ms, up to `most` rows each."""
    table = capture.work.assign(path=[_fold(path) for path in capture.work.path])
    keys = ["path", "kind", "name"]
    summed = table.groupby(keys, sort=False)[["count", "ms"]].sum().reset_index()
    order = {path: i for i, path in enumerate(folded(capture).path)}
    summed = summed.assign(at=summed.path.map(order).fillna(len(order)))
    ranked = summed.sort_values(["at", "ms"], ascending=[True, False], kind="stable")
    return ranked.groupby("path", sort=False).head(most).drop(columns="at")


def _read(folder):
    manifest = _manifest(folder / "manifest.json")
    if manifest.get("status") != "ok":
        reason = manifest.get("reason") or "it did not finish"
        raise BrokenCapture(f"its status is {manifest.get('status')}, because {reason}")
    timeline, work = _table(folder / "timeline.csv", TIMELINE), _table(folder / "work.csv", WORK)
    memory = folder / "memory_by_range.csv"
    memory = _table(memory, ["path"]) if memory.exists() else None
    found = Capture(Cell(**manifest["cell"]), manifest, timeline, work, memory)
    if not timeline[found.self_column].sum() > 0:
        raise BrokenCapture("timeline.csv holds no time")
    return found


def _manifest(path):
    """The object of manifest.json, whose `cell` is one."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        cell = Cell(**manifest["cell"])
        numbers, words = [cell.seqlen, cell.batch], [cell.arch, cell.impl, cell.preset, cell.mode]
        if not all(isinstance(n, int) for n in numbers) or not all(
            isinstance(w, str) for w in words
        ):
            raise ValueError(f"{cell} is no cell")
        for name, kind in (("wall_ms", (int, float)), ("notes", str)):
            if not all(isinstance(value, kind) for value in manifest.get(name) or []):
                raise ValueError(f"{name} is {manifest[name]}")
    except KeyError:
        raise BrokenCapture("manifest.json holds no cell") from None
    except (OSError, ValueError, TypeError) as error:
        raise BrokenCapture(f"manifest.json: {one_line(error)}") from None
    return manifest


def _table(path, columns):
    """A CSV with at least `columns`, all of them numbers but those of _TEXT."""
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values={}
        )
        if lacking := [name for name in columns if name not in table]:
            raise ValueError(f"no column {', '.join(lacking)}")
        for name in columns:
            if name not in _TEXT:
                table[name] = pd.to_numeric(table[name].replace("", math.nan))
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise BrokenCapture(f"{path.name}: {one_line(error)}") from None
    return table


def _fold(path):
    names = (re.sub(r"^cell/.*", "cell", name) for name in path.split(" > "))
    return tuple(LAYERS if re.fullmatch(r"layer/\d+", name) else name for name in names)


def _part(path, mode):
    names = _fold(path)
    if operators := [name for name in names if name.startswith("op/")]:
        return operators[0]  # Mamba-2's scan may be computed by Mamba's, inside of its own range
    return REST if LAYERS in names else OUTSIDE_TRAIN if mode == "train" else OUTSIDE
