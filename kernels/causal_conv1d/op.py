"""The public operator `causal_conv1d`: checks, then the implementation that the caller named."""

from kernels import checks
from kernels.implementations import find
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
        impl: triton, cuda, torch, cpu, hf or reference.

    Returns:
        y (batch, dim, seqlen) in the dtype and layout of `x`; with return_final_state, (y, final_state) where
        final_state is (batch, dim, width - 1) in the dtype of `x`.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        kernels.implementations.Unavailable: `impl` cannot run here.
        NotImplementedError: `impl` cannot compute this case; the message names one that can.
    """
    checks.check_tensor("x", x, (None, None, None), x)
    batch, dim, seqlen = x.shape
    if x.numel() == 0:
        raise ValueError(f"x must have at least one element, got shape {tuple(x.shape)}")
    checks.check_tensor("weight", weight, (dim, None), x)
    width = weight.shape[1]
    if not 2 <= width <= 8:
        raise ValueError(f"weight must have a width of 2 to 8, got {width}")
    if bias is not None:
        checks.check_tensor("bias", bias, (dim,), x)
    if initial_state is not None:
        checks.check_tensor("initial_state", initial_state, (batch, dim, width - 1), x)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    compute = find("causal_conv1d", impl, x.device)
    with annotate("op/causal_conv1d", payload=seqlen):
        y, final_state = compute(x, weight, bias, initial_state, activation)
    return (y, final_state) if return_final_state else y
