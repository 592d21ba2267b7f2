"""`cuda`: mamba-ssm's CUDA selective scan.

It takes (batch, dim, seqlen) contiguous along time, so a channel-last model transposes around it: the copies
are made here, inside the operator, because that is what the package costs such a model.
"""

import torch

from kernels.checks import check_no_gradient
from kernels.implementations import note
from kernels.layout import is_token_major

MAX_DIM = 65535  # dim is a grid axis of its kernel


def selective_scan_cuda(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens=None, reverse=False, return_states=0,
):  # fmt: skip
    """mamba-ssm's `selective_scan_fn`; arguments and returns as in `selective_scan_ref`.

    delta, z, B and C are converted to the dtype of `u`, and A, D, delta_bias to float32, as it requires. An
    initial state is taken for a single token only (its Triton `selective_state_update`). Differentiable but
    for the last state, which the package's backward ignores and which is therefore detached.
    """
    if u.dtype == torch.float64:
        raise NotImplementedError(
            "selective_scan: impl 'cuda' takes u in float32, float16 or bfloat16, got float64; "
            "use impl='torch'"
        )
    if u.shape[1] > MAX_DIM:
        raise NotImplementedError(
            f"selective_scan: impl 'cuda' takes at most {MAX_DIM} channels, got {u.shape[1]}; "
            "use impl='triton'"
        )
    if cu_seqlens is not None or reverse or return_states:
        raise NotImplementedError(
            "selective_scan: impl 'cuda' lacks cu_seqlens, reverse and return_states yet"
        )
    same = lambda t: None if t is None else t.to(u.dtype).contiguous()
    wide = lambda t: None if t is None else t.to(torch.float32).contiguous()
    if initial_state is not None:
        if u.shape[2] != 1:
            raise NotImplementedError(
                "selective_scan: impl 'cuda' takes an initial_state only for one token "
                f"(mamba-ssm has none), got seqlen={u.shape[2]}; use impl='triton'"
            )
        check_no_gradient(
            "selective_scan", "cuda", u, delta, A, B, C, D, z, delta_bias, initial_state
        )
        return _one_token(
            same(u), same(delta), wide(A), same(B), same(C), wide(D), same(z), wide(delta_bias),
            delta_softplus, wide(initial_state),
        )  # fmt: skip

    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    note("selective_scan", "mamba_ssm.selective_scan_cuda")
    y, last_state = selective_scan_fn(
        same(u), same(delta), wide(A), same(B), same(C), wide(D), same(z), wide(delta_bias),
        delta_softplus, return_last_state=True,
    )  # fmt: skip
    return _as_layout(y, u), last_state.detach(), None


def _one_token(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    note("selective_scan", "mamba_ssm.selective_state_update")
    batch, dim, _ = u.shape
    ngroups, dstate = B.shape[1:3]
    # groups become heads, each with its own B and C; absent D and bias become zeros, since its wrapper
    # stumbles over None
    heads = lambda t: t.reshape(*t.shape[:-1], ngroups, dim // ngroups)
    zeros = A.new_zeros(dim)
    state = initial_state.clone().view(batch, ngroups, dim // ngroups, dstate)
    y = selective_state_update(
        state, heads(u[..., 0]), heads(delta[..., 0]), A.view(ngroups, dim // ngroups, dstate),
        B[..., 0], C[..., 0],
        D=heads(zeros if D is None else D),
        z=None if z is None else heads(z[..., 0]),
        dt_bias=heads(zeros if delta_bias is None else delta_bias),
        dt_softplus=delta_softplus,
    )  # fmt: skip
    return y.reshape(batch, dim, 1), state.view(batch, dim, dstate), None


def _as_layout(y, u):
    """`y` in the layout of `u`: one more transposing copy for a channel-last model."""
    if is_token_major(u) and not is_token_major(y):
        return y.transpose(1, 2).contiguous().transpose(1, 2)
    return y
