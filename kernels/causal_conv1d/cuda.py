"""`cuda`: the causal-conv1d package (Dao-AILab), which is as fast as a copy and takes widths 2 to 4."""

import torch

from kernels.causal_conv1d.sequences import any_sequences
from kernels.causal_conv1d.state import last_inputs
from kernels.implementations import note
from kernels.layout import is_token_major


@any_sequences
def causal_conv1d_cuda(x, weight, bias, initial_state, activation):
    """Operands and results as `causal_conv1d_ref`; y has the layout of `x`. Differentiable, not deterministically.

    The package takes an initial state only with a channel-last x whose dim and strides are multiples of 8. It has no
    final state for a time-last x, so that is sliced from x by torch, which is also its gradient.
    """
    _check_supported(x, weight, initial_state)
    if x.stride(2) == 1 and not _pieces_aligned(x):
        x = x.clone(memory_format=torch.contiguous_format)
    from causal_conv1d import causal_conv1d_fn

    note("causal_conv1d", "causal_conv1d.causal_conv1d_fwd")
    y = causal_conv1d_fn(x, weight, bias, initial_states=initial_state, activation=activation)
    return y, last_inputs(x, initial_state, weight.shape[1])


def causal_conv1d_update_cuda(x, conv_state, weight, bias, activation):
    """Operands and result as `causal_conv1d_update_ref`; conv_state has the dtype of `x`."""
    _check_types("causal_conv1d_update", x, weight)
    if conv_state.dtype != x.dtype:
        raise NotImplementedError(
            f"causal_conv1d_update: impl 'cuda' takes a conv_state in the dtype of x, got {conv_state.dtype}; "
            "use impl='triton'"
        )
    from causal_conv1d import causal_conv1d_update

    note("causal_conv1d_update", "causal_conv1d.causal_conv1d_update")
    return causal_conv1d_update(x, conv_state, weight, bias, activation)


def _pieces_aligned(x):
    """Whether the pieces of 16 bytes along time that the package reads are aligned, which it takes for granted."""
    starts = (x.data_ptr(), *(stride * x.itemsize for stride in x.stride()[:2]))
    return all(start % 16 == 0 for start in starts)


def _check_types(operator, x, weight):
    if x.dtype == torch.float64:
        what = "takes float32, float16 and bfloat16, got x in float64"
    elif not 2 <= weight.shape[1] <= 4:
        what = f"takes a weight of width 2 to 4, got {weight.shape[1]}"
    else:
        return
    raise NotImplementedError(f"{operator}: impl 'cuda' {what}; use impl='triton'")


def _check_supported(x, weight, initial_state):
    def refuse(what):
        raise NotImplementedError(f"causal_conv1d: impl 'cuda' {what}; use impl='triton'")

    _check_types("causal_conv1d", x, weight)
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
