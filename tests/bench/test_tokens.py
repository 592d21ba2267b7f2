import pytest

from bench.sessions import Session, Turn, text
from bench.tokens import TokensError, token_stream


class Letters:
    """One token a character."""

    name, vocab_size = "letters", 128

    def encode(self, words):
        return [ord(letter) for letter in words]

    def decode(self, ids):
        return "".join(map(chr, ids))


def session(name, words):
    return Session(name, "dyadic", (Turn("A", "client", words),))


SESSIONS = [
    session("one", "first words"),
    session("two", "second words"),
    session("three", "x" * 50),
]


def read(length, batch=1, protocol="lab", sessions=SESSIONS):
    return token_stream(sessions, Letters(), length, batch, protocol)


def test_rows_hold_the_text_of_consecutive_sessions():
    tokens = read(20, batch=2)
    assert tokens.ids.shape == (2, 20)
    whole = text(SESSIONS[0]) + "\n" + text(SESSIONS[1]) + "\n"
    assert Letters().decode(tokens.ids[0].tolist()) == whole[:20]
    assert tokens.sessions == ["one", "two", "three"]
    assert Letters().decode(tokens.ids[1].tolist()) == text(SESSIONS[2])[:20]
    assert tokens.padded == 0


def test_shorter_streams_are_prefixes_and_hashes_tell_them_apart():
    long, short = read(30), read(12)
    assert long.ids[0, :12].tolist() == short.ids[0].tolist()
    assert long.sha256 != short.sha256
    assert long.sha256 == read(30).sha256


def test_the_lab_reads_no_more_sessions_than_it_needs():
    def endless():
        yield SESSIONS[0]
        pytest.fail("read too much")

    assert read(10, sessions=endless()).sessions == ["one"]


def test_too_little_text_is_named_by_the_lab_and_padded_by_the_paper():
    with pytest.raises(TokensError, match="1,000 tokens") as error:
        read(1000)
    assert "\n" not in str(error.value)
    have = sum(len(text(s)) + 1 for s in SESSIONS)
    tokens = read(1000, protocol="paper")
    assert tokens.padded == 1000 - have
    assert tokens.ids[0, have:].eq(0).all()
    assert tokens.ids[0, :have].ne(0).all()
    assert tokens.padding_at(1000) == 1000 - have
    assert tokens.padding_at(have) == 0
    assert tokens.padding_at(have + 1) == 1


def test_rows_of_the_paper_protocol_start_at_different_sessions():
    tokens = read(1000, batch=2, protocol="paper")
    assert Letters().decode(tokens.ids[1, :15].tolist()) == text(SESSIONS[1])
    assert sorted(tokens.ids[0].tolist()) == sorted(tokens.ids[1].tolist())


@pytest.mark.parametrize("protocol", ["lab", "paper"])
def test_no_sessions_at_all(protocol):
    with pytest.raises(TokensError, match="sessions"):
        read(10, protocol=protocol, sessions=[])
