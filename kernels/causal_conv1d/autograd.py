"""The convolution as operators of torch.library, for implementations that torch cannot see into.

    crossover::causal_conv1d            y, final_state
    crossover::causal_conv1d_backward   the gradients of every operand
    crossover::causal_conv1d_update     one token, in place

Eager calls without gradients go to the implementation directly: a registered operator costs more than a launch.
"""

import functools

import torch

from kernels.implementations import TABLE, find_backward, load
from kernels.layout import dense_like, empty_like
from profiles.ranges import annotate

OPAQUE = ("triton", "cpu")  # implementations that are registered


def registered(impl):
    """`causal_conv1d` of `impl` through torch's dispatcher."""
    return functools.partial(_call, impl)


def _call(impl, x, weight, bias, initial_state, activation, cu_seqlens):
    return torch.ops.crossover.causal_conv1d(
        x, weight, bias, initial_state, activation, cu_seqlens, impl
    )


@torch.library.custom_op("crossover::causal_conv1d", mutates_args=())
def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    initial_state: torch.Tensor | None, activation: str | None, cu_seqlens: torch.Tensor | None,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`causal_conv1d_ref` by `impl`."""
    conv = load(TABLE["causal_conv1d"][impl])
    return conv(x, weight, bias, initial_state, activation, cu_seqlens)


@causal_conv1d.register_fake
def _(x, weight, bias, initial_state, activation, cu_seqlens, impl):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return empty_like(x), x.new_empty(sequences, x.shape[1], weight.shape[1] - 1)


@torch.library.custom_op("crossover::causal_conv1d_backward", mutates_args=())
def causal_conv1d_backward(
    dy: torch.Tensor, dfinal_state: torch.Tensor | None,
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    initial_state: torch.Tensor | None, activation: str | None, cu_seqlens: torch.Tensor | None,
    impl: str,
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of the tensors among x, weight, bias and initial_state, each `dense_like` its operand."""
    backward = find_backward("causal_conv1d", impl)
    with annotate("op/causal_conv1d.backward", payload=x.shape[2]):
        found = backward(dy, dfinal_state, x, weight, bias, initial_state, activation, cu_seqlens)
    return [gradient for gradient in found if gradient is not None]


@causal_conv1d_backward.register_fake
def _(dy, dfinal_state, x, weight, bias, initial_state, activation, cu_seqlens, impl):
    return [dense_like(t) for t in (x, weight, bias, initial_state) if t is not None]


def _save(ctx, inputs, output):
    x, weight, bias, initial_state, activation, cu_seqlens, impl = inputs
    ctx.set_materialize_grads(False)
    ctx.options = (activation, impl)
    ctx.save_for_backward(x, weight, bias, initial_state, cu_seqlens)


def _differentiate(ctx, dy, dfinal_state):
    x, weight, bias, initial_state, cu_seqlens = ctx.saved_tensors
    activation, impl = ctx.options
    found = iter(
        causal_conv1d_backward(
            torch.zeros_like(x) if dy is None else dy, dfinal_state, x, weight, bias, initial_state,
            activation, cu_seqlens, impl,
        )
    )  # fmt: skip
    dx, dweight, dbias, dinitial = (
        None if t is None else next(found) for t in (x, weight, bias, initial_state)
    )
    return dx, dweight, dbias, dinitial, None, None, None


causal_conv1d.register_autograd(_differentiate, setup_context=_save)


def registered_update(impl):
    """`causal_conv1d_update` of `impl` through torch's dispatcher."""
    return functools.partial(_call_update, impl)


def _call_update(impl, x, conv_state, weight, bias, activation):
    return torch.ops.crossover.causal_conv1d_update(x, conv_state, weight, bias, activation, impl)


@torch.library.custom_op("crossover::causal_conv1d_update", mutates_args=("conv_state",))
def causal_conv1d_update(
    x: torch.Tensor, conv_state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    activation: str | None, impl: str,
) -> torch.Tensor:  # fmt: skip
    """`causal_conv1d_update_ref` by `impl`."""
    update = load(TABLE["causal_conv1d_update"][impl])
    return update(x, conv_state, weight, bias, activation)


@causal_conv1d_update.register_fake
def _(x, conv_state, weight, bias, activation, impl):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
