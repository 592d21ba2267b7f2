"""`triton`: a memory-bound kernel. Each program reads a tile of x once, in 16-byte pieces, in either layout."""

import torch
import triton
import triton.language as tl

from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.causal_conv1d.tiles import (
    add_initial,
    convolve,
    find_piece,
    load_bias,
    load_taps,
    load_tokens,
    silu,
    store_tokens,
)
from kernels.implementations import interpreted, note
from kernels.layout import empty_like, is_token_major
from kernels.specialise import TYPES
from kernels.tuning import configuration


@triton.jit
def causal_conv1d_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, cu_ptr, y_ptr, final_ptr,
    x_strides, initial_strides, y_strides,
    dim, seqlen, sequences,
    WIDTH: tl.constexpr, SILU: tl.constexpr, CHANNEL_LAST: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    HALO: tl.constexpr = WIDTH - 1
    BLOCK_L: tl.constexpr = BLOCK_G * GROUP
    PACKED: tl.constexpr = cu_ptr is not None
    pid, tiles_d = tl.program_id(0), tl.cdiv(dim, BLOCK_D)
    tiles_l = seqlen // BLOCK_L + sequences if PACKED else tl.cdiv(seqlen, BLOCK_L)
    # neighbouring programs take neighbouring memory
    if CHANNEL_LAST:
        pid_d, pid_l, pid_b = pid % tiles_d, pid // tiles_d % tiles_l, pid // tiles_d // tiles_l
    else:
        pid_l, pid_d, pid_b = pid % tiles_l, pid // tiles_l % tiles_d, pid // tiles_l // tiles_d
    # tokens are counted from the first of this tile: the sequence is start .. left
    if PACKED:
        sequence, first_l, start, left = find_piece(cu_ptr, pid_l, sequences, seqlen, BLOCK_L)
    else:
        sequence, first_l = pid_b, pid_l * BLOCK_L
        start, left = -first_l, seqlen - first_l

    # the offset of the tile needs 64 bits, that of a token inside it does not
    pid_b, sequence = pid_b.to(tl.int64), sequence.to(tl.int64)
    first_d, first_l = pid_d.to(tl.int64) * BLOCK_D, first_l.to(tl.int64)
    x_ptr += pid_b * x_strides[0] + first_d * x_strides[1] + first_l * x_strides[2]
    y_ptr += pid_b * y_strides[0] + first_d * y_strides[1] + first_l * y_strides[2]
    offs_d = tl.arange(0, BLOCK_D)[:, None]
    offs_l = tl.arange(0, BLOCK_G)[None, :] * GROUP
    mask_d = offs_d < dim - pid_d * BLOCK_D
    if not CHANNEL_LAST:
        offs_d = offs_d.to(tl.int64)  # channels may lie far apart
    if initial_ptr is not None:
        initial_ptr += sequence * initial_strides[0] + first_d * initial_strides[1]

    inputs = load_tokens(
        x_ptr, x_strides, offs_d, offs_l, mask_d, start, left, HALO, 0, GROUP, CHANNEL_LAST, PACKED, ACC
    )  # fmt: skip
    if initial_ptr is not None:
        inputs = add_initial(
            inputs, initial_ptr, initial_strides, offs_d, offs_l, mask_d, start, WIDTH, PACKED, ACC
        )
    taps = load_taps(weight_ptr + first_d * WIDTH, offs_d, mask_d, WIDTH, ACC)
    bias_ptr = bias_ptr + first_d if bias_ptr is not None else None
    bias = load_bias(bias_ptr, offs_d, mask_d, BLOCK_G, ACC)
    outputs = ()
    for i in tl.static_range(GROUP):
        acc = convolve(inputs, taps, bias, i, WIDTH)
        if SILU:
            acc = silu(acc)
        outputs += (acc.to(y_ptr.dtype.element_ty),)
    store_tokens(
        y_ptr, y_strides, offs_d, offs_l, mask_d, start, left, outputs, GROUP, CHANNEL_LAST, PACKED
    )

    if left <= BLOCK_L:  # the last tile also keeps the last inputs
        final_ptr += (sequence * dim + first_d) * HALO
        for k in tl.static_range(HALO):
            last = left - HALO + k
            newer = x_ptr + offs_d * x_strides[1] + last * x_strides[2]
            kept = tl.load(newer, mask=mask_d & (last >= start), other=0.0)
            if initial_ptr is not None:
                offs = offs_d * initial_strides[1] + (left - start + k) * initial_strides[2]
                kept += tl.load(initial_ptr + offs, mask=mask_d & (last < start), other=0.0).to(
                    kept.dtype
                )
            tl.store(final_ptr + offs_d * HALO + k, kept, mask=mask_d)


def causal_conv1d_triton(x, weight, bias, initial_state, activation, cu_seqlens=None):
    """Operands and results as `causal_conv1d_ref`; y has the layout of `x`, which is not copied."""
    note("causal_conv1d", "triton.causal_conv1d_fwd")
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    y = empty_like(x)
    final_state = x.new_empty(sequences, dim, width - 1)
    tile = configuration(
        "causal_conv1d_fwd", tile_of(x.dtype, dim, seqlen, is_token_major(x)), x.device, **traits(x)
    )
    pieces = piece_count(batch, seqlen, tile["BLOCK_G"] * tile["GROUP"], cu_seqlens)
    causal_conv1d_fwd_kernel[(pieces * triton.cdiv(dim, tile["BLOCK_D"]),)](
        x, weight.contiguous(), None if bias is None else bias.contiguous(), initial_state,
        None if cu_seqlens is None else cu_seqlens.contiguous(), y, final_state,
        x.stride(), (0, 0, 0) if initial_state is None else initial_state.stride(), y.stride(),
        dim, seqlen, sequences,
        WIDTH=width, SILU=activation == "silu", CHANNEL_LAST=is_token_major(x),
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32, **tile,
    )  # fmt: skip
    return y, final_state


def traits(x):
    """What decides, for `kernels.tuning`, which configuration is best."""
    layout = "channel-last" if is_token_major(x) else "time-last"
    batch, dim, seqlen = x.shape
    same = {"dtype": TYPES[x.dtype], "layout": layout}
    return {"same": same, "near": {"batch": batch, "dim": dim, "seqlen": seqlen}}


def piece_count(batch, seqlen, size, cu_seqlens):
    """How many pieces of `size` tokens cover the sequences; packed ones are counted as `find_piece` does."""
    if cu_seqlens is not None:
        return seqlen // size + len(cu_seqlens) - 1
    return batch * triton.cdiv(seqlen, size)


def tile_of(dtype, dim, seqlen, channel_last):
    """Tile and warps for a problem: {GROUP, BLOCK_G, BLOCK_D, num_warps}."""
    piece = 16 // dtype.itemsize  # elements of a 16-byte access
    if interpreted():  # cost is per operation, so one big tile
        block_d = min(1024, triton.next_power_of_2(dim))
        block_g = min(64, triton.next_power_of_2(triton.cdiv(seqlen, 8)))
        return {"GROUP": 8, "BLOCK_G": block_g, "BLOCK_D": block_d, "num_warps": 1}
    if channel_last:  # a warp holds 8 tokens of 32 pieces
        block_d = min(32 * piece, triton.next_power_of_2(dim))
        return {"GROUP": 8, "BLOCK_G": 4, "BLOCK_D": block_d, "num_warps": 4}
    block_g = min(128, triton.next_power_of_2(triton.cdiv(seqlen, piece)))
    block_d = min(512 // block_g, triton.next_power_of_2(dim))
    return {"GROUP": piece, "BLOCK_G": block_g, "BLOCK_D": block_d, "num_warps": 4}


def candidates(kernel, problem, dtype, generation):
    """Tiles to try for a CausalConv1dProblem, the static choice first; the same for every generation of GPUs."""
    default = tile_of(dtype, problem.dim, problem.seqlen, problem.channel_last)
    piece = 16 // dtype.itemsize
    if problem.channel_last:  # tokens of a thread, its runs, and warps that share a row of channels
        tiles = [
            (8, 2, 32, 4),
            (8, 8, 32, 4),
            (8, 8, 32, 8),
            (8, 4, 32, 8),
            (8, 4, 16, 4),
            (8, 4, 32, 2),
        ]
        tiles += [
            (4, 4, 32, 4),
            (4, 8, 32, 4),
            (4, 8, 32, 8),
            (4, 4, 16, 4),
            (16, 2, 32, 4),
            (16, 4, 32, 4),
        ]
        tiles = [(group, block_g, pieces * piece, warps) for group, block_g, pieces, warps in tiles]
    else:  # neighbouring runs of 16 bytes, and channels
        tiles = [
            (piece, 128, 2, 4),
            (piece, 128, 1, 4),
            (piece, 128, 4, 8),
            (piece, 64, 8, 4),
            (piece, 64, 2, 4),
        ]
        tiles += [
            (piece, 32, 16, 4),
            (piece, 32, 4, 4),
            (piece, 256, 2, 4),
            (piece, 256, 1, 8),
            (piece, 64, 1, 2),
        ]
    return (
        default,
        *different(default, problem, [dict(zip(default, tile, strict=True)) for tile in tiles]),
    )


def different(default, problem, tiles):
    """Those that are not the default, nor wider than the channels."""
    widest = triton.next_power_of_2(problem.dim)
    return [tile for tile in tiles if tile != default and tile["BLOCK_D"] <= widest]


def static_cases():
    """The default configurations as `profiles.static` compiles them: width 4, bias, silu, no initial state."""
    cases = []
    for dtype in (torch.bfloat16, torch.float32):
        for channel_last, packed in ((True, False), (False, False), (True, True)):
            if dtype == torch.bfloat16 or not packed:
                tile = tile_of(dtype, 1536, 2048, channel_last)
                cases.append(_static_case(dtype, channel_last, tile, packed))
    return cases


def static_candidates(target):
    """Each candidate as `static_cases` has the default, with its name and configuration."""
    for channel_last in (True, False):
        problem = CausalConv1dProblem(8, 1536, 2048, channel_last=channel_last)
        for tile in candidates("causal_conv1d_fwd", problem, torch.bfloat16, None):
            case = _static_case(torch.bfloat16, channel_last, tile)
            case["name"] += label(tile)
            yield case | {"kernel_name": "causal_conv1d_fwd", "configuration": tile}


def label(tile):
    """What distinguishes a tile, for the name of a case."""
    return "".join(
        f"-{name.replace('BLOCK_', '').replace('num_', '').lower()}{size}"
        for name, size in tile.items()
    )


def _static_case(dtype, channel_last, tile, packed=False):
    layout = "channel-last" if channel_last else "time-last"
    return static_case(
        f"causal_conv1d_fwd-{TYPES[dtype]}-{layout}{'-packed' if packed else ''}",
        causal_conv1d_fwd_kernel, TYPES[dtype], channel_last, tile,
        pointers=("x_ptr", "weight_ptr", "bias_ptr", "y_ptr", "final_ptr"), packed=packed,
        strides=("x_strides", "y_strides"), unused=("initial",),
        tokens=tile["GROUP"] * tile["BLOCK_G"],
    )  # fmt: skip


def static_case(
    case, kernel, dtype, channel_last, tile, *, pointers, strides, unused, tokens, packed=False
):
    """A case for `profiles.static` of a kernel of this folder; `unused` operands are None."""
    arguments = kernel.arg_names
    unit = 1 if channel_last else 2  # the dimension whose stride is 1
    signature = dict.fromkeys(arguments, "constexpr")
    signature |= dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(("dim", "seqlen"), "i32")
    signature |= dict.fromkeys(
        strides, tuple("constexpr" if i == unit else "i32" for i in range(3))
    )
    signature |= {f"{name}_strides": ("i32", "i32", "i32") for name in unused}
    signature |= {"cu_ptr": "*i32"} if packed else {}
    signature |= {"sequences": "i32"}
    tile = dict(tile)
    num_warps = tile.pop("num_warps")
    constexprs = {f"{name}_ptr": None for name in unused} | ({} if packed else {"cu_ptr": None})
    constexprs |= {"WIDTH": 4, "SILU": True, "CHANNEL_LAST": channel_last, "ACC": tl.float32}
    constexprs |= {(arguments.index(name), unit): 1 for name in strides}
    return {
        "name": case,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs | tile,
        "num_warps": num_warps,
        "num_stages": 1,
        "unaligned": ("sequences",),
        "work": {"tokens x channels": tokens * tile["BLOCK_D"]},
    }
