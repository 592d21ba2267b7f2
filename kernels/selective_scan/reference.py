"""Selective scan, written as the recurrence. This file is the specification.

    d_t = softplus(delta_t + delta_bias)                 (without softplus or bias where those are off)
    h_t = exp(d_t A) h_{t-1} + (d_t u_t) B_t             h_{-1} = initial_state, or 0
    y_t = (<h_t, C_t> + D u_t) silu(z_t)                 (without the gate if z is None)

per channel, with a state h of dstate numbers; <,> sums over them. The channels are cut into ngroups equal
groups and B_t, C_t are shared within a group. u and delta are the paper's letters for input and step size
(Mamba, arXiv 2312.00752, algorithm 2); the interface is that of mamba-ssm's `selective_scan_fn`.
"""

import torch
import torch.nn.functional as F

from kernels.implementations import note
from kernels.layout import is_token_major
from kernels.selective_scan.sequences import any_sequences


@any_sequences
def selective_scan_ref(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_states=0
):
    """Run the recurrence one token at a time, in float32, or in float64 if `u` is.

    Args:
        u: (batch, dim, seqlen) input.
        delta: (batch, dim, seqlen) step size, before bias and softplus.
        A: (dim, dstate) state decay, negative.
        B: (batch, ngroups, dstate, seqlen) input projection.
        C: (batch, ngroups, dstate, seqlen) output projection.
        D: (dim,) skip connection, or None.
        z: (batch, dim, seqlen) gate, or None.
        delta_bias: (dim,) added to `delta`, or None.
        delta_softplus: whether softplus makes the step size positive.
        initial_state: (batch, dim, dstate), or None for zeros; one for each packed sequence.
        cu_seqlens: (n + 1,) where the packed sequences begin, and the end; batch is 1 then. Or None.
        reverse: run from the last token (of each sequence) to the first; `last_state` is then that at the first.
        return_states: k > 0 for the states after k, 2 k, ... tokens, counted from where the scan starts.

    Returns:
        y: (batch, dim, seqlen) in the dtype and the layout of `u`.
        last_state: (batch or n, dim, dstate) in the dtype of the recurrence.
        states: (batch, seqlen // k, dim, dstate) likewise, in the order of their tokens; or None.
    """
    note("selective_scan", "reference.selective_scan")
    return _recur(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_states
    )  # fmt: skip


def _recur(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_states):
    dtype = torch.promote_types(u.dtype, torch.float32)
    to = lambda t: None if t is None else t.to(dtype)
    x, delta, A, D, z, delta_bias = (to(t) for t in (u, delta, A, D, z, delta_bias))
    batch, dim, _ = x.shape
    per_group = dim // B.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    h = x.new_zeros(batch, dim, A.shape[1]) if initial_state is None else to(initial_state)
    ys, states = [], []
    # tokens by unbind: the gradient of a slice would be as large as the whole sequence
    for d, x_t, *rows in zip(*(t.unbind(-1) for t in (delta, x, B, C)), strict=True):
        B_t, C_t = (to(row).repeat_interleave(per_group, dim=1) for row in rows)
        h = torch.exp(d[..., None] * A) * h + (d * x_t)[..., None] * B_t
        ys.append((h * C_t).sum(-1))
        if return_states and len(ys) % return_states == 0:
            states.append(h)
    # stacked along the axis that is outer in memory, so that y has the layout of u
    y = torch.stack(ys, 1).transpose(1, 2) if is_token_major(u) else torch.stack(ys, 2)

    if D is not None:
        y = y + D[:, None] * x
    if z is not None:
        y = y * F.silu(z)
    states = torch.stack(states, 1) if states else h.new_empty(batch, 0, dim, A.shape[1])
    return y.to(u.dtype), h, states if return_states else None


def selective_state_update_ref(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """One token of the recurrence, in place.

    Args:
        state: (batch, dim, dstate), becomes the state after the token.
        x, dt, z: (batch, dim); z may be None.
        A, D, dt_bias, dt_softplus: as in `selective_scan_ref`.
        B, C: (batch, ngroups, dstate).

    Returns:
        y: (batch, dim) in the dtype of `x`.
    """
    note("selective_state_update", "reference.selective_state_update")
    token = lambda t: None if t is None else t.unsqueeze(-1)
    y, after, _ = _recur(
        token(x), token(dt), A, token(B), token(C), D, token(z), dt_bias, dt_softplus, state, 0
    )  # fmt: skip
    state.copy_(after)
    return y[..., 0]
