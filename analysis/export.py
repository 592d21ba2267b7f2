"""Write what a run measured as one tidy table, for pandas, polars, R or a spreadsheet."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from analysis import load, metric_load
from bench.blocks import apart
from bench.cli import Parser
from bench.records import RecordError, one_line, read_run

WHAT = ("samples", "cells", "metrics")
FORMATS = ("parquet", "csv")
MEMORY = {name: f"{name}_bytes" for name in load.MEMORY}
NO_PYARROW = (
    "--format parquet needs pyarrow: pip install 'crossover-lab[parquet]', or take --format csv"
)


class ExportError(ValueError):
    """A table that cannot be written; the message is one line."""


def samples_frame(run):
    """One row per timing sample of every record.

    A record without samples (out of memory, timed out, failed, unavailable, interpreted) has one row with `sample`
    empty, so that nothing that was tried is lost.

    Columns: those of the cell; round, order, status, reason; sample (its index), wall_ms, device_ms (empty where the
    device has no clock of its own); the memory numbers in bytes (peaks of the record, weights included), energy_j;
    kernels, parity (largest error as a fraction of its bound), parity_passed; padded, warmups, stopped_by, started;
    run, machine, revision, dirty.
    """
    git = run.machine.get("git") or {}
    machine = (run.machine.get("gpu") or {}).get("name") or run.machine.get("cpu")
    place = {
        "run": run.path.resolve().name, "machine": machine, "revision": git.get("revision"), "dirty": git.get("dirty"),
    }  # fmt: skip
    rows = [row | place for record in run.records for row in _rows(record)]
    table = pd.DataFrame(rows, columns=[*_rows(_EMPTY)[0], *place])
    types = {"sample": "Int64", "order": "Int64", **dict.fromkeys(MEMORY.values(), "Int64")}
    types |= {"device_ms": float, "energy_j": float, "parity_passed": "boolean", "dirty": "boolean"}
    return table.astype(types)


def export(run_dir, what, format, out=None):
    """Write one table of a run.

    Args:
        run_dir: a run directory.
        what: "samples" (one row a timing sample), "cells" (one row a cell, with intervals) or "metrics" (one row a
            value of metrics.jsonl).
        format: "parquet" or "csv".
        out: the file; without it RUN/export/WHAT.FORMAT.

    Returns:
        (path, number of rows).

    Raises:
        RecordError: the directory is no run, or a line of it is broken.
        ExportError: there are no metrics, parquet lacks its package, or the file cannot be written.
    """
    if what not in WHAT or format not in FORMATS:
        takes = f"what must be one of {', '.join(WHAT)}, and format of {', '.join(FORMATS)}"
        raise ValueError(f"{takes}, got {what!r} and {format!r}")
    run_dir = Path(run_dir)
    try:
        table = _frame(run_dir, what)
    except (RecordError, ExportError):
        raise
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise RecordError(f"{run_dir}: broken values in its {what}: {one_line(error)}") from None
    out = Path(out) if out is not None else run_dir / "export" / f"{what}.{format}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "parquet":
            table.to_parquet(out, engine="pyarrow", index=False)
        else:
            table.to_csv(out, index=False)
    except ImportError:
        raise ExportError(NO_PYARROW) from None
    except OSError as error:
        raise ExportError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    return out, len(table)


def _frame(run_dir, what):
    run = apart(read_run(run_dir))
    if what == "samples":
        return samples_frame(run)
    if what == "cells":
        return load.cells(load.frame(run))
    records = metric_load.read(run_dir / metric_load.NAME)
    if not records:
        raise ExportError(
            f"{run_dir} has no {metric_load.NAME}: python -m analysis.metrics {run_dir} computes it"
        )
    return metric_load.values_frame(records)


def _rows(record):
    """The rows of one record, of which only sample, wall_ms and device_ms differ."""
    memory, parity = record.get("memory_bytes") or {}, record.get("parity") or {}
    times = record.get("time_ms") or {}
    wall, device = times.get("wall") or [], times.get("device") or []
    before = {
        **{name: record["cell"][name] for name in load.CELL},
        **{name: record.get(name) for name in ("round", "order", "status")},
        "reason": record.get("reason") or "",
    }
    after = {
        **{column: memory.get(name) for name, column in MEMORY.items()},
        "energy_j": record.get("energy_j"),
        "kernels": "; ".join(f"{o}={k}" for o, k in sorted((record.get("kernels") or {}).items())),
        "parity": load.worst_parity(parity),
        "parity_passed": parity.get("passed"),
        **{name: record.get(name) for name in ("padded", "warmups", "stopped_by", "started")},
    }
    count = max(len(wall), len(device))
    at = lambda values, i: values[i] if i < len(values) else None
    samples = [(i, at(wall, i), at(device, i)) for i in range(count)] or [(None, None, None)]
    names = ("sample", "wall_ms", "device_ms")
    return [before | dict(zip(names, sample, strict=True)) | after for sample in samples]


_EMPTY = {"cell": dict.fromkeys(load.CELL)}


def main(argv=None):
    parser = Parser(
        prog="python -m analysis.export",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory, as bench.sweep writes it")
    add("--format", choices=FORMATS, default="parquet",
        help="parquet keeps types and is small, csv opens anywhere")  # fmt: skip
    add("--what", choices=WHAT, default="samples",
        help="samples: one row a timing sample; cells: one row a cell, with intervals; metrics: one row a value of the "
        "representation metrics")  # fmt: skip
    add("--out", type=Path, default=argparse.SUPPRESS, metavar="FILE",
        help="the file to write (without it: RUN/export/WHAT.FORMAT)")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        path, rows = export(args.run, args.what, args.format, vars(args).get("out"))
    except (RecordError, ExportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {rows:,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
