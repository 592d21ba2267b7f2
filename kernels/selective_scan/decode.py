"""`triton`: one token, which reads and writes every state once: bound by memory.

A program updates the states of BLOCK_D channels of one sequence in one tile. Lanes lie along whichever axis of
the states is dense in memory, so that they are loaded and stored 16 bytes at a time, in their own dtype.
"""

import torch
import triton
import triton.language as tl

from kernels.implementations import interpreted, note
from kernels.selective_scan.exponentials import LOG2E, softplus
from kernels.selective_scan.problem import StateUpdateProblem
from kernels.specialise import TYPES, static_case
from kernels.tuning import configuration, using

# TILE: states a program of one warp. 16 a lane share the work on addresses and channels, so that 32 of them take 24
# issue slots (sm_90, bfloat16) where 8 a lane take 40. Not measured on a GPU yet.
CONFIG = {"TILE": 512, "num_warps": 1}
TILES = (
    (512, 1),
    (256, 1),
    (1024, 1),
    (512, 2),
    (1024, 2),
    (1024, 4),
    (2048, 4),
    (2048, 2),
    (4096, 8),
)


def selective_state_update_triton(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """Arguments and returns as in `selective_state_update_ref`; computes in float32, reads all in place."""
    if torch.float64 in (x.dtype, state.dtype):
        raise NotImplementedError(
            "selective_state_update: impl 'triton' computes in float32, got float64; use impl='torch'"
        )
    note("selective_state_update", "triton.selective_state_update")
    y, grid, args = plan(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    with torch.cuda.device_of(x):
        selective_state_update_kernel[grid](**args)
    return y


def plan(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """Allocate the output and describe the launch that fills it: (y, grid, arguments)."""
    batch, dim, dstate = state.shape
    ngroups = B.shape[1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_n = triton.next_power_of_2(dstate)
    config = configuration(
        "selective_state_update", default_configuration(dim // ngroups, dstate), x.device,
        same={"dtype": TYPES[state.dtype], "dstate": dstate}, near={"channels": batch * dim},
    )  # fmt: skip
    tile = {
        "BLOCK_D": max(1, config["TILE"] // block_n),
        "BLOCK_N": block_n,
        "num_warps": config["num_warps"],
    }
    strides = lambda t: None if t is None else t.stride()
    args = dict(
        state_ptr=state, x_ptr=x, dt_ptr=dt, A_ptr=A, B_ptr=B, C_ptr=C, D_ptr=D, z_ptr=z, bias_ptr=dt_bias,
        y_ptr=y,
        state_strides=state.stride(), x_strides=x.stride(), dt_strides=dt.stride(), A_strides=A.stride(),
        B_strides=B.stride(), C_strides=C.stride(), D_strides=strides(D), z_strides=strides(z),
        bias_strides=strides(dt_bias),
        dim=dim, ngroups=ngroups,
        SOFTPLUS=dt_softplus, DSTATE=dstate, N_AXIS=int(state.stride(2) <= state.stride(1)),
        **tile,
    )  # fmt: skip
    return y, (ngroups * triton.cdiv(dim // ngroups, tile["BLOCK_D"]) * batch,), args


def default_configuration(group_dim, dstate):
    """The static choice for a problem: {name: value}."""
    if interpreted():  # there a step costs the same for any width
        tile = triton.next_power_of_2(group_dim) * triton.next_power_of_2(dstate)
        return CONFIG | {"TILE": tile}
    return CONFIG


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a StateUpdateProblem, the static choice first; the same for all dtypes and GPUs."""
    default = default_configuration(problem.dim // problem.ngroups, problem.dstate)
    tiles = [{"TILE": tile, "num_warps": warps} for tile, warps in TILES]
    return (default, *(config for config in tiles if config != default))


@triton.jit
def selective_state_update_kernel(
    state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr,
    y_ptr,
    state_strides, x_strides, dt_strides, A_strides, B_strides, C_strides, D_strides, z_strides, bias_strides,
    dim, ngroups,
    SOFTPLUS: tl.constexpr,
    DSTATE: tl.constexpr,
    N_AXIS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_D channels of a group; the tile has its states along N_AXIS. y is (batch, dim), dense."""
    group_dim = dim // ngroups
    blocks = tl.cdiv(group_dim, BLOCK_D)
    pid_d = tl.program_id(0) % (blocks * ngroups)
    pid_b = (tl.program_id(0) // (blocks * ngroups)).to(tl.int64)
    group = (pid_d // blocks).to(tl.int64)
    in_group = (pid_d % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = in_group < group_dim
    offs_d = group * group_dim + in_group
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    mask_n = offs_n < DSTATE
    tile_d, tile_n = tl.expand_dims(offs_d, N_AXIS), tl.expand_dims(offs_n, 1 - N_AXIS)
    mask = tl.expand_dims(mask_d, N_AXIS) & tl.expand_dims(mask_n, 1 - N_AXIS)

    state_ptr += pid_b * state_strides[0] + tile_d * state_strides[1] + tile_n * state_strides[2]
    h = tl.load(state_ptr, mask=mask, other=0.0).to(tl.float32)
    A = tl.load(A_ptr + tile_d * A_strides[0] + tile_n * A_strides[1], mask=mask, other=0.0)
    B_ptr += pid_b * B_strides[0] + group * B_strides[1] + offs_n * B_strides[2]
    C_ptr += pid_b * C_strides[0] + group * C_strides[1] + offs_n * C_strides[2]
    B = tl.load(B_ptr, mask=mask_n, other=0.0).to(tl.float32)
    C = tl.load(C_ptr, mask=mask_n, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + pid_b * x_strides[0] + offs_d * x_strides[1], mask=mask_d, other=0.0)
    d = tl.load(dt_ptr + pid_b * dt_strides[0] + offs_d * dt_strides[1], mask=mask_d, other=0.0)
    x, d = x.to(tl.float32), d.to(tl.float32)
    if bias_ptr is not None:
        d += tl.load(bias_ptr + offs_d * bias_strides[0], mask=mask_d, other=0.0).to(tl.float32)
    if SOFTPLUS:
        d = softplus(d)

    decay = tl.exp2(tl.expand_dims(d, N_AXIS) * (A.to(tl.float32) * LOG2E))
    new = tl.expand_dims(d * x, N_AXIS) * tl.expand_dims(B, 1 - N_AXIS)
    h = tl.fma(decay, h, new)
    y = tl.sum(h * tl.expand_dims(C, 1 - N_AXIS), axis=N_AXIS)
    if D_ptr is not None:
        D = tl.load(D_ptr + offs_d * D_strides[0], mask=mask_d, other=0.0).to(tl.float32)
        y = tl.fma(D, x, y)
    if z_ptr is not None:
        z = tl.load(z_ptr + pid_b * z_strides[0] + offs_d * z_strides[1], mask=mask_d, other=0.0)
        y *= z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))

    tl.store(state_ptr, h, mask=mask)
    tl.store(y_ptr + pid_b * dim + offs_d, y, mask=mask_d)


def static_cases():
    """The default configuration, for `profiles.static`: states dense, and channels dense."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("states-inside", "channels-inside"):
            yield _static_case(f"selective_state_update-{TYPES[dtype]}-{layout}", dtype, layout)


def static_candidates(target):
    """Each candidate as `static_cases` has the default, with its name and configuration."""
    for config in candidates("selective_state_update", StateUpdateProblem(64, 1024), None, None):
        with using(selective_state_update=config):
            name = f"selective_state_update-bf16-t{config['TILE']}-w{config['num_warps']}"
            case = _static_case(name, torch.bfloat16, "states-inside")
        yield case | {"kernel_name": "selective_state_update", "configuration": config}


def _static_case(name, dtype, layout):
    inputs = StateUpdateProblem(64, 1024).inputs(dtype, "meta")
    state = inputs["state"].to(dtype)
    if layout == "channels-inside":
        state = state.transpose(1, 2).contiguous().transpose(1, 2)
    _, _, args = plan(**inputs | {"state": state})
    work = {"states": args["BLOCK_D"] * state.shape[2]}
    options = {"num_warps": args["num_warps"], "num_stages": 1}
    return {"name": name, "work": work} | static_case(selective_state_update_kernel, args) | options
