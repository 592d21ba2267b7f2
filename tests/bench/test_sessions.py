import collections
import hashlib
import itertools
import re

import numpy as np
import pytest

from bench.sessions import SessionError, __main__, generate, read, stream, text
from bench.sessions.client import Client
from bench.sessions.generator import load_language
from bench.sessions.grammar import Draw, to_second_person
from bench.sessions.novelty import LONGEST, WINDOW, Novelty
from models import tokenizer

COUNT = 12
KINDS_OF_SESSION = ("dyadic", "couple")


@pytest.fixture(scope="module")
def sessions():
    return {kind: generate(COUNT, seed=0, kind=kind) for kind in KINDS_OF_SESSION}


@pytest.fixture(scope="module")
def tokens(sessions):
    encode = tokenizer.load().encode
    return {kind: [encode(text(s)) for s in sessions[kind]] for kind in sessions}


def sentences(session):
    for turn in session.turns:
        yield from re.split(r"(?<=[.?!]) ", turn.text)


# what a session is


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_length_is_that_of_the_paper(tokens, kind):
    lengths = [len(ids) for ids in tokens[kind]]
    assert min(lengths) >= 6_000
    assert max(lengths) <= 10_000
    assert max(lengths) - min(lengths) > 1_000


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_phases_and_shifts(sessions, kind):
    orders, shares = set(), []
    for session in sessions[kind]:
        phases = [turn.phase for turn in session.turns]
        starts = (0, *session.shifts)
        assert session.shifts == tuple(
            i for i in range(1, len(phases)) if phases[i] != phases[i - 1]
        )
        assert len(session.shifts) >= 5
        order = tuple(phases[i] for i in starts)
        assert order[0] == "check_in"
        assert order[-1] == "closing"
        assert len(order) > len(set(order)), "no phase comes back"
        orders.add(order)
        shares += [b - a for a, b in itertools.pairwise((*starts, len(phases)))]
    assert len(orders) == COUNT, "two sessions have the same outline"
    assert np.std(shares) > 0.4 * np.mean(shares), "the phases are nearly equal"


def test_dyadic_turns_alternate(sessions):
    for session in sessions["dyadic"]:
        assert {turn.speaker for turn in session.turns} == {"Therapist", "Client"}
        roles = [turn.role for turn in session.turns]
        assert all(a != b for a, b in itertools.pairwise(roles))


def test_couples_talk_about_and_to_each_other(sessions):
    for session in sessions["couple"]:
        speakers = {turn.speaker for turn in session.turns}
        one, other = speakers - {"Therapist"}
        pairs = {one: other, other: one}
        client = [t for t in session.turns if t.speaker in pairs]
        assert sum(pairs[t.speaker] in t.text for t in client) >= 2
        direct = [a for a, b in itertools.pairwise(session.turns) if a.role == b.role == "client"]
        assert direct, "the two never answer each other"
        assert all(a.speaker != b.speaker for a, b in itertools.pairwise(session.turns))


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_turn_lengths_have_short_and_long_ends(sessions, kind):
    words = [len(t.text.split()) for s in sessions[kind] for t in s.turns if t.role == "client"]
    tenth, median, most = np.percentile(words, [10, 50, 90])
    assert tenth <= 6
    assert 10 <= median <= 25
    assert most >= 30
    assert np.mean(words) > median, "not skewed to the right"


def test_the_therapist_says_back_what_the_client_just_said(sessions):
    reflected = total = 0
    for session in sessions["dyadic"]:
        for client, therapist in itertools.pairwise(session.turns):
            if therapist.role != "therapist":
                continue
            total += 1
            heard = to_second_person(client.text).lower().rstrip(".?!").split()
            back = therapist.text.lower()
            reflected += any(" ".join(heard[i : i + 5]) in back for i in range(len(heard) - 4))
    assert 0.15 < reflected / total < 0.5


def test_the_therapist_never_says_back_an_i(sessions):
    """What is said back is about "you": no five words of the client's with I, my or me in them."""
    for session in sessions["dyadic"]:
        for client, therapist in itertools.pairwise(session.turns):
            if therapist.role == "therapist":
                heard = [s.split() for s in re.split(r"[.?!:] ?", client.text)]
                runs = [words[i : i + 5] for words in heard for i in range(len(words) - 4)]
                mine = [" ".join(run) for run in runs if {"I", "my", "me", "I'm"} & set(run)]
                assert not any(run in therapist.text for run in mine), therapist.text


def test_topics_stay_and_come_back(sessions):
    back = 0
    for session in sessions["dyadic"]:
        explored = collections.Counter(session.turns[i].phase for i in session.shifts)
        back += explored["exploration"] > 1
        back += any(
            "Earlier you said" in t.text or "I remember you saying" in t.text for t in session.turns
        )
    assert back >= COUNT


def test_affect_is_darkest_where_pain_is_explored(sessions):
    words = load_language()["words"]
    dark = [w for level in (0, 1) for w in words[f"feel_{level}"]]
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, dark)) + r")\b", re.I)
    said = collections.defaultdict(list)
    for session in sessions["dyadic"]:
        for turn in session.turns:
            if turn.role == "client":
                said[turn.phase].append(bool(pattern.search(turn.text)))
    assert np.mean(said["exploration"]) > 2 * np.mean(said["planning"] + said["closing"])


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_people_keep_their_names(sessions, kind):
    """A client has at most seven people (partner, child, boss, ...), so a session names few and names them often."""
    facts = load_language()["facts"]
    names = set(facts["female"]) | set(facts["male"])
    for session in sessions[kind]:
        found = collections.Counter(w for w in re.findall(r"[A-Z]\w+", text(session)) if w in names)
        assert 3 <= len(found) <= (8 if kind == "dyadic" else 13)
        assert max(found.values()) >= 3


# repetition


def longest_common_run(texts, at_most):
    """Length of the longest run of tokens that occurs at two places of `texts`, up to `at_most`."""
    for n in range(at_most, 0, -1):
        seen, count = set(), 0
        for ids in texts:
            data = np.array(ids, dtype=np.uint16).tobytes()
            seen.update(data[2 * i : 2 * (i + n)] for i in range(len(ids) - n + 1))
            count += len(ids) - n + 1
        if len(seen) < count:
            return n
    return 0


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_no_long_passage_twice(tokens, kind):
    assert LONGEST < 40
    assert longest_common_run(tokens[kind], at_most=45) < LONGEST


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_no_long_sentence_again_and_again(sessions, kind):
    for session in sessions[kind]:
        client = [t for t in session.turns if t.role == "client"]
        counts = collections.Counter(
            s for t in client for s in re.split(r"(?<=[.?!]) ", t.text) if len(s.split()) >= 7
        )
        assert max(counts.values()) <= 2
        assert sum(n > 1 for n in counts.values()) <= 3


def test_longest_common_run_finds_a_planted_repetition():
    assert longest_common_run([[1, 2, 3, 4, 5, 9], [7, 2, 3, 4, 8]], at_most=10) == 3
    assert longest_common_run([[5, 6, 5, 6, 7]], at_most=10) == 2


def test_novelty_refuses_a_run_within_a_session_and_across_sessions():
    novelty = Novelty()
    novelty.begin()
    passage = list(range(100, 100 + WINDOW))
    assert novelty.accepts([1], passage)
    novelty.add([1], passage)
    assert novelty.accepts([2], passage[: WINDOW - 1])
    assert not novelty.accepts([2], passage)
    novelty.begin()
    assert not novelty.accepts([], passage)
    assert not Novelty().accepts([], [7] * (WINDOW + 1)), "repeats itself"


# English


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("a slot or a choice was left", r"[{}\[\]|]|::|>>"),
        ("double mark", r"[,;:]\s*[.,;:?!]|[?!][.,?!]|(?<!\.)\.\.(?!\.)|\.{4}"),
        ("space before a mark", r"\s[.,?!;:]"),
        ("two spaces", r"\s\s"),
        ("a before a vowel", r"(?i)\ba (?!one\b|once\b|uni|use|usual|eu)[aeiou]"),
        ("an before a consonant", r"(?i)\ban (?!hour|honest|heir)[^aeiou\W]"),
        ("agreement with I", r"\bI(?: is| are|'s|'re)\b"),
        ("agreement with you", r"(?i)\byou (?:is|am|was|has|wasn't)\b"),
        ("agreement with he", r"\b(?:[Ss]he|[Hh]e) (?:are|am|were|have|do)\b(?! a child)"),
        ("doubled word", r"(?i)\b(the|and|that|a|to|of|in|I|it|is|so|my|your|but|well) \1\b"),
        ("object as subject", r"(?:^|[.?!] )(?:Me|Him|Them) \w+s\b"),
        ("pronoun not switched", r"\b(?:you my|my self|your self|me self)\b"),
    ],
)
def test_no_broken_english(sessions, kind, fault, pattern):
    wrong = [t.text for s in sessions[kind] for t in s.turns if re.search(pattern, t.text)]
    assert not wrong, f"{fault}: {wrong[:3]}"


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_sentences_begin_with_a_capital_and_end_with_a_mark(sessions, kind):
    for session in sessions[kind]:
        for turn in session.turns:
            assert turn.text[-1] in ".?!)", turn.text
        for said in sentences(session):
            assert said.startswith("(pause)") or said.lstrip("(")[0].isupper(), said


def test_affect_is_an_autoregression():
    """Neighbouring turns are alike, and the phase pulls the mean."""
    client = Client(Draw("a"), None, load_language(), {}, {}, "Client")
    means = {}
    for phase in ("exploration", "closing"):
        path = []
        for _ in range(2_000):
            client.feel_on(phase)
            path.append(client.affect)
        assert np.corrcoef(path[:-1], path[1:])[0, 1] > 0.6
        assert min(path) >= -1
        assert max(path) <= 1
        means[phase] = np.mean(path)
    assert means["closing"] > means["exploration"] + 0.5


# seeds


@pytest.mark.parametrize("kind", KINDS_OF_SESSION)
def test_a_session_does_not_depend_on_how_many_are_made(sessions, kind):
    assert generate(3, seed=0, kind=kind) == sessions[kind][:3]
    assert next(stream(0, kind)) == sessions[kind][0]


def test_seeds_and_kinds_differ(sessions):
    other = generate(1, seed=1)[0]
    assert text(other) != text(sessions["dyadic"][0])
    assert len({s.id for kind in sessions for s in sessions[kind]} | {other.id}) == 2 * COUNT + 1


@pytest.mark.parametrize(
    ("kind", "digest"), [("dyadic", "e7c77879127ba701"), ("couple", "60452d9ee4ccd9f6")]
)
def test_the_same_text_on_every_machine(sessions, kind, digest):
    """Changing the language or the generator changes the benchmark's input: then, and only then, renew these."""
    whole = "\n\n".join(text(s) for s in sessions[kind][:2])
    assert hashlib.sha256(whole.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 2.0}, r"got 2\.0"),
        ({"count": 1, "seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"count": 1, "kind": "trio"}, "kind must be one of dyadic, couple, got 'trio'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SessionError, match=message):
        generate(**arguments)


# command line


def run(capsys, *arguments):
    try:
        status = __main__.main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_command_writes_what_generate_gives(tmp_path, capsys, sessions):
    out = tmp_path / "new" / "sessions"
    status, printed, _ = run(capsys, "--count", "2", "--kind", "couple", "--out", str(out))
    assert status == 0
    assert read(out) == sessions["couple"][:2]
    assert [f.name for f in sorted(out.iterdir())] == ["couple-0-0000.json", "couple-0-0001.json"]
    assert "couple-0-0001" in printed
    assert [f.name for f in out.parent.iterdir()] == ["sessions"], "something was left behind"


def test_command_refuses_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    status, _, error = run(capsys, "--count", "1", "--out", str(tmp_path))
    assert status == 2
    assert f"{tmp_path}: is not empty; choose a folder that is new or empty" in error
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out DIR"),
        (("--count", "0", "--out", "x"), "--count must be at least 1, got 0"),
        (("--show", "4"), "--show must be between 0 and 3"),
        (("--kind", "trio", "--show", "0"), "trio"),
        (("--seed", "x", "--show", "0"), "--seed"),
    ],
)
def test_command_refuses_bad_options(capsys, arguments, message):
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert message in error.splitlines()[-1]


def test_command_shows_the_beginning(capsys, sessions):
    status, printed, _ = run(capsys, "--count", "1", "--show", "0")
    first = sessions["dyadic"][0].turns[0]
    assert status == 0
    assert printed.startswith(f"[check_in]\n{first.speaker}: {first.text}\n")
