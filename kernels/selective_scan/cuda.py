"""`cuda`: mamba-ssm's CUDA selective scan, and its Triton update of a state by one token.

The scan takes (batch, dim, seqlen) contiguous along time, so a channel-last model transposes around it: the copies
are made here, inside the operator, because that is what the package costs such a model. It knows neither packed
sequences nor a direction: those run one launch after the other, and on flipped copies.
"""

import torch

from kernels.checks import check_no_gradient
from kernels.implementations import note
from kernels.layout import is_token_major
from kernels.selective_scan.sequences import any_sequences

MAX_DIM = 65535  # dim is a grid axis of its kernel


@any_sequences
def selective_scan_cuda(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_states=0
):
    """mamba-ssm's `selective_scan_fn`; arguments and returns as in `selective_scan_ref`.

    delta, z, B and C are converted to the dtype of `u`, and A, D, delta_bias to float32, as it requires. An
    initial state is taken for a single token only (its Triton `selective_state_update`). Differentiable but
    for the last state, which the package's backward ignores and which is therefore detached.
    """
    _check_float64("selective_scan", u)
    if u.shape[1] > MAX_DIM:
        raise NotImplementedError(
            f"selective_scan: impl 'cuda' takes at most {MAX_DIM} channels, got {u.shape[1]}; "
            "use impl='triton'"
        )
    if return_states:
        raise NotImplementedError(
            "selective_scan: impl 'cuda' has no return_states (mamba-ssm gives the last state only); "
            "use impl='triton'"
        )
    if initial_state is not None:
        if u.shape[2] != 1:
            raise NotImplementedError(
                "selective_scan: impl 'cuda' takes an initial_state only for one token "
                f"(mamba-ssm has none), got seqlen={u.shape[2]}; use impl='triton'"
            )
        check_no_gradient(
            "selective_scan", "cuda", u, delta, A, B, C, D, z, delta_bias, initial_state
        )
        note("selective_scan", "mamba_ssm.selective_state_update")
        token = lambda t: None if t is None else t[..., 0]
        state = initial_state.to(torch.float32, copy=True)
        y = _update(
            state, token(u), token(delta), A, token(B), token(C), D, token(z), delta_bias, delta_softplus
        )  # fmt: skip
        return y.unsqueeze(-1), state, None

    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    note("selective_scan", "mamba_ssm.selective_scan_cuda")
    same = lambda t: None if t is None else t.to(u.dtype).contiguous()
    wide = lambda t: None if t is None else t.to(torch.float32).contiguous()
    y, last_state = selective_scan_fn(
        same(u), same(delta), wide(A), same(B), same(C), wide(D), same(z), wide(delta_bias),
        delta_softplus, return_last_state=True,
    )  # fmt: skip
    return _as_layout(y, u), last_state.detach(), None


def selective_state_update_cuda(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """mamba-ssm's `selective_state_update`; arguments and returns as in `selective_state_update_ref`."""
    _check_float64("selective_state_update", x, state)
    note("selective_state_update", "mamba_ssm.selective_state_update")
    return _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)


def _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    # groups become heads, each with its own B and C; absent D and bias become zeros, since its wrapper
    # stumbles over None
    ngroups = B.shape[1]
    heads = lambda t: t.unflatten(-1, (ngroups, -1))
    zeros = A.new_zeros(A.shape[0])
    y = selective_state_update(
        state.unflatten(1, (ngroups, -1)), heads(x), heads(dt), A.unflatten(0, (ngroups, -1)), B, C,
        D=heads(zeros if D is None else D),
        z=None if z is None else heads(z),
        dt_bias=heads(zeros if dt_bias is None else dt_bias),
        dt_softplus=dt_softplus,
    )  # fmt: skip
    return y.flatten(1)


def _check_float64(operator, *tensors):
    if any(t.dtype == torch.float64 for t in tensors):
        raise NotImplementedError(
            f"{operator}: impl 'cuda' takes float32, float16 or bfloat16, got float64; use impl='torch'"
        )


def _as_layout(y, u):
    """`y` in the layout of `u`: one more transposing copy for a channel-last model."""
    if is_token_major(u) and not is_token_major(y):
        return y.transpose(1, 2).contiguous().transpose(1, 2)
    return y
