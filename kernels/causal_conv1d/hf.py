"""`hf`: transformers' own PyTorch functions, under whatever kernels it was bound to at import."""

import inspect

from kernels.causal_conv1d.sequences import any_sequences
from kernels.causal_conv1d.state import last_inputs
from kernels.implementations import note


@any_sequences
def causal_conv1d_hf(x, weight, bias, initial_state, activation):
    """Operands and results as `causal_conv1d_ref`, in transformers' arithmetic and layout of y (time-last)."""
    from transformers.models.mamba import modeling_mamba

    if initial_state is not None:
        raise NotImplementedError(
            "causal_conv1d: impl 'hf' starts from zeros, got an initial_state; use impl='torch'"
        )
    _check_bias("causal_conv1d", weight, bias)
    note("causal_conv1d", "transformers.causal_conv1d_fn")
    function = inspect.unwrap(modeling_mamba.causal_conv1d_fn)
    y = function(x, weight, bias, activation)
    return y, last_inputs(x, None, weight.shape[1])


def causal_conv1d_update_hf(x, conv_state, weight, bias, activation):
    """Operands and result as `causal_conv1d_update_ref`, in transformers' arithmetic."""
    from transformers.models.mamba import modeling_mamba

    _check_bias("causal_conv1d_update", weight, bias)
    note("causal_conv1d_update", "transformers.causal_conv1d_update")
    update = inspect.unwrap(modeling_mamba.causal_conv1d_update)
    return update(x.unsqueeze(2), conv_state, weight, bias, activation)[..., 0]


def _check_bias(operator, weight, bias):
    """torch's convolution takes no bias of another dtype than the weight's."""
    if bias is not None and bias.dtype != weight.dtype:
        raise NotImplementedError(
            f"{operator}: impl 'hf' takes bias in weight's {weight.dtype}, got {bias.dtype}; use impl='torch'"
        )
