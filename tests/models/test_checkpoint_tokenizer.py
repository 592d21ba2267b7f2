"""A checkpoint's own tokenizer reads its sessions; what does not go together is refused."""

import pytest
import tokenizers

from models.checkpoint_tokenizer import tokenizer_of
from models.tokenizer import load

TEXT = "Client: I did not sleep.\n"


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a tokenizer of ten words."""
    words = ["<unk>", "Client", ":", "I", "did", "not", "sleep", ".", "Therapist", "you"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_names_are_those_of_the_lab():
    assert tokenizer_of("gpt2", {}).encode(TEXT) == load("gpt2").encode(TEXT)


def test_the_checkpoints_own(checkpoint):
    found = tokenizer_of("checkpoint", {"llama": str(checkpoint)})
    assert found.encode(TEXT) == [1, 2, 3, 4, 5, 6, 7]
    assert found.vocab_size == 10


def test_two_of_the_same_vocabulary_are_one(checkpoint):
    both = {"llama": checkpoint, "mamba": checkpoint}
    assert tokenizer_of("checkpoint", both).vocab_size == 10


def test_what_cannot_be_had_is_said(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint whose tokenizer to take"):
        tokenizer_of("checkpoint", {})
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        tokenizer_of("checkpoint", {"llama": empty})
    (empty / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        tokenizer_of("checkpoint", {"llama": empty})
    load("gpt2")._bpe.save(str(empty / "tokenizer.json"))
    with pytest.raises(ValueError, match="llama and mamba have different tokenizers"):
        tokenizer_of("checkpoint", {"llama": checkpoint, "mamba": empty})
