"""Which process holds which tokens of a sequence, and how they exchange tensors."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F


@dataclass(frozen=True)
class Ranks:
    """The processes of a group and the tokens of each.

    Attributes:
        layout: of every rank, its pieces (start, stop) of the sequence in rising order; all together they cover it.
        rank: this process.
        group: a process group of torch.distributed; None for all processes.
    """

    layout: tuple
    rank: int
    group: object = None

    def __post_init__(self):
        pieces = sorted(piece for own in self.layout for piece in own)
        starts, stops = zip(*pieces, strict=True) if pieces else ((), ())
        if starts != (0, *stops[:-1]) or any(start >= stop for start, stop in pieces):
            raise ValueError(
                f"layout must cover a sequence once, at least one token a piece, got {self.layout}"
            )
        if not all(own and list(own) == sorted(own) for own in self.layout):
            raise ValueError(
                f"layout must give every rank pieces in rising order, got {self.layout}"
            )

    @classmethod
    def contiguous(cls, seqlen, group=None):
        """One segment a rank, of lengths that differ by at most one token; ValueError for fewer tokens than ranks."""
        size = dist.get_world_size(group)
        pieces = _cut(seqlen, size, size)
        return cls(tuple((piece,) for piece in pieces), dist.get_rank(group), group)

    @classmethod
    def zigzag(cls, seqlen, group=None):
        """Of 2 n pieces, rank r of n has the r-th and the r-th from the end: all see about as many keys."""
        size = dist.get_world_size(group)
        pieces = _cut(seqlen, 2 * size, size)
        pairs = zip(pieces[:size], reversed(pieces[size:]), strict=True)
        return cls(tuple(pairs), dist.get_rank(group), group)

    @property
    def seqlen(self):
        return max(stop for own in self.layout for _, stop in own)

    @property
    def mine(self):
        """The pieces of this rank."""
        return self.layout[self.rank]

    @property
    def lengths(self):
        """How many tokens each rank has."""
        return [sum(stop - start for start, stop in own) for own in self.layout]

    @property
    def is_contiguous(self):
        """Whether each rank has one segment, in the order of the ranks."""
        return all(len(own) == 1 for own in self.layout) and list(self.layout) == sorted(
            self.layout
        )

    def take(self, t, dim=1):
        """The tokens of this rank out of a whole sequence along `dim`."""
        return torch.cat([t.narrow(dim, start, stop - start) for start, stop in self.mine], dim)

    def positions(self, device):
        """(1, tokens of this rank) where in the sequence they are."""
        whole = torch.arange(self.seqlen, device=device)
        return self.take(whole, 0)[None]

    def gather(self, t):
        """[the tensor of every rank], all of the same shape."""
        found = [torch.empty_like(t, memory_format=torch.contiguous_format) for _ in self.layout]
        dist.all_gather(found, t.contiguous(), group=self.group)
        return found

    def gather_sequence(self, t, dim):
        """The whole sequence from what each rank has of it along `dim`; pieces may differ in length."""
        lengths = self.lengths
        padding = [0, 0] * (t.dim() - 1 - dim % t.dim()) + [0, max(lengths) - t.shape[dim]]
        parts = self.gather(F.pad(t, padding))
        shape = list(t.shape)
        shape[dim] = self.seqlen
        whole = t.new_empty(shape)
        for own, part in zip(self.layout, parts, strict=True):
            at = 0
            for start, stop in own:
                whole.narrow(dim, start, stop - start).copy_(part.narrow(dim, at, stop - start))
                at += stop - start
        return whole


def _cut(seqlen, pieces, size):
    if seqlen < pieces:
        raise ValueError(
            f"seqlen must be at least {pieces} tokens for {size} ranks, one a piece, got {seqlen}"
        )
    bounds = [i * seqlen // pieces for i in range(pieces + 1)]
    return list(pairwise(bounds))
