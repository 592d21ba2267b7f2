"""`triton`, one token: every program moves the states of its channels by one and applies the filters, in one pass.

A state is read and written as one piece a channel where its inputs lie together, as in a cache of (batch, dim,
width), and row by row where the channels do.
"""

import torch
import triton
import triton.language as tl

from kernels.causal_conv1d.tiles import load_bias, load_taps, silu, stack, unstack
from kernels.implementations import interpreted, note


@triton.jit
def causal_conv1d_update_kernel(
    x_ptr, state_ptr, weight_ptr, bias_ptr, y_ptr,
    x_strides, state_strides,
    dim,
    WIDTH: tl.constexpr, LENGTH: tl.constexpr, SILU: tl.constexpr, TOGETHER: tl.constexpr,
    ACC: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    pid_b, pid_d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)[:, None]
    mask_d = offs_d < dim
    x = tl.load(x_ptr + pid_b * x_strides[0] + offs_d * x_strides[1], mask=mask_d, other=0.0)
    state_ptr += pid_b * state_strides[0]
    newest = x.to(state_ptr.dtype.element_ty)

    rows = ()  # of the state as it was, the oldest first
    if TOGETHER:
        PADDED: tl.constexpr = triton.next_power_of_2(LENGTH)
        offs_k = tl.arange(0, PADDED)[None, None, :]
        offs = offs_d[:, :, None] * state_strides[1] + offs_k
        mask = mask_d[:, :, None] & (offs_k < LENGTH)
        padded = unstack(tl.load(state_ptr + offs, mask=mask, other=0.0), PADDED)
        for k in tl.static_range(LENGTH):
            rows += (padded[k],)
        after = ()
        for k in tl.static_range(PADDED):
            after += (rows[k + 1] if k + 1 < LENGTH else newest,)
        tl.debug_barrier()  # a thread may write what another has to read
        tl.store(state_ptr + offs, stack(after, PADDED), mask=mask)
    else:
        for k in tl.static_range(LENGTH):
            offs = offs_d * state_strides[1] + k * state_strides[2]
            rows += (tl.load(state_ptr + offs, mask=mask_d, other=0.0),)
        for k in tl.static_range(LENGTH):
            offs = offs_d * state_strides[1] + k * state_strides[2]
            tl.store(state_ptr + offs, rows[k + 1] if k + 1 < LENGTH else newest, mask=mask_d)

    taps = load_taps(weight_ptr, offs_d, mask_d, WIDTH, ACC)
    acc = load_bias(bias_ptr, offs_d, mask_d, 1, ACC) + x.to(ACC) * taps[WIDTH - 1]
    for k in tl.static_range(WIDTH - 1):
        acc += rows[LENGTH - WIDTH + 1 + k].to(ACC) * taps[k]
    if SILU:
        acc = silu(acc)
    tl.store(y_ptr + pid_b * dim + offs_d, acc, mask=mask_d)


def causal_conv1d_update_triton(x, conv_state, weight, bias, activation):
    """Operands and result as `causal_conv1d_update_ref`."""
    note("causal_conv1d_update", "triton.causal_conv1d_update")
    batch, dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_d = min(1024 if interpreted() else 128, triton.next_power_of_2(dim))
    causal_conv1d_update_kernel[(batch, triton.cdiv(dim, block_d))](
        x, conv_state, weight.contiguous(), None if bias is None else bias.contiguous(), y,
        x.stride(), conv_state.stride(),
        dim,
        WIDTH=weight.shape[1], LENGTH=conv_state.shape[2], SILU=activation == "silu",
        TOGETHER=conv_state.stride(2) == 1,
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32, BLOCK_D=block_d,
        num_warps=4,
    )  # fmt: skip
    return y


def static_cases():
    """The default configurations as `profiles.static` compiles them: a cache of width 4, bias, silu."""
    cases = []
    for name in ("bf16", "fp32"):
        for together in (True, False):
            arguments = causal_conv1d_update_kernel.arg_names
            signature = dict.fromkeys(arguments, "constexpr")
            pointers = ("x_ptr", "state_ptr", "weight_ptr", "bias_ptr", "y_ptr")
            signature |= dict.fromkeys(pointers, f"*{name}") | {"dim": "i32"}
            unit = 2 if together else 1
            strides = tuple("constexpr" if i == unit else "i32" for i in range(3))
            signature |= {"x_strides": ("i32", "constexpr"), "state_strides": strides}
            constexprs = {
                "WIDTH": 4, "LENGTH": 4, "SILU": True, "TOGETHER": together, "ACC": tl.float32, "BLOCK_D": 128,
                (arguments.index("x_strides"), 1): 1, (arguments.index("state_strides"), unit): 1,
            }  # fmt: skip
            cases.append(
                {
                    "name": f"causal_conv1d_update-{name}-{'width' if together else 'dim'}-inner",
                    "kernel": causal_conv1d_update_kernel,
                    "signature": signature,
                    "constexprs": constexprs,
                    "num_warps": 4,
                    "num_stages": 1,
                    "work": {"channels": 128},
                }
            )
    return cases
