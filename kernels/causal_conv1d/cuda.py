"""`cuda`: the causal-conv1d package (Dao-AILab), which is as fast as a copy and takes widths 2 to 4."""

import torch

from kernels import checks
from kernels.causal_conv1d.state import last_inputs
from kernels.implementations import note
from kernels.layout import is_token_major


def causal_conv1d_cuda(x, weight, bias, initial_state, activation):
    """Operands and results as `causal_conv1d_ref`; y has the layout of `x`.

    The package takes an initial state only with a channel-last x whose dim and strides are multiples of 8.
    """
    checks.check_no_gradient("causal_conv1d", "cuda", x, weight, bias, initial_state)
    _check_supported(x, weight, initial_state)
    from causal_conv1d import causal_conv1d_fn

    note("causal_conv1d", "causal_conv1d.causal_conv1d_fwd")
    y = causal_conv1d_fn(x, weight, bias, initial_states=initial_state, activation=activation)
    return y, last_inputs(x, initial_state, weight.shape[1])


def _check_supported(x, weight, initial_state):
    def refuse(what):
        raise NotImplementedError(f"causal_conv1d: impl 'cuda' {what}; use impl='triton'")

    if x.dtype == torch.float64:
        refuse("takes float32, float16 and bfloat16, got x in float64")
    if not 2 <= weight.shape[1] <= 4:
        refuse(f"takes a weight of width 2 to 4, got {weight.shape[1]}")
    if 1 not in x.stride()[1:]:
        refuse(f"takes x with neighbouring channels or tokens adjacent, got strides {x.stride()}")
    if is_token_major(x) and (x.shape[1] % 8 or x.stride(0) % 8 or x.stride(2) % 8):
        refuse(
            f"takes a channel-last x whose dim and strides are multiples of 8, "
            f"got shape {tuple(x.shape)} and strides {x.stride()}"
        )
    if initial_state is not None:
        if not is_token_major(x):
            refuse("takes an initial_state only with a channel-last x")
        if initial_state.dtype != x.dtype:
            refuse(f"takes an initial_state in the dtype of x, got {initial_state.dtype}")
        if initial_state.stride(1) != 1:
            refuse("takes an initial_state with stride(1) == 1")
