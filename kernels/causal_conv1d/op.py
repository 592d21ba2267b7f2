"""Causal convolution: the public operators."""

import torch

from kernels.causal_conv1d import autograd
from kernels.checks import (
    check_cu_seqlens,
    check_no_gradient,
    check_tensor,
    check_written,
    wants_gradient,
)
from kernels.implementations import BACKWARD, check_impl, find
from profiles.ranges import annotate

ACTIVATIONS = (None, "silu")


def causal_conv1d(
    x,
    weight,
    bias=None,
    initial_state=None,
    return_final_state=False,
    activation=None,
    *,
    cu_seqlens=None,
    impl="triton",
):
    """y_t = act(bias + sum_k weight[:, k] x_{t - width + 1 + k}), channel by channel.

    Args:
        x: (batch, dim, seqlen), any strides; a channel-last view (stride(1) == 1) is native and never copied.
        weight: (dim, width), width 2 to 8; the last tap multiplies the present token.
        bias: (dim,) or None.
        initial_state: (batch, dim, width - 1), the inputs before the first token; None for zeros.
        return_final_state: also return the last width - 1 inputs, the initial state of what follows.
        activation: None or "silu".
        cu_seqlens: int32 (n + 1,), bounds of n sequences packed along seqlen with batch 1: none sees another. There
            are n initial and final states then.
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y (batch, dim, seqlen) in the dtype and layout of `x`; with return_final_state, (y, final_state) where
        final_state is (batch, dim, width - 1), or (n, dim, width - 1), in the dtype of `x`. Both are differentiable.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        kernels.implementations.Unavailable: `impl` cannot run here.
        NotImplementedError: `impl` cannot compute this case; the message names one that can.
    """
    check_impl(impl)
    check_tensor("x", x, (None, None, None), like=x)
    batch, dim, seqlen = x.shape
    if x.numel() == 0:
        raise ValueError(f"x must have at least one element, got shape {tuple(x.shape)}")
    width = _check_filters(x, weight, bias, activation)
    check_cu_seqlens(cu_seqlens, x, seqlen)
    if initial_state is not None:
        sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
        check_tensor("initial_state", initial_state, (sequences, dim, width - 1), like=x)

    conv = find("causal_conv1d", impl, x.device)
    differentiate = wants_gradient(x, weight, bias, initial_state)
    if impl in BACKWARD["causal_conv1d"] and (differentiate or torch.compiler.is_compiling()):
        conv = autograd.registered(impl)
    with annotate("op/causal_conv1d", payload=seqlen):
        y, final_state = conv(x, weight, bias, initial_state, activation, cu_seqlens)
    return (y, final_state) if return_final_state else y


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None, *, impl="triton"):
    """One token of `causal_conv1d`, for decoding: `conv_state` moves left by one in place, the token comes last.

    Args:
        x: (batch, dim).
        conv_state: (batch, dim, at least width - 1), the latest inputs, the newest last; any float dtype and strides.
        weight, bias, activation: as in `causal_conv1d`.
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y: (batch, dim) in the dtype of `x`. Not differentiable: a state that is overwritten has no gradient.

    Raises:
        As `causal_conv1d`; NotImplementedError where a gradient is wanted.
    """
    check_impl(impl)
    check_tensor("x", x, (None, None), like=x)
    batch, dim = x.shape
    if x.numel() == 0:
        raise ValueError(f"x must have at least one element, got shape {tuple(x.shape)}")
    width = _check_filters(x, weight, bias, activation)
    check_tensor("conv_state", conv_state, (batch, dim, None), like=x)
    check_written("conv_state", conv_state)
    if conv_state.shape[2] < width - 1:
        raise ValueError(
            f"conv_state must hold at least {width - 1} inputs, got {conv_state.shape[2]}"
        )
    operands = (x, conv_state, weight, bias)
    check_no_gradient("causal_conv1d_update", impl, *operands, remedy="use causal_conv1d")

    update = find("causal_conv1d_update", impl, x.device)
    if impl in autograd.OPAQUE and torch.compiler.is_compiling():
        update = autograd.registered_update(impl)
    with annotate("op/causal_conv1d_update"):
        return update(x, conv_state, weight, bias, activation)


def _check_filters(x, weight, bias, activation):
    """Check what both operators share; returns the width."""
    dim = x.shape[1]
    check_tensor("weight", weight, (dim, None), like=x)
    width = weight.shape[1]
    if not 2 <= width <= 8:
        raise ValueError(f"weight must have a width of 2 to 8, got {width}")
    if bias is not None:
        check_tensor("bias", bias, (dim,), like=x)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    return width
