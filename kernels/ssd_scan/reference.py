"""The scan of Mamba-2 (state space duality), written as the recurrence. This file is the specification.

    d_t = softplus(dt_t + dt_bias)                       (without softplus or bias where those are off)
    h_t = exp(d_t A) h_{t-1} + (d_t x_t) B_t'            h_{-1} = initial_state, or 0
    y_t = h_t C_t + D x_t

per head, with a state h of (headdim, dstate); A, D and the step size are one number a head, where Mamba-1 has one a
channel and state. The heads are cut into ngroups equal groups, and B_t, C_t are shared within a group (Dao and Gu
2024, arXiv 2405.21060, section 7; the layout is that of mamba-ssm's `mamba_chunk_scan_combined`).
"""

import torch
import torch.nn.functional as F

from kernels.implementations import note


def ssd_scan_ref(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    """Run the recurrence one token at a time, in float32, or in float64 if `x` is.

    Args:
        x: (batch, seqlen, nheads, headdim) input.
        dt: (batch, seqlen, nheads) step size, before bias and softplus.
        A: (nheads,) state decay, negative.
        B, C: (batch, seqlen, ngroups, dstate) input and output projections.
        D: (nheads,) skip connection, or None.
        dt_bias: (nheads,) added to `dt`, or None.
        dt_softplus: whether softplus makes the step size positive.
        initial_state: (batch, nheads, headdim, dstate), or None for zeros.

    Returns:
        y: (batch, seqlen, nheads, headdim) in the dtype of `x`.
        last_state: (batch, nheads, headdim, dstate) in the dtype of the recurrence.
    """
    note("ssd_scan", "reference.ssd_scan")
    wide, d, A, B, C = prepare(x, dt, A, B, C, dt_bias, dt_softplus)
    batch, _, nheads, headdim = x.shape
    per_group = nheads // B.shape[2]
    if initial_state is None:
        h = wide.new_zeros(batch, nheads, headdim, B.shape[3])
    else:
        h = initial_state.to(wide.dtype)
    ys = []
    for x_t, d_t, *rows in zip(*(t.unbind(1) for t in (wide, d, B, C)), strict=True):
        B_t, C_t = (row.repeat_interleave(per_group, dim=1) for row in rows)
        h = torch.exp(d_t * A)[..., None, None] * h
        h = h + (d_t[..., None] * x_t)[..., None] * B_t[:, :, None]
        ys.append((h * C_t[:, :, None]).sum(-1))
    return skip(torch.stack(ys, 1), wide, D).to(x.dtype), h


def prepare(x, dt, A, B, C, dt_bias, dt_softplus):
    """x, step size, A, B and C in the dtype of the recurrence: float32, or float64 if `x` is."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    d = dt.to(dtype)
    if dt_bias is not None:
        d = d + dt_bias.to(dtype)
    if dt_softplus:
        d = F.softplus(d)
    return x.to(dtype), d, A.to(dtype), B.to(dtype), C.to(dtype)


def skip(y, x, D):
    """y + D x, both (batch, seqlen, nheads, headdim); `y` where D is None."""
    return y if D is None else y + D.to(y.dtype)[:, None] * x
