"""Read transcripts: the JSON of the paper and of this package, JSONL, CSV or TSV, and `Speaker: text` files.

Errors name the file, the line and what was expected, and never what somebody said.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from bench.sessions.entries import SESSION_ID, group, make_session, make_turn, scalar
from bench.sessions.session import Session, SessionError

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
# column names in order of preference; AnnoMI and DAIC-WOZ use the later ones
COLUMNS = {
    "speaker": ("speaker", "interlocutor"),
    "text": ("text", "utterance_text", "utterance", "value", "content"),
    "session": SESSION_ID,
    "order": ("utterance_id",),
    "role": ("role",),
    "phase": ("phase",),
}
# a label is up to four words that do not begin with a small letter; indented lines have none
LABEL = re.compile(
    r"(?P<speaker>[^\W_][^\s:]{0,39}(?: [^\s:]{1,40}){0,3}) ?:(?=\s|$)(?P<text>.*)", re.S
)
IN_JSON = 'an object with a list "dialogue" (or "turns") of objects with "speaker" and "text"'


def read(path) -> list[Session]:
    """The sessions of one file, or of every readable file of a folder in the order of their names.

    SessionError names the file, the line (or the place in the JSON) and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            f for f in path.iterdir() if f.suffix.lower() in ENDINGS and not f.name.startswith(".")
        )
        if not files:
            raise SessionError(
                f"{path}: no transcript in this folder; files ending in {', '.join(ENDINGS)} are read"
            )
        return [session for file in files for session in read(file)]
    if not path.exists():
        raise SessionError(f"{path}: no such file or folder")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SessionError(
            f"{path}: cannot be read as a transcript; the ending must be one of {', '.join(ENDINGS)}"
        )
    sessions = list(reader(path, _text(path)))
    if not sessions:
        raise SessionError(f"{path}: the file is empty; expected at least one turn")
    return sessions


def _text(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SessionError(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None
    except ValueError:  # a NUL in the name
        raise SessionError(f"{str(path)!r}: not the name of a file") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = content.count(b"\n", 0, error.start) + 1
        raise SessionError(
            f"{path}, line {at}: not UTF-8; save the file with the encoding UTF-8"
        ) from None


# JSON


def read_json(path: Path, content: str) -> Iterator[Session]:
    """One session, or a list of sessions."""
    if not content.strip():
        return
    found = _parse(content, path, 1)
    many = isinstance(found, list)
    for i, item in enumerate(found if many else [found]):
        yield _session_object(
            item,
            f"{path}, [{i}]" if many else str(path),
            path,
            f"{path.stem}-{i}" if many else path.stem,
        )


def read_jsonl(path: Path, content: str) -> Iterator[Session]:
    """One session a line, or one turn a line with the id of its session."""
    rows = []
    for number, row in enumerate(content.split("\n"), start=1):
        if not row.strip():
            continue
        item, where = _parse(row, path, number), f"{path}, line {number}"
        if isinstance(item, dict) and "text" in item and "speaker" in item:
            rows.append((where, item))
        elif rows:
            raise SessionError(
                f'{where}: expected a turn with "speaker" and "text", as in the lines before'
            )
        else:
            yield _session_object(item, where, path, f"{path.stem}-{number}")
    yield from group(rows, path)


def _parse(content, path, line):
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise SessionError(
            f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg.lower()})"
        ) from None
    except (ValueError, RecursionError):
        raise SessionError(
            f"{path}, line {line}: not a JSON transcript; expected {IN_JSON}"
        ) from None


def _session_object(item, where, path, default_id) -> Session:
    key = next((k for k in ("dialogue", "turns") if isinstance(item, dict) and k in item), None)
    if key is None or not isinstance(item[key], list):
        raise SessionError(f"{where}: expected {IN_JSON}")
    turns = [make_turn(entry, f"{where}, {key}[{i}]") for i, entry in enumerate(item[key])]
    return make_session(
        scalar(item, "id", where) or default_id,
        turns,
        where,
        kind=scalar(item, "kind", where) or "transcript",
        source=scalar(item, "source", where) or path.name,
        shifts=item.get("shifts"),
    )


# tables


def read_csv(path: Path, content: str) -> Iterator[Session]:
    """A table with a header; one turn a row."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in content.split("\n", 1)[0] else ","
    table = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    columns, rows, seen = None, [], set()
    try:
        for row in table:
            where = f"{path}, line {table.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _columns(row, where)
                continue
            if len(row) <= max(columns.values()):
                raise SessionError(
                    f"{where}: {len(row)} cells, but the header has {1 + max(columns.values())} or more"
                )
            entry = {name: row[at].strip() for name, at in columns.items()}
            if "order" in entry:  # several annotators give several rows to one utterance
                key = (entry.get("session"), entry["order"])
                if key in seen:
                    continue
                seen.add(key)
            rows.append((where, entry))
    except csv.Error as error:
        raise SessionError(f"{path}, line {table.line_num}: not a table ({error})") from None
    if rows and "order" in columns:
        rows = _in_order(rows)
    yield from group(rows, path)


def _columns(header, where):
    names = [name.strip().lower() for name in header]
    columns = {}
    for column, aliases in COLUMNS.items():
        found = next((names.index(alias) for alias in aliases if alias in names), None)
        if found is not None:
            columns[column] = found
    if "speaker" not in columns or "text" not in columns:
        raise SessionError(
            f"{where}: expected a header with the columns speaker and text (or interlocutor and utterance_text), "
            "and optionally session, utterance_id, role, phase"
        )
    return columns


def _in_order(rows):
    numbered = []
    for where, entry in rows:
        try:
            numbered.append((int(entry["order"]), where, entry))
        except ValueError:
            raise SessionError(f"{where}: utterance_id must be a whole number") from None
    return [(where, entry) for _, where, entry in sorted(numbered, key=lambda row: row[0])]


# text


def read_txt(path: Path, content: str) -> Iterator[Session]:
    """`Speaker: text`; a line without a speaker, or an indented one, continues the turn above it."""
    entries, where = [], []
    for number, row in enumerate(content.splitlines(), start=1):
        if not row.strip():
            continue
        match = LABEL.fullmatch(row.rstrip())
        if match and not any(word[0].islower() for word in match["speaker"].split()):
            entries.append({"speaker": match["speaker"], "text": match["text"].strip()})
            where.append(f"{path}, line {number}")
        elif entries:
            entries[-1]["text"] = f"{entries[-1]['text']} {row.strip()}".strip()
        else:
            raise SessionError(f'{path}, line {number}: expected "Speaker: text"')
    if entries:
        yield make_session(
            path.stem,
            [make_turn(e, w) for e, w in zip(entries, where, strict=True)],
            str(path),
            source=path.name,
        )


READERS = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_txt,
}
