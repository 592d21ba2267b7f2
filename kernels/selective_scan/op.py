"""Selective scan: the public operators."""

import torch

from kernels.checks import (
    check_cu_seqlens,
    check_no_gradient,
    check_tensor,
    check_written,
    wants_gradient,
)
from kernels.implementations import BACKWARD, check_impl, find
from kernels.observation import tell
from kernels.selective_scan import autograd
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
    reverse=False,
    cu_seqlens=None,
    return_states=None,
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
        return_last_state: also return the state after the last token.
        reverse: run from the last token to the first, where the last state then is.
        cu_seqlens: int32 (n + 1,), bounds of n sequences packed along seqlen with batch 1: none sees another. There
            are n initial and last states then.
        return_states: k to also return every k-th state, counted along seqlen from where the scan starts.
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y: (batch, dim, seqlen) in the dtype and the layout of `u`; or a tuple of y and, as asked for,
        last_state: (batch, dim, dstate), or (n, dim, dstate), float32 (float64 if `u` is);
        states: (batch, seqlen // k, dim, dstate) likewise, in the order of their tokens.

    Everything is differentiable, but for `states` under triton and cpu.

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
    dstate, B, C = check_operands("delta", u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    check_cu_seqlens(cu_seqlens, u, seqlen)
    if initial_state is not None:
        sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
        states = (torch.float32, torch.float64)
        check_tensor(
            "initial_state", initial_state, (sequences, dim, dstate), like=u, dtypes=states
        )
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse must be True or False, got {reverse!r}")
    if return_states is not None and not (isinstance(return_states, int) and return_states >= 1):
        raise ValueError(
            f"return_states must be None or every how many tokens, got {return_states!r}"
        )

    scan = find("selective_scan", impl, u.device)
    tell(
        "selective_scan", u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias,
        delta_softplus=delta_softplus,
    )  # fmt: skip
    differentiate = wants_gradient(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if impl in BACKWARD["selective_scan"] and (differentiate or torch.compiler.is_compiling()):
        scan = autograd.registered(impl, differentiate)
    with annotate("op/selective_scan", payload=seqlen):
        y, last_state, states = scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
            cu_seqlens, reverse, return_states or 0,
        )  # fmt: skip
    found = (y, last_state if return_last_state else None, states if return_states else None)
    found = tuple(t for t in found if t is not None)
    return found if len(found) > 1 else y


def check_operands(step, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Check what both operators take, calling the step size `step`; returns dstate, and B and C by group."""
    dim = u.shape[1]
    check_tensor(step, delta, u.shape, like=u)
    check_tensor("A", A, (dim, None), like=u)
    dstate = A.shape[1]
    if not 1 <= dstate <= MAX_DSTATE:
        raise ValueError(f"A must have 1 to {MAX_DSTATE} states (its columns), got {dstate}")
    tokens = u if u.dim() == 3 else u.unsqueeze(-1)
    B, C = (_grouped(name, t, tokens, dstate) for name, t in (("B", B), ("C", C)))
    if B.shape[1] != C.shape[1]:
        raise ValueError(f"C must have as many groups as B, got {C.shape[1]} and {B.shape[1]}")
    for name, t in (("D", D), (f"{step}_bias", delta_bias)):
        if t is not None:
            check_tensor(name, t, (dim,), like=u)
    if z is not None:
        check_tensor("z", z, u.shape, like=u)
    if not isinstance(delta_softplus, bool):
        raise TypeError(f"{step}_softplus must be True or False, got {delta_softplus!r}")
    return dstate, B, C


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


def selective_state_update(
    state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, *, impl="triton"
):
    """One token of `selective_scan`, for decoding: `state` is updated in place.

    Args:
        state: (batch, dim, dstate), any float dtype and strides; computed with in float32 at least.
        x, dt, z: (batch, dim); `z` may be None.
        A: (dim, dstate); dstate is 1 to 256.
        B, C: (batch, dstate), or (batch, ngroups, dstate) with dim % ngroups == 0.
        D, dt_bias: (dim,) or None.
        dt_softplus: the step size is softplus(dt + dt_bias).
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y: (batch, dim) in the dtype of `x`. Not differentiable: a state that is overwritten has no gradient.

    Raises:
        As `selective_scan`; NotImplementedError where a gradient is wanted.
    """
    check_impl(impl)
    check_tensor("x", x, (None, None), like=x)
    batch, dim = x.shape
    if x.numel() == 0:
        raise ValueError(f"x must have at least one batch and channel, got {tuple(x.shape)}")
    B, C = (t.unsqueeze(-1) if isinstance(t, torch.Tensor) else t for t in (B, C))
    dstate, B, C = check_operands("dt", x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    B, C = B[..., 0], C[..., 0]
    check_tensor("state", state, (batch, dim, dstate), like=x)
    check_written("state", state)
    operands = (state, x, dt, A, B, C, D, z, dt_bias)
    check_no_gradient("selective_state_update", impl, *operands, remedy="use selective_scan")

    update = find("selective_state_update", impl, x.device)
    if impl in autograd.OPAQUE and torch.compiler.is_compiling():
        update = autograd.registered_update(impl)
    with annotate("op/selective_state_update"):
        return update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
