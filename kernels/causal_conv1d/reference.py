"""Causal depthwise convolution, written as its sum. This file is the specification.

y_t = act(bias + sum_k weight[:, k] x_{t - width + 1 + k})        x_s of s < 0 from the initial state
"""

import torch
import torch.nn.functional as F

from kernels.causal_conv1d.sequences import any_sequences
from kernels.implementations import note


@any_sequences
def causal_conv1d_ref(x, weight, bias=None, initial_state=None, activation=None):
    """Add the taps one by one, in at least float32.

    Args:
        x: (batch, dim, seqlen) input.
        weight: (dim, width) one filter per channel; the last tap multiplies the present token.
        bias: (dim,) or None.
        initial_state: (batch, dim, width - 1) the inputs before the first token, or None for zeros; one for each
            packed sequence.
        activation: None or "silu".
        cu_seqlens: (n + 1,) where the packed sequences begin, and the end; batch is 1 then. Or None.

    Returns:
        y (batch, dim, seqlen) and the last width - 1 inputs (batch or n, dim, width - 1), both in the dtype of `x`.
    """
    note("causal_conv1d", "reference.causal_conv1d")
    return _convolve(x, weight, bias, initial_state, activation)


def _convolve(x, weight, bias, initial_state, activation):
    dtype = torch.promote_types(x.dtype, torch.float32)
    seqlen, width = x.shape[2], weight.shape[1]
    if initial_state is None:
        initial_state = x.new_zeros(*x.shape[:2], width - 1)
    inputs = torch.cat([initial_state.to(dtype), x.to(dtype)], dim=2)
    weight = weight.to(dtype)
    y = sum(weight[:, k, None] * inputs[..., k : k + seqlen] for k in range(width))
    if bias is not None:
        y = y + bias.to(dtype)[:, None]
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype), inputs[..., seqlen:].to(x.dtype)


def causal_conv1d_update_ref(x, conv_state, weight, bias, activation):
    """One token, in place.

    Args:
        x: (batch, dim).
        conv_state: (batch, dim, at least width - 1), the inputs before the token, the newest last; moves left by one.
        weight, bias, activation: as in `causal_conv1d_ref`.

    Returns:
        y (batch, dim) in the dtype of `x`.
    """
    note("causal_conv1d_update", "reference.causal_conv1d_update")
    inputs = torch.cat([conv_state, x.unsqueeze(2).to(conv_state.dtype)], dim=2)
    before = conv_state[..., conv_state.shape[2] - weight.shape[1] + 1 :]
    y, _ = _convolve(x.unsqueeze(2), weight, bias, before, activation)
    conv_state.copy_(inputs[..., 1:])
    return y[..., 0]
