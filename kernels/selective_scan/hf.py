"""`hf`: transformers' own PyTorch path, a sequential scan, whatever kernel packages are installed."""

import inspect

import torch

from kernels.implementations import note
from kernels.selective_scan.sequences import any_sequences


@any_sequences
def selective_scan_hf(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_states=0
):
    """transformers' `mamba_selective_scan`; arguments and returns as in `selective_scan_ref`.

    It knows one group and no initial state, softplus runs in the dtype of `delta`, and its memory is
    O(batch * dim * seqlen * dstate). Packed sequences run one after the other, a reverse scan on flipped copies.
    """
    if initial_state is not None:
        raise NotImplementedError(
            "selective_scan: impl 'hf' takes no initial_state (transformers has none); use impl='torch'"
        )
    if return_states:
        raise NotImplementedError(
            "selective_scan: impl 'hf' has no return_states (transformers gives the last state only); "
            "use impl='torch'"
        )
    _check_groups("selective_scan", B)
    from transformers.models.mamba import modeling_mamba

    # transformers binds mamba-ssm over its own function at import where it finds it: the innermost is its own
    scan = inspect.unwrap(modeling_mamba.mamba_selective_scan)
    note("selective_scan", "transformers.mamba_selective_scan")
    y, last_state = scan(
        u, delta, A, B[:, 0], C[:, 0].to(u.dtype), D, z, delta_bias, delta_softplus,
        return_last_state=True,
    )  # fmt: skip
    return y.to(u.dtype), last_state.to(torch.promote_types(u.dtype, torch.float32)), None


def selective_state_update_hf(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """transformers' `mamba_selective_state_update`; arguments and returns as in `selective_state_update_ref`.

    It knows one group, softplus runs in the dtype of `dt`, the product with C in that of C, and the rest in float32
    even if `x` is float64.
    """
    _check_groups("selective_state_update", B)
    from transformers.models.mamba import modeling_mamba

    update = inspect.unwrap(modeling_mamba.mamba_selective_state_update)
    note("selective_state_update", "transformers.mamba_selective_state_update")
    return update(
        state, x, dt, A, B[:, 0], C[:, 0], D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z
    )


def _check_groups(operator, B):
    if B.shape[1] != 1:
        raise NotImplementedError(
            f"{operator}: impl 'hf' takes one group of B and C, got {B.shape[1]}; use impl='torch'"
        )
