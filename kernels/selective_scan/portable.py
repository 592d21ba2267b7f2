"""`torch`: the scan in plain PyTorch, on any device, differentiable, in bounded memory.

Time is cut into blocks, and a block into chunks of CHUNK tokens. Decays exp(d A) and inputs (d u) B of a block
come from a few large operations; the recurrence then takes one multiply-add a token, for all chunks of the
block at once, and products with C for all tokens together. Chunks after the first started from zero: they
receive their true first state times exp(A * sum of steps), whose exponent is never positive, so nothing can
overflow and nothing is divided by a product that underflowed.

A correction costs a second exponential per state, which a GPU gives for 32 times fewer launches and a CPU does
not: there a block is one chunk (of 16 tokens, the fastest of 8 to 128 on two cores: it stays in cache).
Memory is O(batch * block * dim * dstate); gradients recompute each block from the state before it. Packed
sequences run one after the other, and a reverse scan on flipped copies.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from kernels.implementations import note
from kernels.layout import is_token_major
from kernels.selective_scan.sequences import any_sequences

CHUNK = 16  # tokens


@any_sequences
def selective_scan_torch(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_states=0
):
    """Arguments and returns as in `selective_scan_ref`; computes in float32, or in float64 if `u` is.

    The bounds of packed sequences are read by the host, which on a GPU waits for them.
    """
    note("selective_scan", "torch.selective_scan")
    chunks = 1 if u.device.type == "cpu" else 32
    return scan_blocks(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, chunks, return_states
    )  # fmt: skip


def scan_blocks(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, chunks, return_states=0
):
    """`selective_scan_torch` of whole sequences, with blocks of `chunks` chunks."""
    batch, dim, seqlen = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    rates = A.to(dtype)
    h = u.new_zeros(batch, dim, A.shape[1], dtype=dtype)
    if initial_state is not None:
        h = initial_state.to(dtype)

    ys, states = [], []
    for start in range(0, seqlen, chunks * CHUNK):
        piece = lambda t, s=slice(start, start + chunks * CHUNK): None if t is None else t[..., s]
        # which states of the block to keep: after every k-th token, counted from the start of the sequence
        keep = slice(-(start + 1) % return_states, None, return_states) if return_states else None
        block = (
            *(piece(t) for t in (u, delta, B, C, z)), rates, D, delta_bias, delta_softplus, h, chunks, grad, keep
        )  # fmt: skip
        if grad:
            y, h, kept = checkpoint(
                _scan_block, *block, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y, h, kept = _scan_block(*block)
        ys.append(y)  # (batch, tokens, dim)
        states.append(kept)
    states = torch.cat(states, 1) if return_states else None
    if is_token_major(u):
        return torch.cat(ys, 1).transpose(1, 2), h, states
    return torch.cat([y.transpose(1, 2) for y in ys], 2), h, states


def _scan_block(u, delta, B, C, z, A, D, delta_bias, delta_softplus, h, chunks, grad, keep):
    """One block: y (batch, tokens, dim) in the dtype of `u`, the state after it, and the states that `keep` slices."""
    batch, dim, tokens = u.shape
    ngroups, dstate = B.shape[1:3]
    x = u.transpose(1, 2).to(A.dtype)
    d = delta.transpose(1, 2).to(A.dtype)
    if delta_bias is not None:
        d = d + delta_bias.to(A.dtype)
    if delta_softplus:
        d = F.softplus(d)

    # (batch, chunk, token, group, channel of the group, state); a step of zero leaves the state as it is
    chunks = min(chunks, tokens)
    pad = -tokens % chunks
    split = lambda t, *sizes: F.pad(t, (0, 0, 0, pad)).reshape(batch, chunks, -1, *sizes)
    steps = split(d, ngroups, dim // ngroups, 1)
    B, C = (t.to(A.dtype).permute(0, 3, 1, 2).flatten(2) for t in (B, C))
    A = A.view(ngroups, dim // ngroups, dstate)
    decays = torch.exp(steps * A)
    states = split(d * x, ngroups, dim // ngroups, 1) * split(B, ngroups, 1, dstate)

    running = torch.zeros_like(states[:, :, 0])
    running = torch.cat([h.view_as(running[:, :1]), running[:, 1:]], 1)
    found = []
    for t in range(states.shape[2]):
        add = (
            torch.addcmul if grad else torch.Tensor.addcmul_
        )  # in place where no gradient needs the input
        running = add(states[:, :, t], decays[:, :, t], running)
        found.append(running)
    if grad:
        states = torch.stack(found, 2)
    if chunks > 1:
        states = _carry(states, torch.exp(steps.cumsum(2) * A))

    y = (states @ split(C, ngroups, dstate, 1)).reshape(batch, -1, dim)[:, :tokens]
    if D is not None:
        y = y + D.to(x.dtype) * x
    if z is not None:
        y = y * F.silu(z.transpose(1, 2).to(x.dtype))
    # copies, so that the states of the block can be freed
    last = states[:, -1, -1].clone().view(batch, dim, dstate)
    kept = None
    if keep is not None:
        kept = states.reshape(batch, -1, dim, dstate)[:, :tokens][:, keep].clone()
    return y.to(u.dtype), last, kept


def selective_state_update_torch(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """Arguments and returns as in `selective_state_update_ref`."""
    note("selective_state_update", "torch.selective_state_update")
    dtype = torch.promote_types(x.dtype, torch.float32)
    ngroups = B.shape[1]
    grouped = lambda t: t.to(dtype).unflatten(
        1, (ngroups, -1)
    )  # (batch, group, channel of the group, …)
    d, u = dt.to(dtype), x.to(dtype)
    if dt_bias is not None:
        d = d + dt_bias.to(dtype)
    if dt_softplus:
        d = F.softplus(d)
    decay = torch.exp(d[..., None] * A.to(dtype))
    h = torch.addcmul(
        grouped(d * u)[..., None] * B.to(dtype)[:, :, None],
        decay.unflatten(1, (ngroups, -1)),
        grouped(state),
    )
    y = (h @ C.to(dtype)[..., None]).flatten(1)
    state.copy_(h.flatten(1, 2))
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype)


def _carry(states, decays):
    """Add to every chunk what is left of the state before it; `decays` count from the start of the chunk."""
    end = states[:, 0, -1]
    before = [torch.zeros_like(end)]
    for k in range(1, states.shape[1]):
        before.append(end)
        end = torch.addcmul(states[:, k, -1], decays[:, k, -1], end)
    return torch.addcmul(states, decays, torch.stack(before, 1)[:, :, None])
