"""The scan as operators of torch.library, for implementations that torch cannot see into: gradients, torch.compile.

    crossover::selective_scan            y, last_state, states
    crossover::selective_scan_backward   the gradients of every operand, from every k-th state of the forward
    crossover::selective_state_update    one token, in place

Eager calls without gradients go to the implementation directly: a registered operator costs more than a launch.
"""

import functools

import torch

from kernels.implementations import TABLE, find_backward, load
from kernels.layout import dense_like, empty_like
from profiles.ranges import annotate

OPAQUE = ("triton", "cpu")  # implementations that are registered
CHECKPOINT = 32  # tokens between the states that a backward starts from


def registered(impl, differentiate):
    """`selective_scan` of `impl` through torch's dispatcher; with the states of a backward if `differentiate`."""
    return functools.partial(_call, impl, differentiate)


def _call(
    impl, differentiate, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens, reverse, return_states,
):  # fmt: skip
    every = return_states or (CHECKPOINT if differentiate else 0)
    return torch.ops.crossover.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, reverse, every, impl
    )  # fmt: skip


@torch.library.custom_op("crossover::selective_scan", mutates_args=())
def selective_scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor,
    D: torch.Tensor | None, z: torch.Tensor | None, delta_bias: torch.Tensor | None,
    delta_softplus: bool, initial_state: torch.Tensor | None, cu_seqlens: torch.Tensor | None,
    reverse: bool, return_states: int, impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """`selective_scan_ref` by `impl`; `states` is empty if `return_states` is 0."""
    scan = load(TABLE["selective_scan"][impl])
    y, last_state, states = scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, reverse, return_states
    )  # fmt: skip
    return y, last_state, last_state.new_empty(0) if states is None else states


@selective_scan.register_fake
def _(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens, reverse, return_states, impl,
):  # fmt: skip
    batch, dim, seqlen = u.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    new = functools.partial(u.new_empty, dtype=torch.promote_types(u.dtype, torch.float32))
    last_state = new(sequences, dim, A.shape[1])
    if not return_states:
        return empty_like(u), last_state, new(0)
    # channels inside, as kernels hold them
    states = new(batch, seqlen // return_states, A.shape[1], dim).transpose(2, 3)
    return empty_like(u), last_state, states


@torch.library.custom_op("crossover::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    dy: torch.Tensor, dlast_state: torch.Tensor | None,
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor,
    D: torch.Tensor | None, z: torch.Tensor | None, delta_bias: torch.Tensor | None,
    delta_softplus: bool, initial_state: torch.Tensor | None, cu_seqlens: torch.Tensor | None,
    reverse: bool, checkpoints: torch.Tensor, impl: str,
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of the tensors among u, delta, A, B, C, D, z, delta_bias and initial_state, in this order.

    Each is `kernels.layout.dense_like` its operand.

    checkpoints: the states that the forward returned with return_states=CHECKPOINT.
    """
    backward = find_backward("selective_scan", impl)
    with annotate("op/selective_scan.backward", payload=u.shape[2]):
        found = backward(
            dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
            cu_seqlens, reverse, checkpoints,
        )  # fmt: skip
    return [gradient for gradient in found if gradient is not None]


@selective_scan_backward.register_fake
def _(
    dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens, reverse, checkpoints, impl,
):  # fmt: skip
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [dense_like(t) for t in operands if t is not None]


def _save(ctx, inputs, output):
    *operands, reverse, return_states, impl = inputs
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens = operands
    ctx.set_materialize_grads(False)
    ctx.options = (delta_softplus, reverse, return_states, impl)
    states = output[2] if return_states == CHECKPOINT else None
    ctx.save_for_backward(
        u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, states
    )  # fmt: skip


def _differentiate(ctx, dy, dlast_state, dstates):
    if dstates is not None and dstates.numel():
        raise NotImplementedError(
            f"selective_scan: impl {ctx.options[-1]!r} has no gradient through the states of return_states; "
            "use impl='torch'"
        )
    u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, states = ctx.saved_tensors
    delta_softplus, reverse, _, impl = ctx.options
    if states is None:
        states = selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, reverse, CHECKPOINT, impl
        )[2]  # fmt: skip
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    found = iter(
        selective_scan_backward(
            torch.zeros_like(u) if dy is None else dy, dlast_state, u, delta, A, B, C, D, z, delta_bias,
            delta_softplus, initial_state, cu_seqlens, reverse, states, impl,
        )
    )  # fmt: skip
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (
        None if t is None else next(found) for t in operands
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None, dinitial, None, None, None, None


selective_scan.register_autograd(_differentiate, setup_context=_save)


def registered_update(impl):
    """`selective_state_update` of `impl` through torch's dispatcher."""
    return functools.partial(_call_update, impl)


def _call_update(impl, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    return torch.ops.crossover.selective_state_update(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, impl
    )


@torch.library.custom_op("crossover::selective_state_update", mutates_args=("state",))
def selective_state_update(
    state: torch.Tensor, x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor,
    C: torch.Tensor, D: torch.Tensor | None, z: torch.Tensor | None, dt_bias: torch.Tensor | None,
    dt_softplus: bool, impl: str,
) -> torch.Tensor:  # fmt: skip
    """`selective_state_update_ref` by `impl`."""
    update = load(TABLE["selective_state_update"][impl])
    return update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)


@selective_state_update.register_fake
def _(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, impl):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
