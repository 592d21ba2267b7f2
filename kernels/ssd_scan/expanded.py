"""`cpu`, and what `forward.py` leaves to it of `triton`: Mamba-2's scan on the kernels of Mamba-1's.

A head of Mamba-2 is headdim channels of Mamba-1 that share the step size, and whose states share the decay; so
`selective_scan` computes it exactly. It takes one exponential a channel and state where one a head would do: this
form is right, bounded in memory and no slower than Mamba-1 at the same sizes, and gains nothing from Mamba-2's
restriction, which is there for matrix units.
"""

from kernels.implementations import note
from kernels.selective_scan.op import selective_scan


def ssd_scan_triton(*operands):
    """Arguments and returns as in `ssd_scan_ref`."""
    return _scan("triton", *operands)


def ssd_scan_cpu(*operands):
    """Arguments and returns as in `ssd_scan_ref`."""
    return _scan("cpu", *operands)


def _scan(impl, x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    note("ssd_scan", f"{impl}.selective_scan, a head's channels as Mamba-1's")
    nheads, headdim, dstate = *x.shape[2:], B.shape[3]
    channels = lambda t: None if t is None else t.repeat_interleave(headdim, dim=-1)
    y, last_state = selective_scan(
        x.flatten(2).transpose(1, 2),
        channels(dt).transpose(1, 2),
        channels(A)[:, None].expand(-1, dstate),
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        D=channels(D),
        delta_bias=channels(dt_bias),
        delta_softplus=dt_softplus,
        initial_state=None if initial_state is None else initial_state.flatten(1, 2),
        return_last_state=True,
        impl=impl,
    )
    heads = (nheads, headdim)
    return y.transpose(1, 2).unflatten(2, heads), last_state.unflatten(1, heads)
