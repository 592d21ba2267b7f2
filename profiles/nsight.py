"""Driving NVIDIA's profilers from outside: their command lines, and what becomes of the files that they leave.

Nsight Systems 2022.4 as Debian packages it does not find its own importer: it leaves X.qdstrm and says "The importer
binary and its dependencies were not found". `complete` imports such a file itself. Newer ones write X.nsys-rep.
"""

import os
import shutil
import subprocess
from pathlib import Path

from bench.profilers import GET_NCU, GET_NSYS

NAME = "capture"
FLAGS = ("--sample=none", "--cpuctxsw=none", "--force-overwrite=true")
# With a GPU nsys records between cudaProfilerStart and -Stop, and each kernel of a CUDA graph. Without one there is
# no such call, so it records the whole process, whose ranges are those of the steady state only.
ON_GPU = (
    "-t", "cuda,nvtx", "-c", "cudaProfilerApi", "--capture-range-end=stop", "--cuda-graph-trace=node",
)  # fmt: skip
ON_CPU = ("-t", "nvtx")
IMPORTER = Path("host-linux-x64") / "QdstrmImporter"


class CaptureError(RuntimeError):
    """A capture that failed; the message is one line."""


def nsys_command(folder, on_gpu, command):
    """`command` under Nsight Systems, which leaves its report in a folder."""
    where = ON_GPU if on_gpu else ON_CPU
    return [
        _program("nsys", GET_NSYS),
        "profile",
        *where,
        *FLAGS,
        "-o",
        str(folder / NAME),
        *command,
    ]


def ncu_command(folder, command):
    """`command` under Nsight Compute, which replays the kernels inside of `rep` ranges to read their counters."""
    return [
        _program("ncu", GET_NCU), "--profile-from-start", "off", "--nvtx", "--nvtx-include", "crossover@rep/",
        "--force-overwrite", "-o", str(folder / NAME), *command,
    ]  # fmt: skip


def complete(folder):
    """Import and export what nsys left in a folder; returns {kind: file name}, of the report and of the SQLite.

    Raises:
        CaptureError: nsys left nothing, or something unfinished.
    """
    stream, report = folder / f"{NAME}.qdstrm", folder / f"{NAME}.nsys-rep"
    if not report.exists():
        if not stream.exists():
            raise CaptureError("nsys left no report: it ended before the recording did")
        _run([str(importer()), "-i", str(stream), "-o", str(report)], report, "import")
        stream.unlink()
    sqlite = folder / f"{NAME}.sqlite"
    export = ["export", "-t", "sqlite", "--force-overwrite", "true", "-o", str(sqlite), str(report)]
    _run([_program("nsys", GET_NSYS), *export], sqlite, "export")
    return {"report": report.name, "trace": sqlite.name}


def importer():
    """The QdstrmImporter beside the nsys on the PATH; CaptureError if it has none."""
    nsys = Path(_program("nsys", GET_NSYS))
    for start in (nsys.resolve(), nsys):
        for above in start.parents:
            for found in (above / IMPORTER, above / "nsight-systems" / IMPORTER):
                if os.access(found, os.X_OK):
                    return found
    raise CaptureError(
        f"nsys left a .qdstrm file, and there is no {IMPORTER} beside {nsys} to import it: {GET_NSYS}"
    )


def _program(name, remedy):
    path = shutil.which(name)
    if path is None:
        raise CaptureError(f"{name} is not on the PATH: {remedy}")
    return path


def _run(command, result, verb):
    """Run one step; CaptureError with what it said last if it leaves no result."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise CaptureError(
            f"the recording is unfinished or broken, nsys cannot {verb} it: {said[0].strip()[:300]}"
        )
