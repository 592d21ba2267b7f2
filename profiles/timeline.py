"""Where the time goes: one table a cell, from a profile, by named range (cell > layer > operator).

    python -m profiles.timeline capture.sqlite            of Nsight Systems (nsys export -t sqlite)
    python -m profiles.timeline trace.json.gz             of torch.profiler
    python -m profiles.timeline runs/NAME/profiles/CELL.nsys     a folder of profiles.capture; writes its two CSV files
    python -m profiles.timeline diff A B                  two of these, or two timeline.csv

All numbers are for one repetition. Device work belongs to the range that launched it, whenever it ran: inclusive is the
sum of the durations with the ranges inside, innermost without them, busy the time in which at least one ran (so streams
that overlap count once), gap what is left between the first start and the last end. Host ms is the time between the
ends of the range, host self ms what no range inside it took. The share is of a repetition: of innermost device time,
or of host self ms where nothing ran on a device. Launch-bound: the host took longer (without the calls that wait for
the device) than the device was busy. Layers are added up unless --layers is given; under each range stands what ran
longest in it.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.cli import Parser
from profiles.attribution import attribute
from profiles.events import ProfileError, number_of
from profiles.nsight_file import DOMAIN
from profiles.profile_file import read_profile

SEPARATOR = " > "
RANGE_COLUMNS = (
    "path", "level", "name", "count", "host_ms", "host_self_ms", "launches", "inclusive_ms", "innermost_ms",
    "busy_ms", "span_ms", "gap_ms", "share", "clock", "launch_bound",
)  # fmt: skip
WORK_COLUMNS = ("path", "kind", "name", "count", "ms", "share")


@dataclass
class Timeline:
    """A profile by named range, for one repetition.

    Attributes:
        ranges: RANGE_COLUMNS, a row a path, depth-first; `share` is nan outside of the repetitions, and `launch_bound`
            (nullable boolean) missing without device work.
        work: WORK_COLUMNS, what ran in each range itself, the longest first; `share` is of the repetition's device
            time, for a cpu_op of its host time.
        notes: what was not attributed, how much, and why.
        reps: {cell path: repetitions}; 1 where the cell has no `rep` range.
        processes: how many processes have ranges.
        tool: what recorded the profile.
    """

    ranges: pd.DataFrame
    work: pd.DataFrame
    notes: list
    reps: dict
    processes: int
    tool: str


def read(path, domain=DOMAIN):
    """The Timeline of a profile: an .sqlite of Nsight Systems, a trace of torch.profiler, or a capture folder.

    Raises:
        ProfileError: it is none of them, is damaged or lacks something; the message says what to do.
    """
    profile = read_profile(path, domain)
    found = attribute(profile)
    paths, work, reps, notes = found.paths, found.work, {}, profile.notes + found.notes
    names = _full_names(paths)
    count = (paths.level == "rep") * paths["count"]
    repetitions = count.groupby(paths.root).sum().reindex(paths.root).to_numpy()
    for row in np.flatnonzero(paths.parent < 0):
        reps[names[row]] = int(repetitions[row]) or 1
    bare = [
        name for row, name in enumerate(names) if paths.parent[row] < 0 and not repetitions[row]
    ]
    if bare:
        notes.append(
            f"{number_of(len(bare), 'cell')} without rep ranges, given as sums: {', '.join(bare[:3])}"
        )
    repetitions = np.maximum(repetitions, 1)
    ranges = _range_table(paths, names, repetitions)
    rep = _rep_of(paths)
    whole = np.where(rep >= 0, 1e6 * repetitions, np.nan)
    totals = {
        "device": paths.inclusive.to_numpy()[rep] / whole,
        "host": paths.host.to_numpy()[rep] / whole,
    }
    work = _work_table(work, names, repetitions, totals)
    return Timeline(ranges, work, notes, reps, found.processes, profile.tool)


def _full_names(paths):
    names = []
    for parent, name in zip(paths.parent.tolist(), paths.name.tolist(), strict=True):
        names.append(f"{names[parent]}{SEPARATOR}{name}" if parent >= 0 else name)
    return names


def _rep_of(paths):
    """(n,) row of the repetition that a path lies in, its root where there are none, -1 outside of them."""
    levels, rep = paths.level.tolist(), []
    with_reps = set(paths.root[paths.level == "rep"])
    for row, (parent, root) in enumerate(
        zip(paths.parent.tolist(), paths.root.tolist(), strict=True)
    ):
        if root not in with_reps:
            rep.append(root)
        elif levels[row] == "rep":
            rep.append(row)
        else:
            rep.append(rep[parent] if parent >= 0 else -1)
    return np.array(rep)


def _range_table(paths, names, repetitions):
    table = pd.DataFrame(
        {
            "path": names,
            "level": paths.level,
            "name": paths.name,
            "count": paths["count"] / repetitions,
        }
    )
    for column in ("host", "host_self", "inclusive", "innermost", "busy", "span"):
        table[f"{column}_ms"] = paths[column] / 1e6 / repetitions
    table["gap_ms"] = table.span_ms - table.busy_ms
    table["launches"] = paths.launches / repetitions
    rep = _rep_of(paths)
    # launches in repetitions decide, not those of a warm-up in the same cell
    launched = paths.launches.where(rep == np.arange(len(paths)), 0).groupby(paths.root).sum()
    on_device = (launched.reindex(paths.root) > 0).to_numpy()
    table["clock"] = np.where(on_device, "device", "host")
    own = np.where(on_device, paths.innermost, paths.host_self)
    total = np.where(on_device, paths.inclusive.to_numpy()[rep], paths.host.to_numpy()[rep])
    table["share"] = np.where(rep >= 0, own / np.maximum(total, 1), np.nan)  # in whole ns
    bound = pd.Series(paths.host - paths.waits > paths.busy, dtype="boolean")
    table["launch_bound"] = bound.mask(paths.launches == 0)
    return table[list(RANGE_COLUMNS)]


def _work_table(work, names, repetitions, totals):
    row = work.path.to_numpy(dtype=int)
    ms = work.ns / 1e6 / repetitions[row]
    total = np.where(work.kind == "cpu_op", totals["host"][row], totals["device"][row])
    share = np.divide(ms, total, out=np.full(len(work), np.nan), where=total > 0)
    table = pd.DataFrame(
        {
            "path": np.array(names, dtype=object)[row],
            "kind": work.kind,
            "name": work.name,
            "count": work["count"] / repetitions[row],
            "ms": ms,
            "share": share,
        }
    )
    order = np.lexsort((-ms.to_numpy(), row))
    return table.iloc[order].reset_index(drop=True)[list(WORK_COLUMNS)]


def write(timeline, folder):
    """timeline.csv and work.csv in a folder, which is made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timeline.csv").write_text(to_csv(timeline.ranges), encoding="utf-8")
    (folder / "work.csv").write_text(to_csv(timeline.work), encoding="utf-8")


def to_csv(table):
    """A table as CSV: six digits, `true` and `false`, nothing for what is not known."""
    if "launch_bound" in table:
        table = table.assign(launch_bound=table.launch_bound.map({True: "true", False: "false"}))
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def read_csv(path):
    """The ranges of a timeline.csv, as `Timeline.ranges`.

    Raises:
        ProfileError: another file, or one that lacks columns.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} is no timeline.csv: {error}") from None
    lacking = [name for name in RANGE_COLUMNS if name not in table]
    if lacking:
        raise ProfileError(f"{path} is no timeline.csv: it has no column {', '.join(lacking)}")
    return table.astype({"launch_bound": "boolean"})


def make_parser():
    parser = Parser(
        prog="python -m profiles.timeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "profile",
        type=Path,
        metavar="FILE",
        help="FILE.sqlite, trace.json, trace.json.gz or a folder of profiles.capture",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where timeline.csv and work.csv go (default: into a given folder, else nowhere)",
    )
    add(
        "--cell",
        type=pattern,
        default="",
        metavar="REGEX",
        help="print only cells that match (default: all)",
    )
    add(
        "--depth",
        choices=("cell", "layer", "op"),
        default="op",
        help="how deep to print; cell: one table of all cells (default: op)",
    )
    add(
        "--layers",
        action="store_true",
        help="print each layer (default: one row for all, with their sums)",
    )
    add(
        "--top",
        type=count,
        default=3,
        metavar="N",
        help="kernels and operators under each range (default: 3)",
    )
    add(
        "--domain",
        default=DOMAIN,
        help=f"of NVTX ranges (default: {DOMAIN})",
    )
    add("--csv", action="store_true", help="print timeline.csv instead of tables")
    return parser


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def count(text):
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["diff"]:
        from profiles.timeline_diff import main as diff

        return diff(argv[1:])
    from profiles.timeline_tables import show

    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        timeline = read(args.profile, args.domain)
    except ProfileError as error:
        parser.error(str(error))
    chosen = [cell for cell in timeline.reps if re.search(args.cell, cell)]
    if not chosen:
        parser.error(
            f"--cell {args.cell.pattern}: none of {number_of(len(timeline.reps), 'cell')} matches"
        )
    out = args.out or (args.profile if args.profile.is_dir() else None)
    if out:
        try:
            write(timeline, out)
        except OSError as error:
            parser.error(f"{out}: its tables cannot be written: {error.strerror}")
    if args.csv:
        roots = timeline.ranges.path.str.split(SEPARATOR, n=1, regex=False).str[0]
        print(to_csv(timeline.ranges[roots.isin(chosen)]), end="")
    else:
        show(timeline, chosen, args.depth, args.layers, args.top)
    if out:
        print(f"written: {out / 'timeline.csv'}, {out / 'work.csv'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
