"""Read transcripts, plain text and DNA: which reader of `bench.sessions.formats` a file or folder needs.

The ending of a file says how it is written (JSON, table, text), its content which format it is. Errors name the file,
the line and what was expected, and never what somebody said.
"""

import gzip
import zlib
from pathlib import Path

from bench.sessions.formats import convokit
from bench.sessions.formats.fasta import is_fasta, read_fasta
from bench.sessions.formats.objects import read_json, read_jsonl
from bench.sessions.formats.tables import read_csv
from bench.sessions.formats.text import read_plain, read_txt
from bench.sessions.session import Session, SessionError

READERS = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_txt,
    ".md": read_plain,
    ".fa": read_fasta,
    ".fasta": read_fasta,
    ".fna": read_fasta,
}
ENDINGS = tuple(READERS)
GZIP = b"\x1f\x8b"


def read(path) -> list[Session]:
    """The sessions of one file, of a ConvoKit folder, or of every readable file of a folder by name.

    Files may be compressed (.gz). In a folder with the transcripts of DAIC-WOZ, NNN_TRANSCRIPT.csv, or with subfolders
    that hold them, nothing else is read; .md files, which may describe the others, only where there are no others.
    Sessions that were generated keep their names; those of people are named by a hash of their text, since files and
    ids may identify them.

    SessionError names the file, the line (or the place in the JSON) and what was expected.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return [session for file in _files(path) for session in _file(file)]
        if not path.exists():
            raise SessionError(f"{path}: no such file or folder")
    except (OSError, ValueError) as error:
        if isinstance(error, SessionError):
            raise
        raise SessionError(f"{str(path)!r}: not the name of a file or folder") from None
    return _file(path)


def _files(folder):
    """What is read of a folder."""
    if (folder / convokit.FILE).is_file():
        return [folder / convokit.FILE]
    if interviews := sorted([*folder.glob("*_TRANSCRIPT.csv"), *folder.glob("*/*_TRANSCRIPT.csv")]):
        return interviews
    files = sorted(
        f for f in folder.iterdir() if _ending(f) in ENDINGS and not f.name.startswith(".")
    )
    if not files:
        raise SessionError(
            f"{folder}: no transcript in this folder; files ending in {', '.join(ENDINGS)} are read"
        )
    return [f for f in files if _ending(f) != ".md"] or files


def _file(path):
    reader = READERS.get(_ending(path))
    if reader is None:
        raise SessionError(
            f"{path}: cannot be read as a transcript; the ending must be one of {', '.join(ENDINGS)} (or with .gz)"
        )
    content = _text(path)
    if reader is read_txt and is_fasta(content):
        reader = read_fasta
    sessions = list(reader(path, content))
    if not sessions:
        raise SessionError(f"{path}: the file is empty; expected at least one turn")
    return sessions


def _ending(path):
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _text(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SessionError(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            raise SessionError(f"{path}: a damaged gzip file; compress it again") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = content.count(b"\n", 0, error.start) + 1
        raise SessionError(
            f"{path}, line {at}: not UTF-8; save the file with the encoding UTF-8"
        ) from None
