"""`torch`: the scan of Mamba-2 in plain PyTorch, on any device, differentiable, in bounded memory.

A chunk of CHUNK tokens is two matrix products a head, as in attention: scores C B' times the decays between its
tokens, and what the state before it brings (Dao and Gu 2024, listing 1). Chunks follow each other, so that memory
is O(batch * nheads * (CHUNK² + headdim * dstate)) besides the output. The exponent of a decay is summed over the
tokens that it spans, not taken as a difference of two sums from the start, which would cancel.
"""

import torch
from torch.utils.checkpoint import checkpoint

from kernels.checks import wants_gradient
from kernels.implementations import note
from kernels.ssd_scan.reference import prepare, skip

CHUNK = 64  # tokens


def ssd_scan_torch(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    """Arguments and returns as in `ssd_scan_ref`; gradients recompute each chunk from the state before it."""
    note("ssd_scan", "torch.ssd_scan")
    grad = wants_gradient(x, dt, A, B, C, D, dt_bias, initial_state)
    wide, d, A, B, C = prepare(x, dt, A, B, C, dt_bias, dt_softplus)
    batch, seqlen, nheads, headdim = x.shape
    if initial_state is None:
        h = wide.new_zeros(batch, nheads, headdim, B.shape[3])
    else:
        h = initial_state.to(wide.dtype)
    ys = []
    for start in range(0, seqlen, CHUNK):
        piece = [t[:, start : start + CHUNK] for t in (d[..., None] * wide, d * A, B, C)]
        if grad:
            y, h = checkpoint(_chunk, *piece, h, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = _chunk(*piece, h)
        ys.append(y)
    return skip(torch.cat(ys, 1), wide, D).to(x.dtype), h


def _chunk(x, exponents, B, C, h):
    """One chunk of the inputs d x, the exponents d A, and B, C: (y, the state after it)."""
    ngroups = B.shape[2]
    per_group = x.shape[2] // ngroups
    x, exponents = x.transpose(1, 2), exponents.transpose(1, 2)  # (batch, nheads, tokens, ...)
    B, C = (t.transpose(1, 2).repeat_interleave(per_group, dim=1) for t in (B, C))
    between = _sums(exponents)
    y = (C @ B.transpose(2, 3) * torch.exp(between)) @ x
    from_start = torch.exp(exponents.cumsum(2))[..., None]
    y = y + from_start * (C @ h.transpose(2, 3))
    to_end = torch.exp(between[:, :, -1, :, None])
    h = from_start[:, :, -1:] * h + x.transpose(2, 3) @ (to_end * B)
    return y.transpose(1, 2), h


def _sums(exponents):
    """(…, tokens, tokens): the sum of the exponents after token s up to token t; -inf where s comes after t."""
    tokens = exponents.shape[-1]
    ones = torch.ones(tokens, tokens, dtype=torch.bool, device=exponents.device)
    steps = exponents[..., None].expand(*exponents.shape, tokens)
    sums = steps.masked_fill(~ones.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~ones.tril(), float("-inf"))
