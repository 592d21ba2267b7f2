"""Mamba's mixer over a sequence that is cut into one segment a rank.

The convolution needs the last width - 1 inputs of the segments before. The scan is linear in its state,

    h_end = exp(A sum of steps) h_start + (h_end of the segment from a state of zero)

so each rank runs its segment from zero, all exchange end states and sums of steps, (batch, dim, dstate + 1) numbers a
layer and rank, every rank folds those before it into its first state, and runs its segment again from there. That is
exact with any implementation that takes an initial state, and costs two scans instead of one on the ranks between the
first, which starts from zero, and the last, whose end nobody needs. Correcting y by C_t exp(A sum of steps) h_start
instead would take as many exponentials as the second scan.
"""

import torch
import torch.nn.functional as F

from models.mamba_mixer import OperatorMixer, rates

TOKENS = 4096  # whose steps are in memory at a time for their sum


class ParallelMixer(OperatorMixer):
    """`OperatorMixer` on one segment of the sequence; it has no cache and no gradient."""

    def __init__(self, mixer, impl, ranks):
        super().__init__(mixer, impl)
        self.ranks = ranks

    def _convolve(self, x, before):
        return super()._convolve(x, self._halo(x, self.conv_kernel_size - 1))

    def _halo(self, x, width):
        """(batch, dim, width) inputs before this segment; it may reach beyond the segment before."""
        ranks = self.ranks
        tail = x[..., -width:]
        tails = ranks.gather(F.pad(tail, (width - tail.shape[2], 0)))
        earlier = [t[..., max(0, width - n) :] for t, n in zip(tails, ranks.lengths, strict=True)]
        return torch.cat([torch.zeros_like(tails[0]), *earlier[: ranks.rank]], 2)[..., -width:]

    def _scan(self, conv, delta, B, C, z, state):
        ranks, scan = self.ranks, super()._scan
        first, last = ranks.rank == 0, ranks.rank == len(ranks.layout) - 1
        A = rates(self)
        y = None
        if first:
            y, end = scan(conv, delta, B, C, z, None)
        elif last:
            end = A.new_zeros(len(conv), *A.shape)  # nobody asks
        else:
            _, end = scan(conv, delta, B, C, None, None)
        sums = _total_step(delta, self.dt_proj.bias, A.dtype)
        found = ranks.gather(torch.cat([end, sums[..., None]], 2))
        if first:
            return y, end
        state = torch.zeros_like(end)
        for other in found[: ranks.rank]:
            state = torch.exp(A * other[..., -1:]) * state + other[..., :-1]
        return scan(conv, delta, B, C, z, state)


def _total_step(delta, bias, dtype):
    """(batch, dim) the sum over a segment of softplus(delta + bias); delta is (batch, seqlen, dim)."""
    return sum(
        F.softplus(part.to(dtype) + bias.to(dtype)).sum(1) for part in delta.split(TOKENS, dim=1)
    )
