"""Device code of the backward of `triton` where the sequence is split: the adjoint alone. Design: `backward.py`."""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

from kernels.selective_scan.backward_kernels import (
    begins,
    load,
    place,
    replicate,
    restart,
    sigmoid,
    step_size,
)
from kernels.selective_scan.exponentials import LOG2E


@triton.jit
def adjoint_kernel(
    dy_ptr, delta_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, owner_ptr, dlast_ptr, adjoint_ptr, steps_ptr,
    dy_strides, delta_strides, A_strides, BC_strides, z_strides, dlast_strides,
    seqlen, tokens, dim, group_dim, dstate,
    DY_STEP: tl.constexpr, DELTA_STEP: tl.constexpr, Z_STEP: tl.constexpr,
    SOFTPLUS: tl.constexpr, RAGGED: tl.constexpr, DSTATE: tl.constexpr, PADDED: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What leaves each piece of `tokens` on its left if nothing enters on its right, and its sum of steps.

    For DSTATE of `dstate` states. BC: as in `selective_scan_bwd_kernel`. Pieces count from the end of the sequence,
    without that at its beginning: adjoint (batch, pieces, dstate, dim), steps (batch, pieces - 1, dim).
    """
    pid_b, _, group, in_group, offs_d = place(dim, group_dim, BLOCK_D)
    pieces = tl.num_programs(1) + 1
    pid_s = tl.program_id(1).to(tl.int64)
    inside = in_group < group_dim
    mask_d = inside if RAGGED else None
    start = (pieces - 1 - pid_s) * tokens
    end = tl.minimum(start + tokens, seqlen)

    dy_ptr += pid_b * dy_strides[0] + offs_d * dy_strides[1]
    delta_ptr += pid_b * delta_strides[0] + offs_d * delta_strides[1]
    C_ptr = BC_ptr + pid_b * BC_strides[0] + group * BC_strides[1] + 1
    if z_ptr is not None:
        z_ptr += pid_b * z_strides[0] + offs_d * z_strides[1]
    rates = ()
    for n in tl.static_range(DSTATE):
        at = A_ptr + offs_d * A_strides[0] + n * tl.cast(A_strides[1], tl.int64)
        rates = rates + (load(at, mask_d) * LOG2E,)
    bias = 0.0
    if bias_ptr is not None:
        bias = load(bias_ptr + offs_d, mask_d)
    steps = tl.zeros((BLOCK_D,), tl.float32)
    g = replicate(steps, DSTATE)

    for i_chunk in tl.range(0, tl.cdiv(end - start, UNROLL)):
        for k in tl.static_range(UNROLL):
            t = end - 1 - i_chunk * UNROLL - k
            there = t >= start
            here = inside & there if RAGGED else there
            d = step_size(load(delta_ptr + t * DELTA_STEP, here) + bias, SOFTPLUS)
            d = tl.where(there, d, 0.0)
            steps += d
            dy = load(dy_ptr + t * DY_STEP, here)
            if z_ptr is not None:
                z = load(z_ptr + t * Z_STEP, here)
                dy *= z * sigmoid(z)
            C_at = C_ptr + tl.maximum(t, start) * (2 * PADDED)
            if owner_ptr is not None:
                fresh, _, before = begins(owner_ptr, tl.maximum(t, start), end)
                fresh &= there
            new = ()
            for n in tl.static_range(DSTATE):
                g_n = tl.fma(dy, tl.load(C_at + 2 * n), g[n]) * tl.exp2(d * rates[n])
                if owner_ptr is not None:
                    g_n = restart(g_n, fresh, dlast_ptr, dlast_strides, before, offs_d, n, inside)
                new = new + (g_n,)
            g = new

    for n in tl.static_range(DSTATE):
        at = adjoint_ptr + ((pid_b * pieces + pid_s) * dstate + n) * dim + offs_d
        tl.store(at, g[n], mask=mask_d)
    tl.store(steps_ptr + (pid_b * (pieces - 1) + pid_s) * dim + offs_d, steps, mask=mask_d)
