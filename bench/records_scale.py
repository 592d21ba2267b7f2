"""How the files of a run behave when they grow: appending, and what `--resume` reads, in time and memory.

    python -m bench.records_scale [--records 10000,100000,1000000] [--folder DIR]

Writes synthetic records with the real Appender, reads them as a resumed sweep does, and removes them again. Syncing to
the disk is measured apart, on the last records: it is the disk's speed and not ours.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import psutil
from rich.console import Console
from rich.table import Table

from bench.blocks import whereabouts
from bench.cli import Parser, positives
from bench.memory import peak_rss, reset_peak_rss
from bench.plan import Cell, Plan, read_plan
from bench.records import NAME, Appender, done, make_record, scan, stream_records, untimed

ROUNDS = 5
LENGTHS = 100
SAMPLES = 30
SYNCED = 200  # records that are synced one by one
LIMIT_BYTES = 1 << 30  # of the parent's memory


def write(path, count):
    """Write a plan and `count` records of it; seconds of an append without and with its sync to the disk."""
    cells = [
        Cell("mamba", "hf", "tiny", seqlen=n % LENGTHS + 1, batch=n // LENGTHS + 1)
        for n in range(math.ceil(count / ROUNDS))
    ]
    Plan(cells, ROUNDS, 0, "lab", "tiny").write(path / "plan.json")
    place = {"node": "node", "gpu": None, "uuid": None, "cpu": "a processor"}
    samples = {"wall": [1.0 + math.pi / (n + 1) for n in range(SAMPLES)], "device": []}
    records = (
        make_record(cells[n // ROUNDS], n % ROUNDS, 0, "ok", time_ms=samples, device=place)
        for n in range(count)
    )
    appender = Appender(path / NAME)
    bulk = max(1, count - SYNCED)
    begun = time.perf_counter()
    with patch.object(os, "fsync", lambda file: None):
        for _ in range(bulk):
            appender.append(next(records))
    unsynced = (time.perf_counter() - begun) / bulk
    begun = time.perf_counter()
    for record in records:
        appender.append(record)
    synced = (time.perf_counter() - begun) / max(1, count - bulk)
    appender.close()
    return unsynced, synced


def resume(path):
    """(seconds, bytes of this process before, at most): what a sweep reads and holds when it resumes a run."""
    before = psutil.Process().memory_info().rss
    reset_peak_rss()
    begun = time.perf_counter()
    plan = read_plan(path / "plan.json")
    last = scan(path / NAME)
    where, behind = whereabouts(stream_records(path / NAME))
    finished, fixed = done(last) - behind, untimed(last)
    left = [c for c in plan.cells if c not in fixed and (c, 0) not in finished]
    seconds = time.perf_counter() - begun
    if left or len(where) != len(finished):
        raise RuntimeError(f"{len(left)} cells are left of a complete run")
    return seconds, before, peak_rss()


def measure(folder, count):
    """A row of the table; the reading is done by a process of its own, as its peak of memory is asked for."""
    with tempfile.TemporaryDirectory(dir=folder) as path:
        unsynced, synced = write(Path(path), count)
        size = (Path(path) / NAME).stat().st_size
        command = [sys.executable, "-m", "bench.records_scale", "--read", path]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, before, most = json.loads(done.stdout)
    return {"records": count, "bytes": size, "append_s": unsynced, "synced_s": synced,
            "resume_s": seconds, "before_bytes": before, "peak_bytes": most}  # fmt: skip


def table(rows):
    """The rows for a terminal; linear means that the seconds of a record do not grow."""
    found = Table(title="Records of a run, as they grow", title_justify="left")
    for name in ("records", "file, MiB", "append, µs", "with sync, µs", "resume, s", "µs a record",
                 "memory, MiB", "before, MiB"):  # fmt: skip
        found.add_column(name, justify="right")
    for row in rows:
        mib = {
            name: f"{row[name] / 2**20:,.0f}" for name in ("bytes", "peak_bytes", "before_bytes")
        }
        found.add_row(
            f"{row['records']:,}", mib["bytes"], f"{row['append_s'] * 1e6:,.0f}",
            f"{row['synced_s'] * 1e6:,.0f}", f"{row['resume_s']:,.2f}",
            f"{row['resume_s'] / row['records'] * 1e6:,.1f}", mib["peak_bytes"], mib["before_bytes"],
        )  # fmt: skip
    return found


def main(argv=None):
    """Run the command line; the exit status is 1 if a resumed parent takes more than 1 GiB."""
    parser = Parser(
        prog="python -m bench.records_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=positives, default=[10_000, 100_000, 1_000_000], metavar="LIST",
                        help="how many (default: 10000,100000,1000000)")  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where (default: the system's temporary folder)"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.read is not None:
        print(json.dumps(resume(args.read)))
        return 0
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"--folder {args.folder}: is no folder")
    rows = []
    for count in args.records:
        print(f"{count:,} records", file=sys.stderr)
        rows.append(measure(args.folder, count))
    Console().print(table(rows))
    over = [row for row in rows if row["peak_bytes"] > LIMIT_BYTES]
    for row in over:
        print(f"{row['records']:,} records take more than 1 GiB", file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
