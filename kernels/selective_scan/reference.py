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


def selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
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
        initial_state: (batch, dim, dstate), or None for zeros.

    Returns:
        y: (batch, dim, seqlen) in the dtype and the layout of `u`.
        last_state: (batch, dim, dstate) in the dtype of the recurrence.
    """
    note("selective_scan", "reference.selective_scan")
    dtype = torch.promote_types(u.dtype, torch.float32)
    to = lambda t: None if t is None else t.to(dtype)
    x, delta, A, D, z, delta_bias = (to(t) for t in (u, delta, A, D, z, delta_bias))
    batch, dim, seqlen = x.shape
    per_group = dim // B.shape[1]
    at = lambda t, i: to(t[..., i]).repeat_interleave(per_group, dim=1)  # (batch, dim, dstate)

    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    h = x.new_zeros(batch, dim, A.shape[1]) if initial_state is None else to(initial_state)
    ys = []
    for t in range(seqlen):
        d = delta[:, :, t, None]
        h = torch.exp(d * A) * h + d * x[:, :, t, None] * at(B, t)
        ys.append((h * at(C, t)).sum(-1))
    # stacked along the axis that is outer in memory, so that y has the layout of u
    y = torch.stack(ys, 1).transpose(1, 2) if is_token_major(u) else torch.stack(ys, 2)

    if D is not None:
        y = y + D[:, None] * x
    if z is not None:
        y = y * F.silu(z)
    return y.to(u.dtype), h
