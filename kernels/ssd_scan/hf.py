"""`hf`: transformers' own PyTorch path, whatever kernel packages are installed."""

import inspect

import torch

from kernels.implementations import note

CHUNK = 256  # tokens: the `chunk_size` of its Mamba2Config


def ssd_scan_hf(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    """transformers' `mamba2_chunk_scan`; arguments and returns as in `ssd_scan_ref`.

    It computes in float32 whatever the dtype, softplus in that of `dt`, and holds a tensor of (CHUNK, CHUNK, nheads,
    dstate) for every chunk of the sequence at once.
    """
    from transformers.models.mamba2 import modeling_mamba2

    scan = inspect.unwrap(modeling_mamba2.mamba2_chunk_scan)
    note("ssd_scan", "transformers.mamba2_chunk_scan")
    y, last_state = scan(
        x, dt, A, B, C, chunk_size=CHUNK, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
        initial_states=initial_state, return_final_states=True,
    )  # fmt: skip
    return y.to(x.dtype), last_state.to(torch.promote_types(x.dtype, torch.float32))
