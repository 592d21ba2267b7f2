"""Transcripts in JSON: the form of the paper and of this package, and ESConv's; in JSON lines, ConvoKit's too."""

import json
from collections.abc import Iterator
from pathlib import Path

from bench.sessions.entries import group, make_session, make_turn, scalar
from bench.sessions.formats import convokit, esconv
from bench.sessions.session import Session, SessionError

IN_JSON = 'an object with a list "dialogue" (or "turns") of objects with "speaker" and "text"'


def read_json(path: Path, content: str) -> Iterator[Session]:
    """One session, or a list of sessions."""
    if not content.strip():
        return
    found = parse(content, path, 1)
    many = isinstance(found, list)
    for i, item in enumerate(found if many else [found]):
        yield _session(item, f"{path}, [{i}]" if many else str(path))


def read_jsonl(path: Path, content: str) -> Iterator[Session]:
    """One session a line, or one turn a line with the id of its session, or the utterances of a ConvoKit corpus."""
    rows = lines(path, content)
    if not rows:
        return
    if convokit.is_utterance(rows[0][1]):
        yield from convokit.sessions(rows)
    elif _is_turn(rows[0][1]):
        for where, item in rows:
            if not _is_turn(item):
                raise SessionError(
                    f'{where}: expected a turn with "speaker" and "text", as in the lines before'
                )
        yield from group(rows, "JSON lines")
    else:
        for where, item in rows:
            yield _session(item, where)


def lines(path, content):
    """[(where, object)] of the lines that are not blank."""
    rows = enumerate(content.split("\n"), start=1)
    return [(f"{path}, line {n}", parse(row, path, n)) for n, row in rows if row.strip()]


def parse(content, path, line):
    """The value of a JSON text that begins on a line of a file."""
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


def _is_turn(item):
    return isinstance(item, dict) and "text" in item and "speaker" in item


def _session(item, where) -> Session:
    if esconv.is_dialog(item):
        return esconv.session(item, where)
    key = next((k for k in ("dialogue", "turns") if isinstance(item, dict) and k in item), None)
    if key is None or not isinstance(item[key], list):
        raise SessionError(f"{where}: expected {IN_JSON}")
    return make_session(
        [make_turn(entry, f"{where}, {key}[{i}]") for i, entry in enumerate(item[key])],
        where,
        source="generated" if scalar(item, "source", where) == "generated" else "JSON",
        name=scalar(item, "id", where),
        kind=scalar(item, "kind", where) or "transcript",
        shifts=item.get("shifts"),
    )
