"""The tokenizer that a run reads its sessions with: one of the lab's, or the one that came with a checkpoint.

A trained model reads ids as its own tokenizer made them: the same ids from another one mean other words.
"""

from pathlib import Path

import tokenizers

from models.gguf_file import find_gguf, first_line, gguf_tokenizer
from models.tokenizer import Tokenizer, load

CHECKPOINT = "checkpoint"  # the name that stands for the checkpoint's own


def tokenizer_of(name, checkpoints):
    """The `Tokenizer` called `name`: one of `models.tokenizer`, or that of the checkpoints of a run.

    Args:
        checkpoints: {arch: path}; several must have the same vocabulary, since all models of a run read the same ids.

    Raises:
        ValueError: no checkpoint, one without a tokenizer, or two that differ.
        models.tokenizer.TokenizerError: as `models.tokenizer.load`.
    """
    if name != CHECKPOINT:
        return load(name)
    if not checkpoints:
        raise ValueError("there is no checkpoint whose tokenizer to take; give --checkpoint too")
    found = {arch: _own(Path(path)) for arch, path in checkpoints.items()}
    first, *others = found.items()
    for arch, tokenizer in others:
        if tokenizer.vocabulary() != first[1].vocabulary():
            raise ValueError(
                f"the checkpoints of {first[0]} and {arch} have different tokenizers, and all models of a run read "
                "the same ids; run them one at a time"
            )
    return first[1]


def _own(path):
    file = find_gguf(path)
    if file is not None:
        return gguf_tokenizer(file)
    file = path / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"checkpoint {path} has no tokenizer.json")
    try:
        bpe = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from error
    bpe.encode_special_tokens = True
    return Tokenizer(path.name, bpe.get_vocab_size(), bpe)
