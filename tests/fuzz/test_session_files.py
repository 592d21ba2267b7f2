"""Any transcript file: sessions that can be tokenised, or one SessionError that names the file and quotes nothing."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sessions import SessionError, read, text
from bench.sessions.describe import describe
from models.tokenizer import load
from tests.fuzz.examples import check_one_line, examples
from tests.fuzz.mutate import altered, as_bytes, damaged

SAID = "Qwertz"
TURNS = [{"speaker": "T", "text": f"{SAID} {i}", "phase": "ab"[i > 1]} for i in range(4)]
UTTERANCES = [
    {"id": str(i), "conversation_id": "c", "speaker": "a", "text": SAID, "reply-to": str(i - 1) if i else None,
     "timestamp": None if i == 2 else i}
    for i in range(4)
]  # fmt: skip
ESCONV = [
    {
        "dialog": [
            {"speaker": "seeker", "annotation": {}, "content": f"{SAID} {i}"} for i in range(3)
        ]
    }
]
PAPER = [{"id": "x", "kind": "dyadic", "source": "generated", "shifts": [2], "dialogue": TURNS}]


def table(columns, rows, delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([columns, *rows])
    return out.getvalue().encode()


def lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


ANNOMI = ("transcript_id", "utterance_id", "interlocutor", "utterance_text", "annotator_id")
DAIC = ("start_time", "stop_time", "speaker", "value")
FILES = {
    "paper.json": as_bytes(PAPER),
    "esconv.json": as_bytes(ESCONV),
    "sessions.jsonl": lines(PAPER * 2),
    "turns.jsonl": lines(TURNS),
    "utterances.jsonl": lines(UTTERANCES),
    "annomi.csv": table(ANNOMI, [(0, i // 2, "client", f'"{SAID}", {i}', i % 2) for i in range(6)]),
    "300_TRANSCRIPT.csv": table(DAIC, [(i, i + 1, "Ellie", SAID) for i in range(4)], "\t"),
    "talk.txt": f"T: {SAID}\n  more\nC: {SAID}\n".encode(),
    "prose.md": f"# {SAID}\n\n{SAID}.\n".encode(),
    "genome.fa": b">a\nACGTN\nRY\n>b\n-ACG\n",
    "genome.fa.gz": gzip.compress(b">a\nACGTN\n"),
}
JSON = {"paper.json": PAPER, "esconv.json": ESCONV}
LINES = {"sessions.jsonl": PAPER * 2, "turns.jsonl": TURNS, "utterances.jsonl": UTTERANCES}


def check(name, content):
    """Read a file of this content, or be refused in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            sessions = read(path)
        except SessionError as error:
            said = str(error)
        else:
            assert sessions
            for session in sessions:
                assert session.turns
                assert all(0 < i < len(session.turns) for i in session.shifts)
                load("bytes").encode(text(session))
            describe(path, load("bytes"))
            return
        check_one_line(said)
        assert said.startswith(str(path))
        assert SAID not in said, "the error quotes the transcript"


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_are_changed_are_right(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@examples(40)
def test_damaged_bytes(name, data):
    check(name, data.draw(damaged(FILES[name])))


@pytest.mark.parametrize("name", JSON)
@given(data=st.data())
@examples(60)
def test_wrong_values_of_json(name, data):
    check(name, as_bytes(data.draw(altered(JSON[name]))))


@pytest.mark.parametrize("name", LINES)
@given(data=st.data())
@examples(60)
def test_wrong_values_of_lines(name, data):
    found = data.draw(altered(LINES[name]))
    check(name, lines(found if isinstance(found, list) else [found]))


@given(name=st.sampled_from(sorted(FILES)), content=st.binary(max_size=200))
@examples(60)
def test_any_bytes(name, content):
    check(name, content)


@given(path=st.text(max_size=300))
@examples(40)
def test_any_path(path):
    """A path that is no file, or that no file can have."""
    try:
        read(f"/nowhere/{path}")
    except SessionError as error:
        check_one_line(str(error).replace(str(Path(f"/nowhere/{path}")), "the path"))
