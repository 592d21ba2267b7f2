"""A suite's folder as a handful of files: what can be read at once, and everything else in one archive.

Where only a few small files come back from a machine (eight of 16 MiB, say), `pack` keeps them so after every stage;
`unpack` makes the folder of them on the next machine. What stays behind can be made again: the references of outputs,
hundreds of megabytes, by the next call; pages, tables and figures of sweeps by `python -m analysis.report`.
"""

import shutil
import tarfile
from pathlib import Path

ARCHIVE = "suite.tar.gz"
READ_AT_ONCE = ("suite.json", "suite.md", "kernels/kernels.jsonl")
PATTERNS = ("configurations-*.json", "kernels/ratios-*.png")
FILES = 8
LARGEST = 15 << 20  # bytes of a file that comes back
LARGEST_MEMBER = 4 << 20  # of a file in the archive, but for records
RECORDS = (".jsonl", ".json")
MADE_AGAIN = ("figures", "tables", "report.html")  # of a sweep


def pack(out, target):
    """Write the archive of folder `out`, in parts if it is too large for one file, and the files to read at once.

    Returns:
        list of str: a sentence for every file that is too large, or one too many.
    """
    out, target = Path(out), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    behind = []

    def kept(member):
        parts = Path(member.name).parts
        if len(parts) > 1 and parts[0].startswith("sweep-") and parts[1] in MADE_AGAIN:
            return None
        if member.size > LARGEST_MEMBER and not member.name.endswith(RECORDS):
            behind.append(f"{member.name} has {member.size >> 20} MiB: it is not in {ARCHIVE}")
            return None
        return member

    whole = target / f".{ARCHIVE}"
    with tarfile.open(whole, "w:gz", compresslevel=6) as archive:
        archive.add(out, arcname=".", filter=kept)
    parts = _cut(whole, target)
    wanted = [out / name for name in READ_AT_ONCE if (out / name).exists()]
    wanted += [path for pattern in PATTERNS for path in sorted(out.glob(pattern))]
    for number, path in enumerate(wanted):
        if number >= FILES - parts or path.stat().st_size > LARGEST:
            behind.append(f"{path.name} is too large, or one too many: it is in {ARCHIVE} only")
        else:
            shutil.copy(path, target / path.name)
    return behind


def _cut(whole, target):
    """Put an archive in its place, in parts ARCHIVE.0, ARCHIVE.1, … if it is too large; returns how many."""
    for old in target.glob(f"{ARCHIVE}*"):
        old.unlink()
    if whole.stat().st_size <= LARGEST:
        whole.replace(target / ARCHIVE)
        return 1
    parts = 0
    with whole.open("rb") as file:
        while piece := file.read(LARGEST):
            (target / f"{ARCHIVE}.{parts}").write_bytes(piece)
            parts += 1
    whole.unlink()
    return parts


def unpack(source, out):
    """Make the folder `out` of what `pack` wrote; whether there was an archive."""
    archives = sorted(Path(source).glob(f"{ARCHIVE}*"))
    if not archives:
        return False
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    whole = out / f".{ARCHIVE}"
    with whole.open("wb") as file:
        for part in archives:
            file.write(part.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(out, filter="data")
    whole.unlink()
    return True
