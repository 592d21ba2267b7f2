"""Session text -> the token ids that every cell of a run reads.

All cells of a run read prefixes of one stream: a cell of seqlen tokens takes the first seqlen of each row. Rows
are filled one after the other with consecutive sessions.
"""

import hashlib
import itertools
from dataclasses import dataclass

import torch

from bench.sessions import text


class TokensError(ValueError):
    """Sessions that do not make enough tokens; the message is one line."""


@dataclass(frozen=True)
class Tokens:
    """The input of a run.

    Attributes:
        ids: (batch, length) int64.
        padded: zeros at the end of the row with the most of them; always 0 under the lab protocol.
        sessions: names of the sessions that were read, in order.
        sha256: hash of `ids` as little-endian int64, row by row.
    """

    ids: torch.Tensor
    padded: int
    sessions: list[str]
    sha256: str

    def padding_at(self, seqlen):
        """How many of the first `seqlen` tokens of a row are padding."""
        return max(0, self.padded - (self.ids.shape[1] - seqlen))


def token_stream(sessions, tokenizer, length, batch, protocol):
    """Tokenise `sessions` into `batch` rows of `length` tokens.

    `lab` reads as many sessions as it takes. `paper` concatenates what there is and appends zeros where the text
    is shorter, as the paper did; row r starts at session r, so that rows differ.

    Args:
        sessions: an iterable of Session, which may be endless.
        tokenizer: with `encode(text) -> list[int]` and `name`.

    Raises:
        TokensError: the lab protocol found too little text.
    """
    fill = _pad_rows if protocol == "paper" else _fill_rows
    rows, names, padded = fill(iter(sessions), tokenizer, length, batch)
    ids = torch.tensor(rows, dtype=torch.int64)
    digest = hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
    return Tokens(ids, padded, names, digest)


def _fill_rows(sessions, tokenizer, length, batch):
    rows, names = [], []
    for _ in range(batch):
        row = []
        while len(row) < length:
            session = next(sessions, None)
            if session is None:
                raise TokensError(
                    f"sessions: they make {len(rows)} rows of {length:,} tokens and {len(row):,} tokens more, "
                    f"and {batch} rows are needed: give more text, shorter --seqlens or a smaller --batch "
                    "(--protocol paper pads with zeros instead)"
                )
            names.append(session.id)
            row += _encode(session, tokenizer)
        rows.append(row[:length])
    return rows, names, 0


def _pad_rows(sessions, tokenizer, length, batch):
    names, encoded = [], []
    while sum(map(len, encoded)) < length and (session := next(sessions, None)) is not None:
        names.append(session.id)
        encoded.append(_encode(session, tokenizer))
    if not encoded:
        raise TokensError("sessions: there are none")
    rows = []
    for first in range(batch):
        turned = [encoded[(first + i) % len(encoded)] for i in range(len(encoded))]
        rows.append(list(itertools.chain.from_iterable(turned))[:length])
    padded = length - min(len(row) for row in rows)
    rows = [row + [0] * (length - len(row)) for row in rows]
    return rows, names, padded


def _encode(session, tokenizer):
    return tokenizer.encode(text(session) + "\n")
