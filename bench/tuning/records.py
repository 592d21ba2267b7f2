"""What `bench.tune` measured: tune.jsonl, a line a case, and the table of configurations that follows from it.

A line counts as long as the code that it was measured with is the code of this checkout: of the kernel's folder, of
those that it imports, and of the files beside them.
"""

import functools
import hashlib
import json
import os
import re
from pathlib import Path

from kernels import tuning

NAME = "tune.jsonl"
KERNELS_FOLDER = Path(tuning.__file__).parent


def read(folder):
    """(records, candidates that ended a process) of a folder: the last record of each case; a torn last line aside."""
    file = Path(folder) / NAME
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    found = [json.loads(line) for line in lines]
    last = {(*key_of(record), record["gpu"]): record for record in found if "rows" in record}
    return list(last.values()), [line["ended"] for line in found if "ended" in line]


def key_of(record):
    """(kernel, problem, dtype)."""
    return record["kernel"], record["problem"], record["dtype"]


def of_this_code(records):
    """Those that count: measured with the code of this checkout."""
    return [record for record in records if record["code"] == code(record["kernel"])]


@functools.cache
def code(kernel):
    """SHA-256 of the files that decide what a kernel computes and how it is launched."""
    folders, found = [tuning.KERNELS[kernel][2].split(".")[1]], []
    for folder in folders:  # grows
        found += sorted((KERNELS_FOLDER / folder).glob("*.py"))
        texts = "".join(file.read_text(encoding="utf-8") for file in found)
        named = re.findall(r"^\s*(?:from|import) kernels\.(\w+)", texts, re.MULTILINE)
        folders += sorted({name for name in named if (KERNELS_FOLDER / name).is_dir()} - {*folders})
    digest = hashlib.sha256()
    for file in sorted({*found, *KERNELS_FOLDER.glob("*.py")}):
        digest.update(str(file.relative_to(KERNELS_FOLDER)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def entry(record):
    """The entry of a record in the table of its GPU: an empty configuration where the default is best."""
    best = record["best"]
    return {
        "kernel": record["kernel"],
        "same": record["same"],
        "near": record["near"],
        "configuration": best,
        "ms": record["best_ms"] if best else record["default_ms"],
        "default_ms": record["default_ms"],
        "date": record["date"],
    }


def write_tables(records, folder=None):
    """Write the configurations of every GPU that was measured; entries of other traits stay. Returns the paths.

    records: those that count, the most valuable first: of two with the same traits the first has the entry.
    """
    folder = Path(folder or tuning.FOLDER)
    folder.mkdir(exist_ok=True)
    written = []
    for gpu in dict.fromkeys(record["gpu"] for record in records):
        timed = [r for r in records if r["gpu"] == gpu and r["default_ms"] is not None]
        entries = {}
        for found in map(entry, timed):
            entries.setdefault(_traits(found), found)
        path = folder / tuning.file_name(gpu)
        old = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
        for found in old:
            entries.setdefault(_traits(found), found)
        if not entries:
            continue
        newest = max(timed or records, key=lambda record: record["date"])
        table = {name: newest[name] for name in ("gpu", "date", "git", "versions")}
        kept = sorted(
            entries.values(), key=lambda e: (list(tuning.KERNELS).index(e["kernel"]), _traits(e))
        )
        _replace(path, json.dumps(table | {"entries": kept}, indent=1) + "\n")
        written.append(path)
    tuning.forget()
    return written


def _traits(found):
    return json.dumps([found["kernel"], found["same"], found["near"]], sort_keys=True)


def _replace(path, text):
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
