"""What slices of a model say about the whole: layers cost the same, so two depths give the cost of a layer.

In each round, with t1 and t2 at K1 and K2 layers,

    per layer    (t2 - t1) / (K2 - K1)
    extrapolated t1 + (layers - K1) * per layer

and the same with the peak bytes beyond the weights; weights are counted. Both slices come from the same round, so that
what a round has in common is in their difference; the interval is the 95 % t interval over rounds. Where the run
measured the whole model too (`--slice K1,K2,whole`), its time and the error of the extrapolation stand beside it.

Extrapolated numbers are never measurements: they are in tables of their own, named so.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.load import frame
from bench.cli import Parser
from bench.plan import PlanError, read_plan
from bench.records import NAME, RecordError, read_records
from bench.slices import layers_of, whole_of
from bench.verdict import t_interval

GROUP = ["arch", "impl", "mode", "dtype", "launch", "batch", "seqlen"]
COLUMNS = [
    *GROUP, "model", "layers", "slices", "rounds", "per_layer_ms", "extrapolated_ms", "low_ms", "high_ms",
    "extrapolated_bytes", "measured_ms", "error", "reason",
]  # fmt: skip
TITLE = "Extrapolated to the whole depth from slices (not measured)"


def extrapolate(plan, records):
    """One row per cell of the whole model that has slices.

    Columns: GROUP; model, layers, slices ("2, 4"), rounds (with both slices); per_layer_ms and extrapolated_ms (means
    over rounds), low_ms and high_ms; extrapolated_bytes (peak beyond the weights; nan where none was measured);
    measured_ms of the whole model (median over rounds) and error (extrapolated / measured - 1), nan where it was not
    measured; reason, where there is nothing to extrapolate.
    """
    if records.empty:
        return pd.DataFrame(columns=COLUMNS)
    records = records.assign(
        depth=records.preset.map(layers_of), model=records.preset.map(whole_of)
    )
    rows = []
    for key, group in records.groupby([*GROUP, "model"], sort=False):
        depths = sorted(int(depth) for depth in group.depth.dropna().unique())
        if len(depths) == 2:
            layers = plan.architectures[key[0]]["sizes"]["layers"]
            found = dict(zip([*GROUP, "model"], key, strict=True)) | {"layers": layers}
            rows.append(found | _row(group, depths, layers))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(group, depths, layers):
    ok = group[group.status == "ok"]
    low, high = (ok[ok.depth == depth].set_index("round") for depth in depths)
    whole = ok[ok.depth.isna()]
    row = {"slices": ", ".join(map(str, depths)), "reason": ""}
    per_layer = ((high.time - low.time) / (depths[1] - depths[0])).dropna()
    row["rounds"] = len(per_layer)
    if per_layer.empty:
        missing = group[group.depth.notna() & (group.status != "ok")]
        return row | {"reason": "; ".join(missing.reason.unique()) or "no round has both slices"}
    times = low.time.loc[per_layer.index] + (layers - depths[0]) * per_layer
    _, below, above = t_interval(times)
    memory = low.memory + (layers - depths[0]) * (high.memory - low.memory) / (
        depths[1] - depths[0]
    )
    measured = whole.time.median() if len(whole) else np.nan
    return row | {
        "per_layer_ms": per_layer.mean(),
        "extrapolated_ms": times.mean(),
        "low_ms": below,
        "high_ms": above,
        "extrapolated_bytes": memory.median(),
        "measured_ms": measured,
        "error": times.mean() / measured - 1,
    }


def write(run):
    """Write tables/sliced.csv of a run of slices; returns what there is to print, nothing for other runs."""
    run = Path(run)
    plan = read_plan(run / "plan.json")
    if not plan.options.get("slice"):
        return []
    rows = extrapolate(plan, frame(_Run(read_records(run / NAME))))
    (run / "tables").mkdir(exist_ok=True)
    rows.to_csv(run / "tables" / "sliced.csv", index=False)
    return [table(rows)]


class _Run:
    """What `analysis.load.frame` reads of a run."""

    def __init__(self, records):
        self.records = records


def table(rows):
    """The rows of `extrapolate` as a table for people."""
    shown = Table(title=TITLE, title_justify="left")
    left = ("arch", "impl", "model", "mode", "slices", "because")
    names = ("arch", "impl", "model", "mode", "seqlen", "layers", "slices", "ms per layer", "ms extrapolated",
             "95 % interval", "MiB beyond weights", "ms measured", "error", "because")  # fmt: skip
    for name in names:
        shown.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows.to_dict("records"):
        interval = _text(row["low_ms"], ".4g"), _text(row["high_ms"], ".4g")
        shown.add_row(
            row["arch"], row["impl"], row["model"], row["mode"], f"{row['seqlen']:,}", str(row["layers"]),
            row["slices"],
            _text(row["per_layer_ms"], ".4g"), _text(row["extrapolated_ms"], ".4g"),
            "-".join(interval) if all(interval) else "", _text(row["extrapolated_bytes"] / 2**20, ",.1f"),
            _text(row["measured_ms"], ".4g"), _text(row["error"], "+.1%"), row["reason"],
        )  # fmt: skip
    return shown


def _text(value, form):
    return format(value, form) if np.isfinite(value) else ""


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = Parser(
        prog="python -m analysis.sliced",
        description="Extend what slices of a model took to its whole depth (see bench.sweep --slice).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    args = parser.parse_args(argv)
    try:
        found = write(args.run)
    except (PlanError, RecordError, OSError) as error:
        parser.error(str(error))
    if not found:
        parser.error(
            f"{args.run} holds no slices; measure some with python -m bench.sweep --slice 2"
        )
    Console(width=None if sys.stdout.isatty() else 180).print(*found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
