"""Two profiles side by side: what takes longer, by named range.

    python -m profiles.timeline diff A B

A and B are profiles, capture folders or timeline.csv files. Everything is for one repetition. Compared is the time of a
range itself (innermost device time, or host self time where nothing ran on a device), so that the differences add up to
that of the repetition. Cells of the same names are compared with one another; two different cells by the paths below
them, such as the torch and the triton implementation of one architecture.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from analysis.render import console
from analysis.wording import number
from bench.cli import Parser
from profiles import timeline as timelines
from profiles.events import ProfileError, number_of
from profiles.nsight_file import DOMAIN
from profiles.timeline_tables import decimals, fold

SEPARATOR = timelines.SEPARATOR


def ranges_of(path, domain=DOMAIN):
    """`Timeline.ranges` of a profile, a capture folder (its timeline.csv if it has one) or a timeline.csv."""
    path = Path(path)
    if path.is_dir() and (path / "timeline.csv").is_file():
        path = path / "timeline.csv"
    if path.suffix == ".csv":
        return timelines.read_csv(path)
    return timelines.read(path, domain).ranges


def compare(a, b, layers=False):
    """Time of each path in two profiles, ms per repetition.

    Args:
        a, b: as `Timeline.ranges`: the same cells, or one cell each.
        layers: each layer apart; otherwise they are added up.

    Returns:
        columns path (below the cell where each side has one), a_ms, b_ms (the range itself; nan where it is lacking),
        difference (b - a, a lacking one counts 0), ratio (b / a), a_count, b_count, the largest difference first.

    Raises:
        ProfileError: different cells, and more than one on a side.
    """
    cells = [set(_cell(side)) for side in (a, b)]
    several = max(map(len, cells)) > 1
    if several and cells[0] != cells[1]:
        raise ProfileError(
            f"A has {number_of(len(cells[0]), 'cell')}, B has {number_of(len(cells[1]), 'cell')}, not the same ones: "
            "choose one of each with --cell and --cell-b"
        )
    a, b = (_own(side, several, layers) for side in (a, b))
    table = a.add_suffix("_a").join(b.add_suffix("_b"), how="outer")
    table = pd.DataFrame(
        {
            "a_ms": table.ms_a,
            "b_ms": table.ms_b,
            "difference": table.ms_b.fillna(0) - table.ms_a.fillna(0),
            "ratio": (table.ms_b / table.ms_a).where(table.ms_a > 0),
            "a_count": table.count_a,
            "b_count": table.count_b,
        }
    )
    order = table.assign(size=-table.difference.abs()).sort_values("size", kind="stable").index
    return table.loc[order].rename_axis("path").reset_index()


def _cell(ranges):
    return ranges.path.str.split(SEPARATOR, n=1, regex=False).str[0]


def _own(ranges, with_cell, layers):
    """`ms` and `count` by path, of what lies in repetitions."""
    folded, _ = fold(ranges[ranges.share.notna()], layers)
    ms = folded.innermost_ms.where(folded.clock == "device", folded.host_self_ms)
    path = folded.path if with_cell else folded.path.str.partition(SEPARATOR)[2].replace("", "cell")
    return pd.DataFrame({"ms": ms.to_numpy(), "count": folded["count"].to_numpy()}, index=path)


def render(table, width, top):
    """A rich table of a comparison; paths are cut at the left where they do not fit."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("range itself", no_wrap=True)
    for name in ("A ms", "B ms", "B - A", "B / A"):
        shown.add_column(name, justify="right", no_wrap=True)
    room = max(width - 48, 20)
    digits = decimals(np.nanmax(table[["a_ms", "b_ms"]].to_numpy()))
    ms = lambda value: "-" if np.isnan(value) else f"{value:,.{digits}f}" if value else "0"
    for row in table.head(top).itertuples(index=False):
        path = row.path if len(row.path) <= room else "…" + row.path[1 - room :]
        ratio = number(row.ratio)
        if np.isnan(row.a_ms) or np.isnan(row.b_ms):
            ratio = "only in B" if np.isnan(row.a_ms) else "only in A"
        difference = f"{row.difference:+,.{digits}f}" if row.difference else "0"
        shown.add_row(Text(path), ms(row.a_ms), ms(row.b_ms), difference, ratio)
    return shown


def main(argv):
    parser = Parser(
        prog="python -m profiles.timeline diff",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("a", metavar="A", help="a profile, a capture folder or a timeline.csv")
    add("b", metavar="B", help="another one")
    add(
        "--cell",
        type=timelines.pattern,
        default="",
        metavar="REGEX",
        help="cells of A, and of B unless --cell-b (default: all)",
    )
    add("--cell-b", type=timelines.pattern, metavar="REGEX", help="cells of B (default: as --cell)")
    add("--layers", action="store_true", help="each layer apart (default: added up)")
    add("--top", type=timelines.count, default=30, metavar="N", help="rows (default: 30)")
    add(
        "--domain",
        default=DOMAIN,
        help=f"of NVTX ranges (default: {DOMAIN})",
    )
    add("--csv", action="store_true", help="print the whole comparison as CSV")
    args = parser.parse_args(argv)
    try:
        sides = [ranges_of(path, args.domain) for path in (args.a, args.b)]
        for i, chosen in enumerate((args.cell, args.cell_b or args.cell)):
            sides[i] = sides[i][_cell(sides[i]).str.contains(chosen)]
            if not len(sides[i]):
                raise ProfileError(
                    f"--cell {chosen.pattern}: no cell of {(args.a, args.b)[i]} matches"
                )
        table = compare(*sides, layers=args.layers)
    except ProfileError as error:
        parser.error(str(error))
    if args.csv:
        print(timelines.to_csv(table), end="")
    else:
        _print(args, sides, table)
    return 0


def _print(args, sides, table):
    out = console()
    for name, path, ranges in zip("AB", (args.a, args.b), sides, strict=True):
        clock = " and ".join(f"{clock} time" for clock in ranges.clock.unique())
        out.print(
            f"{name}: {path}, {', '.join(_cell(ranges).unique()[:2])}, {clock}",
            markup=False,
            soft_wrap=True,
        )
    if set(sides[0].clock) != set(sides[1].clock):
        out.print("Note: one profile counts time on the device, the other on the host")
    out.print(render(table, out.width, args.top))
    for what, lacking in (("only in B", table.a_ms.isna()), ("only in A", table.b_ms.isna())):
        if lacking.any():
            out.print(f"{what}: {', '.join(table.path[lacking])}", markup=False, soft_wrap=True)
    a, b = table.a_ms.sum(), table.b_ms.sum()
    out.print(
        f"all ranges: {number(a)} ms in A, {number(b)} ms in B, {number(b / a if a else np.nan)} times as long"
    )
    if len(table) > args.top:
        out.print(
            f"{number_of(len(table) - args.top, 'row')} more with --top or --csv", style="dim"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
