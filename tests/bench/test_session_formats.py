"""Files as the published corpora have them, written here, and what is read of them."""

import csv
import gzip
import io
import json
import re

import pytest

from bench.sessions import SessionError, __main__, read, text
from bench.sessions.session import Turn, is_labelled

SECRET = "zebra confession"


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def annomi(transcript, utterance, who, words, annotator=1, **changed):
    row = {
        "mi_quality": "high", "transcript_id": transcript, "video_title": "A, title", "video_url": "https://a.test",
        "topic": "smoking", "utterance_id": utterance, "interlocutor": who, "timestamp": "00:00:13",
        "utterance_text": words, "annotator_id": annotator, "therapist_input_exists": True,
        "main_therapist_behaviour": "question", "client_talk_type": "neutral",
    }  # fmt: skip
    return row | changed


def words(session):
    return [turn.text for turn in session.turns]


# AnnoMI


def test_annomi_is_ordered_and_annotators_are_merged(tmp_path):
    rows = [
        annomi(0, 10, "client", "third"),
        annomi(0, 2, "therapist", 'the "second",\nof two lines', 1),
        annomi(0, 2, "therapist", 'the "second",\nof two lines', 2, main_therapist_behaviour="other"),
        annomi(1, 0, "therapist", "other"),
        annomi(0, 0, "client", "first", 3),
    ]  # fmt: skip
    one, other = sorted(read(put(tmp_path, "data.csv", table(rows))), key=lambda s: -len(s.turns))
    assert words(one) == ["first", 'the "second",\nof two lines', "third"]
    assert [turn.role for turn in one.turns] == ["client", "therapist", "client"]
    assert other.turns == (Turn("therapist", "therapist", "other"),)
    assert one.source == "AnnoMI"


def test_changes_of_behaviour_and_talk_type_are_no_shifts(tmp_path):
    rows = [
        annomi(0, i, "client", "x", client_talk_type=kind)
        for i, kind in enumerate(["change", "sustain", "neutral"])
    ]
    (session,) = read(put(tmp_path, "data.csv", table(rows)))
    assert not is_labelled(session)
    assert session.shifts == ()


# DAIC-WOZ


DAIC = [
    {"start_time": 0.1, "stop_time": 1.2, "speaker": "Ellie", "value": "hi i'm ellie"},
    {"start_time": 1.5, "stop_time": 2.0, "speaker": "Participant", "value": "hello <laughter>"},
]


def test_daic_woz(tmp_path):
    (session,) = read(put(tmp_path, "300_TRANSCRIPT.csv", table(DAIC, "\t")))
    assert session.turns == (
        Turn("Ellie", "therapist", "hi i'm ellie"),
        Turn("Participant", "client", "hello <laughter>"),
    )
    assert session.source == "DAIC-WOZ"


def test_of_daic_woz_only_transcripts_are_read(tmp_path):
    for number in (300, 301):
        put(tmp_path, f"{number}_P/{number}_TRANSCRIPT.csv", table(DAIC, "\t"))
        put(tmp_path, f"{number}_P/{number}_COVAREP.csv", "0,0,1\n")
        put(tmp_path, f"{number}_P/{number}_CLNF_AUs.txt", "frame, timestamp\n")
    assert [s.source for s in read(tmp_path)] == ["DAIC-WOZ"] * 2


# ESConv


def esconv(content="content", speakers=("seeker", "supporter")):
    dialog = [
        {"speaker": speakers[0], "annotation": {}, content: "Hello\n"},
        {"speaker": speakers[1], "annotation": {"strategy": "Question"}, content: "What is it?"},
        {"speaker": speakers[1], "annotation": {"strategy": "Others"}, content: "Hm."},
    ]
    return {"emotion_type": "anger", "problem_type": "job", "situation": SECRET, "dialog": dialog}


@pytest.mark.parametrize("form", [esconv(), esconv("text", ("usr", "sys"))])
@pytest.mark.parametrize("name", ["ESConv.json", "train.jsonl"])
def test_esconv(tmp_path, name, form):
    content = json.dumps([form, form]) if name.endswith("json") else f"{json.dumps(form)}\n" * 2
    first, _ = read(put(tmp_path, name, content))
    assert words(first) == ["Hello", "What is it?", "Hm."]
    assert [turn.role for turn in first.turns] == ["client", "therapist", "therapist"]
    assert (first.source, is_labelled(first)) == ("ESConv", False)
    assert SECRET not in text(first)


# ConvoKit


def utterance(name, conversation="c", speaker="ann", said=None, reply=None, time=None):
    return {
        "id": name, "conversation_id": conversation, "text": f"text of {name}" if said is None else said,
        "speaker": speaker, "meta": {"score": 1}, "reply-to": reply, "timestamp": time, "vectors": [],
    }  # fmt: skip


def older(item):
    names = {"conversation_id": "root", "speaker": "user", "reply-to": "reply_to"}
    return {names.get(key, key): value for key, value in item.items()}


def corpus(folder, rows):
    put(folder, "utterances.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("conversations", "speakers", "corpus", "index"):
        put(folder, f"{name}.json", json.dumps({"c": {"meta": {}}}))
    return folder


@pytest.mark.parametrize("form", [dict, older])
def test_convokit_by_time(tmp_path, form):
    rows = [
        utterance("b", time=20.0, reply="a"),
        utterance("x", "d", "tom", time=5),
        utterance("a", time="10"),
    ]
    c, d = read(corpus(tmp_path, map(form, rows)))
    assert words(c) == ["text of a", "text of b"]
    assert d.turns == (Turn("tom", "", "text of x"),)
    assert c.source == "ConvoKit"


@pytest.mark.parametrize("form", [dict, older])
def test_convokit_by_replies_where_a_time_is_missing(tmp_path, form):
    rows = [
        utterance("b", reply="a"),
        utterance("b2", reply="b", time=1),
        utterance("a"),
        utterance("a2", reply="a"),
        utterance("lost", reply="deleted"),
    ]
    (session,) = read(corpus(tmp_path, map(form, rows)))
    assert words(session) == [f"text of {n}" for n in ("a", "b", "b2", "a2", "lost")]


def test_convokit_without_words_is_left_out(tmp_path):
    rows = [utterance("a"), utterance("b", reply="a", said=" "), utterance("c", "d", said="")]
    (session,) = read(corpus(tmp_path, rows))
    assert words(session) == ["text of a"]


def test_utterances_are_known_by_their_fields(tmp_path):
    (session,) = read(put(tmp_path, "download.jsonl", json.dumps(utterance("a"))))
    assert session.source == "ConvoKit"


def test_a_long_thread_is_no_recursion(tmp_path):
    rows = [utterance(str(i), reply=str(i - 1) if i else None) for i in range(5_000)]
    (session,) = read(corpus(tmp_path, rows[::-1]))
    assert words(session)[:2] == ["text of 0", "text of 1"]
    assert len(session.turns) == 5_000


# other domains


@pytest.mark.parametrize("name", ["book.txt", "README.md", "book.txt.gz"])
def test_plain_text_is_one_stream(tmp_path, name):
    prose = "# Title\n\nIt was a dark night; he said: no.\n\n  Indented\nNote: one such line is no transcript.\n"
    prose += "And so on.\n" * 30
    content = gzip.compress(prose.encode()) if name.endswith("gz") else prose
    (session,) = read(put(tmp_path, name, content))
    assert text(session) == prose.rstrip("\n")
    assert (session.source, session.kind) == ("plain text", "text")


def test_a_readme_beside_transcripts_is_none_of_them(tmp_path):
    put(tmp_path, "README.md", "About the others")
    put(tmp_path, "a.txt", "T: Hello")
    assert [s.source for s in read(tmp_path)] == ["Speaker: text"]


FASTA = ">chr1 a person\nacgtN\nRYSWKM-\n\n>chr2\n; a comment\nBDHVu\r\n"


@pytest.mark.parametrize("name", ["g.fa", "g.fasta", "g.fna", "g.txt", "g.fa.gz"])
def test_fasta(tmp_path, name):
    content = gzip.compress(FASTA.encode()) if name.endswith("gz") else FASTA
    one, two = read(put(tmp_path, name, content))
    assert (text(one), text(two)) == ("ACGTNRYSWKM-", "BDHVU")
    assert (one.source, one.kind) == ("FASTA", "dna")


# what is wrong

HEAD = "transcript_id,utterance_id,interlocutor,utterance_text\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", f"{HEAD}0,x,client,{SECRET}\n", "line 2: utterance_id must be a whole number"),
        ("a.csv", f"{HEAD}0,1,client\n", "line 2: 3 cells, but the header has 4 or more"),
        ("300_TRANSCRIPT.csv", f"start_time\tstop_time\tspeaker\tvalue\n1\t2\tEllie\n{SECRET}", "line 2: 3 cells"),
        ("300_TRANSCRIPT.csv", f"start_time\tstop_time\tspeaker\n1\t2\t{SECRET}", "line 1: expected a header .* value"),
        ("e.json", json.dumps([{"dialog": SECRET}]), r"\[0\]: dialog must be a list"),
        ("e.json", json.dumps([{"dialog": [SECRET]}]), r"\[0\], dialog\[0\]: expected an object"),
        ("e.json", json.dumps([{"dialog": [{"speaker": "seeker"}]}]), r"dialog\[0\]: the turn has no content"),
        ("e.json", json.dumps([{"dialog": [{"content": SECRET}]}]), r"dialog\[0\]: the turn has no speaker"),
        ("e.json", json.dumps([{"dialog": [{"speaker": [SECRET], "content": "x"}]}]), "the turn has no speaker"),
        ("u.jsonl", json.dumps(utterance("a")) + "\n{}", "line 2: not an utterance of ConvoKit; expected"),
        ("u.jsonl", (json.dumps(utterance("a", said=SECRET)) + "\n") * 2, "line 2: the id of line 1 again"),
        ("u.jsonl", json.dumps(utterance("a", reply="a", said=SECRET)), "line 1: its replies go round in a circle"),
        ("u.jsonl", json.dumps(utterance("a", said=[SECRET])), "line 1: the turn has no text"),
        ("u.jsonl", json.dumps(utterance("a", said="")), "the file is empty"),
        ("u.jsonl", json.dumps(utterance("a", speaker={"id": SECRET})), "line 1: speaker must be a text"),
        ("g.fa", f"{SECRET}\nACGT", "line 1: expected a header"),
        ("g.fa", f">{SECRET}\nACGT\nMEEPQ", "line 3: a letter that is no nucleotide; expected only -ABC"),
        ("g.fa", f">{SECRET}\n>b\nACGT", "line 1: the record has no letters"),
        ("g.fa.gz", b"\x1f\x8bzebra", "a damaged gzip file"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, name, content, message):
    path = put(tmp_path, name, content)
    with pytest.raises(SessionError, match=message) as error:
        read(path)
    said = str(error.value).removeprefix(str(path))
    assert said != str(error.value)
    assert "\n" not in said
    assert not any(word in said for word in SECRET.split()), "the error quotes the transcript"


# privacy


def test_names_of_what_people_said_are_hashes(tmp_path):
    path = put(tmp_path, "john_smith.json", json.dumps({"id": "John Smith", "dialogue": [
        {"speaker": "T", "text": "x"}]}))  # fmt: skip
    (session,) = read(path)
    assert re.fullmatch(r"session-[0-9a-f]{12}", session.id)
    path = put(tmp_path, "another.txt", "T: x")
    assert read(path)[0].id == session.id, (
        "the same text has the same name, whatever its file is called"
    )
    path = put(tmp_path, "third.txt", "T: y")
    assert read(path)[0].id != session.id


# the command line


def described(capsys, path, *options):
    assert __main__.main(["--describe", str(path), *options]) == 0
    return capsys.readouterr().out


def test_describe_counts_and_says_that_there_are_no_labels(tmp_path, capsys):
    rows = [annomi(t, u, "client", f"{SECRET} {u}") for t in range(2) for u in range(3)]
    out = described(capsys, put(tmp_path, "secret_name.csv", table(rows)))
    assert re.search(r"AnnoMI *│ *2 *│ *6 *│", out)
    assert "AnnoMI: no phases or shifts are labelled" in out
    assert "shift metrics are unavailable" in out
    assert not any(word in out for word in (*SECRET.split(), "smoking", "secret_name"))


def test_describe_counts_labels_and_tokens(tmp_path, capsys):
    turns = [{"speaker": "T", "text": "a", "phase": p} for p in ("one", "one", "two")]
    put(tmp_path, "a.json", json.dumps({"dialogue": turns}))
    put(tmp_path, "b.fa", ">x\nACGT")
    out = described(capsys, tmp_path, "--tokenizer", "bytes")
    assert re.search(r"JSON *│ *1 *│ *3 *│ *15 *│ *15–15–15 *│ *1 *│ *1 ", out)
    assert re.search(r"FASTA *│ *1 *│ *1 *│ *5 *│", out)
    assert "FASTA: no phases" in out
    assert "JSON: no" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--describe", "nowhere"], "nowhere: no such file or folder"),
        (["--describe", ".", "--show", "0"], "--describe reads transcripts"),
    ],
)
def test_describe_refuses(capsys, options, message):
    with pytest.raises(SystemExit) as refused:
        __main__.main(options)
    error = capsys.readouterr().err
    assert refused.value.code == 2
    assert message in error
    assert error.count("\n") == 1
