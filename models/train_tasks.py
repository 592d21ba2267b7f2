"""What small models are trained on: text, copying, associative recall. A batch follows from seed and step alone.

- `sessions`: language modelling; the next token of windows of a text, everywhere.
- `copy`: a random string, a separator, the string again; only the second one counts (as in Jelassi et al. 2024).
- `recall`: key value key value ..., then all keys in another order, each followed by its value; only these values
  count (multi-query associative recall, Arora et al. 2023).

The two synthetic tasks use a small alphabet at the beginning of the vocabulary.
"""

import hashlib
from dataclasses import dataclass

import torch

SEPARATOR = 0
ALPHABET = 8  # symbols of a string to be copied: ids 1..8
HELD_OUT = 10  # one token in so many of a text is never trained on


@dataclass(frozen=True)
class Batch:
    """Sequences, and which of their tokens count as answers.

    Attributes:
        ids: (batch, seqlen) int64.
        counted: (seqlen - 1,) bool: whether the prediction of token t + 1 from the tokens up to t counts.
    """

    ids: torch.Tensor
    counted: torch.Tensor

    def targets(self):
        """(batch * counted,) the tokens to be predicted, row by row."""
        return self.ids[:, 1:][:, self.counted].flatten()


class Text:
    """Windows of a text; the last tenth is held out.

    Args:
        ids: the tokens, in order.

    Raises:
        ValueError: too few tokens for a window in the part that is held out.
    """

    def __init__(self, ids, seqlen):
        if seqlen < 2:
            raise ValueError(f"--seqlen must be at least 2, got {seqlen}")
        ids = torch.as_tensor(ids, dtype=torch.int64)
        held = len(ids) // HELD_OUT
        if held < seqlen:
            raise ValueError(
                f"the text has {len(ids):,} tokens, and windows of {seqlen} need {seqlen * HELD_OUT:,}: "
                "give more text or a smaller --seqlen"
            )
        self.seqlen = seqlen
        self.trained, self.held_out = ids[:-held], ids[-held:]

    def __call__(self, batch, generator, held_out=False):
        ids = self.held_out if held_out else self.trained
        starts = torch.randint(len(ids) - self.seqlen + 1, (batch, 1), generator=generator)
        window = ids[starts + torch.arange(self.seqlen)]
        return Batch(window, torch.ones(self.seqlen - 1, dtype=torch.bool))


class Copy:
    """Strings of (seqlen - 1) // 2 symbols, each drawn evenly from ALPHABET."""

    def __init__(self, seqlen):
        if seqlen < 3:
            raise ValueError(f"--seqlen must be at least 3 for copying, got {seqlen}")
        self.length = (seqlen - 1) // 2

    def __call__(self, batch, generator, held_out=False):
        n = self.length
        string = torch.randint(1, 1 + ALPHABET, (batch, n), generator=generator)
        ids = torch.cat([string, torch.full((batch, 1), SEPARATOR), string], dim=1)
        return Batch(ids, torch.arange(2 * n) >= n)


class Recall:
    """seqlen // 4 different keys with values, and as many questions; of both there are twice as many to choose from.

    Keys are the ids 0 to 2 pairs - 1, values 2 pairs to 4 pairs - 1.
    """

    def __init__(self, seqlen):
        if seqlen < 4:
            raise ValueError(f"--seqlen must be at least 4 for recall, got {seqlen}")
        self.pairs = seqlen // 4

    def __call__(self, batch, generator, held_out=False):
        n = self.pairs
        keys = torch.rand(batch, 2 * n, generator=generator).argsort(1)[:, :n]
        values = torch.randint(2 * n, 4 * n, (batch, n), generator=generator)
        asked = torch.rand(batch, n, generator=generator).argsort(1)
        pairs = torch.stack([keys, values], dim=2)
        questions = pairs.gather(1, asked[..., None].expand(-1, -1, 2))
        ids = torch.cat([pairs, questions], dim=1).flatten(1)
        position = torch.arange(4 * n - 1)
        return Batch(ids, (position >= 2 * n) & (position % 2 == 0))


def generator_of(seed, part, step):
    """The random numbers of one batch, so that a run can go on at any step without a state."""
    digest = hashlib.sha256(f"{seed}/{part}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
