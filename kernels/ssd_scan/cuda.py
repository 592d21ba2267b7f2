"""`cuda`: mamba-ssm's Triton kernels of Mamba-2."""

import torch

from kernels.implementations import note

CHUNK = 256  # tokens, as mamba-ssm's own Mamba2 module has it


def ssd_scan_cuda(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    """mamba-ssm's `mamba_chunk_scan_combined`; arguments and returns as in `ssd_scan_ref`.

    B and C are converted to the dtype of `x`, and A, D, dt_bias to float32, as its own module has them.
    """
    if x.dtype == torch.float64:
        raise NotImplementedError(
            "ssd_scan: impl 'cuda' takes float32, float16 or bfloat16, got float64; use impl='torch'"
        )
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    note("ssd_scan", "mamba_ssm.mamba_chunk_scan_combined")
    wide = lambda t: None if t is None else t.to(torch.float32)
    return mamba_chunk_scan_combined(
        x, dt, wide(A), B.to(x.dtype), C.to(x.dtype), CHUNK, D=wide(D), dt_bias=wide(dt_bias),
        initial_states=initial_state, dt_softplus=dt_softplus, return_final_states=True,
    )  # fmt: skip
