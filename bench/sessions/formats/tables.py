"""Transcripts as tables, one turn a row: any CSV or TSV with a header, AnnoMI's and DAIC-WOZ's among them.

AnnoMI (Wu et al. 2022) has transcript_id, utterance_id, interlocutor, utterance_text and more. An utterance has a row
for each of its annotators, of which the first is read. Its labels (main_therapist_behaviour, client_talk_type) are of
single utterances and no phases. DAIC-WOZ (Gratch et al. 2014) has files NNN_TRANSCRIPT.csv, separated by tabs, with
start_time, stop_time, speaker and value, and no labels. Neither has shifts: a column `phase` of your own gives them.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from bench.sessions.entries import SESSION_ID, group
from bench.sessions.session import Session, SessionError

# column names in order of preference; AnnoMI and DAIC-WOZ use the later ones
COLUMNS = {
    "speaker": ("speaker", "interlocutor"),
    "text": ("text", "utterance_text", "utterance", "value", "content"),
    "session": SESSION_ID,
    "order": ("utterance_id",),
    "role": ("role",),
    "phase": ("phase",),
}
SHAPES = {
    "AnnoMI": {"transcript_id", "utterance_id", "interlocutor", "utterance_text"},
    "DAIC-WOZ": {"start_time", "stop_time", "speaker", "value"},
}


def read_csv(path: Path, content: str) -> Iterator[Session]:
    """A table with a header; one turn a row."""
    delimiter = "\t" if "\t" in content.split("\n", 1)[0] else ","
    table = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    columns, source, rows, seen = None, "table", [], set()
    try:
        for row in table:
            where = f"{path}, line {table.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns, source = _columns(row, where)
                continue
            if len(row) <= max(columns.values()):
                raise SessionError(
                    f"{where}: {len(row)} cells, but the header has {1 + max(columns.values())} or more"
                )
            entry = {name: row[at].strip() for name, at in columns.items()}
            if "order" in entry:
                key = (entry.get("session"), entry["order"])
                if key in seen:
                    continue
                seen.add(key)
            rows.append((where, entry))
    except csv.Error as error:
        raise SessionError(f"{path}, line {table.line_num}: not a table ({error})") from None
    if rows and "order" in columns:
        rows = _in_order(rows)
    yield from group(rows, source)


def _columns(header, where):
    """({column: its place}, which table it is)."""
    names = [name.strip().lower() for name in header]
    columns = {}
    for column, aliases in COLUMNS.items():
        found = next((names.index(alias) for alias in aliases if alias in names), None)
        if found is not None:
            columns[column] = found
    if "speaker" not in columns or "text" not in columns:
        raise SessionError(
            f"{where}: expected a header with the columns speaker and text (or interlocutor and utterance_text, or "
            "speaker and value), and optionally session, utterance_id, role, phase"
        )
    shape = next((source for source, has in SHAPES.items() if has <= set(names)), "table")
    return columns, shape


def _in_order(rows):
    numbered = []
    for where, entry in rows:
        try:
            numbered.append((int(entry["order"]), where, entry))
        except ValueError:
            raise SessionError(f"{where}: utterance_id must be a whole number") from None
    return [(where, entry) for _, where, entry in sorted(numbered, key=lambda row: row[0])]
