"""The scan of Mamba-2: the public operator."""

import torch

from kernels.checks import check_tensor
from kernels.implementations import check_impl, find
from kernels.observation import tell
from profiles.ranges import annotate

MAX_DSTATE = 256


def ssd_scan(
    x,
    dt,
    A,
    B,
    C,
    D=None,
    dt_bias=None,
    dt_softplus=False,
    initial_state=None,
    return_last_state=False,
    *,
    impl="triton",
):
    """Mamba-2's scan, y_t = h_t C_t + D x_t with one decay a head; the equation is in `reference.py`.

    One token of it is `selective_state_update` with dim = nheads * headdim.

    Args:
        x: (batch, seqlen, nheads, headdim).
        dt: (batch, seqlen, nheads).
        A: (nheads,), negative.
        B, C: (batch, seqlen, ngroups, dstate) with nheads % ngroups == 0; dstate is 1 to 256.
        D, dt_bias: (nheads,) or None.
        dt_softplus: the step size is softplus(dt + dt_bias).
        initial_state: (batch, nheads, headdim, dstate) float32 (or float64), or None.
        return_last_state: also return the state after the last token.
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y: (batch, seqlen, nheads, headdim) in the dtype of `x`; with `return_last_state` a tuple of it and
        last_state: (batch, nheads, headdim, dstate) float32 (float64 if `x` is). Both are differentiable.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, device or dtype, or `impl` is unknown.
        kernels.implementations.Unavailable: `impl` cannot run here; the message says why.
    """
    check_impl(impl)
    check_tensor("x", x, (None, None, None, None), like=x)
    if x.numel() == 0:
        raise ValueError(
            f"x must have at least one batch, token, head and channel, got {tuple(x.shape)}"
        )
    batch, seqlen, nheads, headdim = x.shape
    check_tensor("dt", dt, (batch, seqlen, nheads), like=x)
    check_tensor("A", A, (nheads,), like=x)
    check_tensor("B", B, (batch, seqlen, None, None), like=x)
    ngroups, dstate = B.shape[2:]
    if ngroups == 0 or nheads % ngroups:
        raise ValueError(
            f"B must have a number of groups that divides nheads={nheads}, got {ngroups}"
        )
    if not 1 <= dstate <= MAX_DSTATE:
        raise ValueError(f"B must have 1 to {MAX_DSTATE} states (its last axis), got {dstate}")
    check_tensor("C", C, B.shape, like=x)
    for name, t in (("D", D), ("dt_bias", dt_bias)):
        if t is not None:
            check_tensor(name, t, (nheads,), like=x)
    if not isinstance(dt_softplus, bool):
        raise TypeError(f"dt_softplus must be True or False, got {dt_softplus!r}")
    if initial_state is not None:
        shape, states = (batch, nheads, headdim, dstate), (torch.float32, torch.float64)
        check_tensor("initial_state", initial_state, shape, like=x, dtypes=states)

    scan = find("ssd_scan", impl, x.device)
    tell("ssd_scan", x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus)
    with annotate("op/ssd_scan", payload=seqlen):
        y, last_state = scan(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    return (y, last_state) if return_last_state else y
