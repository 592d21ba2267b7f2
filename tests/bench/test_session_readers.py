import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sessions import Session, SessionError, Turn, read, text, write
from bench.sessions.readers import ENDINGS

SECRET = "zebra confession"
TALK = [("Therapist", "How are you?"), ("Client", 'Tired: very tired, "really".')]


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def one(path):
    (session,) = read(path)
    return session


def talk(session):
    return [(turn.speaker, turn.text) for turn in session.turns]


# what can be read


def test_json_of_the_paper(tmp_path):
    dialogue = [{"speaker": s, "text": t} for s, t in TALK]
    session = one(put(tmp_path, "s1.json", json.dumps({"dialogue": dialogue})))
    assert (session.kind, session.source, session.shifts) == ("transcript", "JSON", ())
    assert talk(session) == TALK
    assert [turn.role for turn in session.turns] == ["therapist", "client"]
    assert text(session) == 'Therapist: How are you?\nClient: Tired: very tired, "really".'


def test_json_with_several_sessions(tmp_path):
    item = {"dialogue": [{"speaker": "A", "text": "x", "role": "client"}]}
    sessions = read(put(tmp_path, "many.json", json.dumps([item, {**item, "id": 7}])))
    assert len(sessions) == 2
    assert sessions[0].turns == (Turn("A", "client", "x"),)


def test_jsonl_of_sessions(tmp_path):
    turns = [{"speaker": "P", "role": "client", "text": "a", "phase": "one"}] * 2
    turns += [{"speaker": "T", "role": "therapist", "text": "b", "phase": "two"}]
    rows = [{"id": "x", "turns": turns}, {"id": "y", "turns": turns, "shifts": [1]}]
    x, y = read(put(tmp_path, "s.jsonl", "\n".join(json.dumps(r) for r in rows) + "\n\n"))
    assert (x.shifts, y.shifts) == ((2,), (1,))
    assert [turn.phase for turn in x.turns] == ["one", "one", "two"]


def test_jsonl_of_turns(tmp_path):
    rows = [
        {"session_id": "b", "speaker": "T", "text": "1"},
        {"session_id": "a", "speaker": "T", "text": "2"},
        {"session_id": "b", "speaker": "C", "text": "3"},
    ]
    b, a = read(put(tmp_path, "s.jsonl", "\n".join(map(json.dumps, rows))))
    assert talk(b) == [("T", "1"), ("C", "3")]
    assert talk(a) == [("T", "2")]


def test_csv(tmp_path):
    rows = 'Session,Speaker,Text,Phase\n1,T,"Hello, ""you""\nthere",a\n1,C,Hi,b\n2,T,Again,\n'
    first, second = read(put(tmp_path, "s.csv", rows))
    assert talk(first) == [("T", 'Hello, "you"\nthere'), ("C", "Hi")]
    assert first.shifts == (1,)
    assert text(first) == 'T: Hello, "you" there\nC: Hi'
    assert second.turns == (Turn("T", "", "Again"),)


def test_txt(tmp_path):
    content = "Therapist: Hello.\n\nDr. Ann Lee: I see:\n  Note: indented\ngoes on, he said: no\nClient:\n late start\n"
    session = one(put(tmp_path, "s.txt", content))
    assert talk(session) == [
        ("Therapist", "Hello."),
        ("Dr. Ann Lee", "I see: Note: indented goes on, he said: no"),
        ("Client", "late start"),
    ]


@pytest.mark.parametrize("content", ["T: ünï\n", b"\xef\xbb\xbfT: \xc3\xbcn\xc3\xaf\r\n"])
def test_utf8_with_and_without_mark(tmp_path, content):
    assert talk(one(put(tmp_path, "s.txt", content))) == [("T", "ünï")]


def test_folder_is_read_in_the_order_of_names(tmp_path):
    put(tmp_path, "b.txt", "T: b")
    put(tmp_path, "a.json", json.dumps({"dialogue": [{"speaker": "T", "text": "a"}]}))
    put(tmp_path, "README.md", "no transcript")
    put(tmp_path, ".hidden.txt", "no transcript")
    assert [talk(s) for s in read(tmp_path)] == [[("T", "a")], [("T", "b")]]


# what cannot

HEADER = "speaker,text\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *[(f"e{ending}", content, "the file is empty") for ending in ENDINGS for content in ("", " \n\n")],
        ("s.csv", HEADER, "the file is empty"),
        ("s.json", f'{{"dialogue": [\n{SECRET}', r"s\.json, line 2: not JSON"),
        ("s.json", f'"{SECRET}"', 'expected an object with a list "dialogue"'),
        ("s.json", '{"dialogue": {}}', 'expected an object with a list "dialogue"'),
        ("s.json", '{"dialogue": []}', "the session has no turns"),
        ("s.json", '{"dialogue": [{"speaker": "T", "text": "a"}, 3]}', r"dialogue\[1\]: expected an object"),
        ("s.json", f'[{{"turns": [{{"text": "{SECRET}"}}]}}]', r"\[0\], turns\[0\]: the turn has no speaker"),
        ("s.json", '{"dialogue": [{"speaker": "T", "text": " "}]}', r"dialogue\[0\]: the turn has no text"),
        ("s.json", '{"dialogue": [{"speaker": "T", "text": 5}]}', "the turn has no text"),
        ("s.json", '{"dialogue": [{"speaker": "T", "text": "\\ud800"}]}', "half of a surrogate pair"),
        ("s.json", '{"id": ["a"], "dialogue": [{"speaker": "T", "text": "a"}]}', "id must be a text"),
        ("s.json", '{"shifts": [1], "dialogue": [{"speaker": "T", "text": "a"}]}', "shifts must be ascending"),
        ("s.json", "[" * 100_000, "not a JSON transcript"),
        ("s.json", '{"id": ' + "9" * 5_000 + "}", "not a JSON transcript"),
        ("s.jsonl", f'{{"speaker": "T", "text": "a"}}\n{SECRET}', r"s\.jsonl, line 2: not JSON"),
        ("s.jsonl", '{"speaker": "T", "text": "a"}\n\n{"turns": []}', "line 3: expected a turn"),
        ("s.csv", f"{SECRET},who\na,b\n", r"s\.csv, line 1: expected a header with the columns speaker and text"),
        ("s.csv", f"{HEADER}T,a\n{SECRET}\n", r"s\.csv, line 3: 1 cells"),
        ("s.csv", f'{HEADER}T,"{SECRET}', r"s\.csv, line 2: not a table"),
        ("s.csv", f'{HEADER}T,"{SECRET}"x\n', r"s\.csv, line 2: not a table"),
        ("s.csv", f"{HEADER}T,a\n,{SECRET}\n", r"s\.csv, line 3: the turn has no speaker"),
        ("s.csv", f"utterance_id,{HEADER}x,T,{SECRET}\n", "line 2: utterance_id must be a whole number"),
        ("s.txt", f"\n{SECRET}\nT: a", r's\.txt, line 2: expected "Speaker: text"'),
        ("s.txt", f"T: a\nClient:\nT: {SECRET}", r"s\.txt, line 2: the turn has no text"),
        ("s.txt", f"T: {SECRET}\nC: \xe9".encode("latin-1"), r"s\.txt, line 2: not UTF-8"),
        ("s.docx", SECRET, r"s\.docx: cannot be read .* must be one of \.json, \.jsonl, "),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, name, content, message):
    path = put(tmp_path, name, content)
    with pytest.raises(SessionError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    said = str(error.value).removeprefix(str(path))  # the path holds the name of this test
    assert "\n" not in said
    assert not any(word in said for word in SECRET.split()), "the error quotes the transcript"


def test_nothing_to_read(tmp_path):
    with pytest.raises(SessionError, match=r"nowhere\.json: no such file"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(
        SessionError, match=r"no transcript in this folder; files ending in \.json, "
    ):
        read(tmp_path)


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    with pytest.raises(SessionError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")


# write and read

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
ONE_LINE = WORDS.map(lambda s: " ".join(s.split()))
TURNS = st.builds(
    Turn,
    ONE_LINE,
    st.sampled_from(["therapist", "client"]),
    WORDS,
    st.none() | st.sampled_from("abc"),
)


@st.composite
def session_lists(draw):
    sessions = []
    for name in draw(st.lists(ONE_LINE, min_size=1, max_size=3, unique_by=str.lower)):
        turns = draw(st.lists(TURNS, min_size=1, max_size=5))
        shifts = draw(st.sets(st.integers(1, len(turns) - 1))) if len(turns) > 1 else ()
        sessions.append(Session(name, "couple", tuple(turns), tuple(sorted(shifts)), "generated"))
    return sessions


@given(session_lists())
def test_what_is_written_is_read_again(sessions):
    with tempfile.TemporaryDirectory() as folder:
        files = write(sessions, Path(folder) / "out")
        assert [one(file) for file in files] == sessions
        assert sorted(read(Path(folder) / "out"), key=lambda s: s.id) == sorted(
            sessions, key=lambda s: s.id
        )


FRAGMENTS = st.sampled_from(
    ['{"dialogue": [', '{"turns": [', '{"speaker": "T", "text": "a"}', "]}", "\n", "\r\n", ",", "speaker,text\n", '"',
     "speaker\ttext\n", "T: a", "utterance_id,", "1,", "\ufeff", "\x00", "[", "]", "null", '"id": 1', "shifts", ": "]
)  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
@given(
    st.binary()
    | st.lists(FRAGMENTS | st.text(max_size=5)).map(lambda s: "".join(s).encode("utf-8", "replace"))
)
def test_any_file_gives_sessions_or_one_clear_error(ending, content):
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), f"x{ending}", content)
        sessions, error = [], ""
        try:
            sessions = read(path)
        except SessionError as refused:
            error = str(refused)
        assert sessions or error.startswith(str(path))
        for session in sessions:
            assert session.turns
            text(session).encode()


def test_two_sessions_of_one_name_are_refused(tmp_path):
    session = Session("a", "dyadic", (Turn("T", "therapist", "x"),))
    with pytest.raises(SessionError, match="same id"):
        write([session, session], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_writing_fails(tmp_path, monkeypatch):
    session = Session("a", "dyadic", (Turn("T", "therapist", "x"),))
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="is a file; choose"):
        write([session], tmp_path / "file")
    with pytest.raises(SessionError, match="cannot be written"):
        write([session], tmp_path / "file" / "out")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SessionError, match="no space left"):
        write([session], tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
