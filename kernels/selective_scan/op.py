"""Selective scan: the public operator."""

import torch

from kernels.checks import check_tensor
from kernels.implementations import check_impl, find
from profiles.ranges import annotate

MAX_DSTATE = 256


def selective_scan(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    initial_state=None,
    return_last_state=False,
    *,
    impl="triton",
):
    """Mamba's selective scan, y_t = (<h_t, C_t> + D u_t) silu(z_t); the equation is in `reference.py`.

    Any strides are accepted; a channel-last view (a transposed (batch, seqlen, dim) tensor) is native, never
    copied, and gives a channel-last output. delta, B, C and z may have other float dtypes than `u`.

    Args:
        u, delta, z: (batch, dim, seqlen); `z` gates the output and may be None.
        A: (dim, dstate), negative; dstate is 1 to 256.
        B, C: (batch, dstate, seqlen), or (batch, ngroups, dstate, seqlen) with dim % ngroups == 0.
        D, delta_bias: (dim,) or None.
        delta_softplus: the step size is softplus(delta + delta_bias).
        initial_state: (batch, dim, dstate) float32 (or float64), the state before the first token, or None.
        return_last_state: return (y, last_state) instead of y.
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y: (batch, dim, seqlen) in the dtype and the layout of `u`.
        last_state: (batch, dim, dstate) float32 (float64 if `u` is), if asked for.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, device or dtype, or `impl` is unknown.
        kernels.implementations.Unavailable: `impl` cannot run here; the message says why.
        NotImplementedError: `impl` lacks what was asked for; the message names one that has it.
    """
    check_impl(impl)
    check_tensor("u", u, (None, None, None), like=u)
    batch, dim, seqlen = u.shape
    if u.numel() == 0:
        raise ValueError(f"u must have at least one batch, channel and token, got {tuple(u.shape)}")
    check_tensor("delta", delta, u.shape, like=u)
    check_tensor("A", A, (dim, None), like=u)
    dstate = A.shape[1]
    if not 1 <= dstate <= MAX_DSTATE:
        raise ValueError(f"A must have 1 to {MAX_DSTATE} states (its columns), got {dstate}")
    B, C = (_grouped(name, t, u, dstate) for name, t in (("B", B), ("C", C)))
    if B.shape[1] != C.shape[1]:
        raise ValueError(f"C must have as many groups as B, got {C.shape[1]} and {B.shape[1]}")
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        if t is not None:
            check_tensor(name, t, (dim,), like=u)
    if z is not None:
        check_tensor("z", z, u.shape, like=u)
    if not isinstance(delta_softplus, bool):
        raise TypeError(f"delta_softplus must be True or False, got {delta_softplus!r}")
    if initial_state is not None:
        states = (torch.float32, torch.float64)
        check_tensor("initial_state", initial_state, (batch, dim, dstate), like=u, dtypes=states)

    scan = find("selective_scan", impl, u.device)
    with annotate("op/selective_scan", payload=seqlen):
        y, last_state = scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state
        )  # fmt: skip
    return (y, last_state) if return_last_state else y


def _grouped(name, t, u, dstate):
    """Check B or C and give it its group axis: (batch, ngroups, dstate, seqlen)."""
    batch, dim, seqlen = u.shape
    if isinstance(t, torch.Tensor) and t.dim() == 4:
        check_tensor(name, t, (batch, None, dstate, seqlen), like=u)
        if t.shape[1] == 0 or dim % t.shape[1]:
            raise ValueError(
                f"{name} must have a number of groups that divides dim={dim}, got {t.shape[1]}"
            )
        return t
    check_tensor(name, t, (batch, dstate, seqlen), like=u)
    return t.unsqueeze(1)
