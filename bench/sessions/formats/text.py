"""Text files: transcripts with `Speaker: text` lines, and plain text of any other domain, read as one stream."""

import re
from collections.abc import Iterator
from pathlib import Path

from bench.sessions.entries import make_session, make_turn
from bench.sessions.session import Session, SessionError, Turn

# a label is up to four words that do not begin with a small letter; indented lines have none
LABEL = re.compile(
    r"(?P<speaker>[^\W_][^\s:]{0,39}(?: [^\s:]{1,40}){0,3}) ?:(?=\s|$)(?P<text>.*)", re.S
)
LABELLED = 0.1  # of the lines of a transcript at least; of prose, far fewer


def read_txt(path: Path, content: str) -> Iterator[Session]:
    """A transcript if every tenth line or more begins with a speaker, else plain text."""
    rows = [row for row in content.splitlines() if row.strip()]
    labelled = sum(_label(row) is not None for row in rows)
    reader = read_transcript if labelled >= max(1, LABELLED * len(rows)) else read_plain
    yield from reader(path, content)


def read_transcript(path: Path, content: str) -> Iterator[Session]:
    """`Speaker: text`; a line without a speaker, or an indented one, continues the turn above it."""
    entries, where = [], []
    for number, row in enumerate(content.splitlines(), start=1):
        if not row.strip():
            continue
        match = _label(row)
        if match:
            entries.append({"speaker": match["speaker"], "text": match["text"].strip()})
            where.append(f"{path}, line {number}")
        elif entries:
            entries[-1]["text"] = f"{entries[-1]['text']} {row.strip()}".strip()
        else:
            raise SessionError(f'{path}, line {number}: expected "Speaker: text"')
    if entries:
        turns = [make_turn(e, w) for e, w in zip(entries, where, strict=True)]
        yield make_session(turns, str(path), source="Speaker: text")


def read_plain(path: Path, content: str) -> Iterator[Session]:
    """The whole file as one session of one turn that nobody speaks."""
    if content.strip():
        words = content.replace("\r\n", "\n").rstrip("\n")
        yield make_session([Turn("", "", words)], str(path), source="plain text", kind="text")


def _label(row):
    match = LABEL.fullmatch(row.rstrip())
    if match and not any(word[0].islower() for word in match["speaker"].split()):
        return match
    return None
