"""`hf`: transformers' own PyTorch path, a sequential scan, whatever kernel packages are installed."""

import inspect

import torch

from kernels.implementations import note


def selective_scan_hf(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens=None, reverse=False, return_states=0,
):  # fmt: skip
    """transformers' `mamba_selective_scan`; arguments and returns as in `selective_scan_ref`.

    It knows one group and no initial state, softplus runs in the dtype of `delta`, and its memory is
    O(batch * dim * seqlen * dstate).
    """
    if cu_seqlens is not None or reverse or return_states:
        raise NotImplementedError(
            "selective_scan: impl 'hf' lacks cu_seqlens, reverse and return_states yet"
        )
    if initial_state is not None:
        raise NotImplementedError(
            "selective_scan: impl 'hf' takes no initial_state (transformers has none); use impl='torch'"
        )
    if B.shape[1] != 1:
        raise NotImplementedError(
            f"selective_scan: impl 'hf' takes one group of B and C, got {B.shape[1]}; use impl='torch'"
        )
    from transformers.models.mamba import modeling_mamba

    # transformers binds mamba-ssm over its own function at import where it finds it: the innermost is its own
    scan = inspect.unwrap(modeling_mamba.mamba_selective_scan)
    note("selective_scan", "transformers.mamba_selective_scan")
    y, last_state = scan(
        u, delta, A, B[:, 0], C[:, 0].to(u.dtype), D, z, delta_bias, delta_softplus,
        return_last_state=True,
    )  # fmt: skip
    return y.to(u.dtype), last_state.to(torch.promote_types(u.dtype, torch.float32)), None
