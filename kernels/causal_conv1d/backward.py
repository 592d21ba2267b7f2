"""Gradients of the convolution, `triton`. With p_t what the activation is applied to, and every sequence by itself:

    dp_t = dy_t act'(p_t)                             p is recomputed from x
    dx_t = sum_k weight[:, k] dp_{t + width - 1 - k}  plus dfinal_state, which is a copy of the last inputs
    dweight[:, k] = sum_t dp_t x_{t - width + 1 + k}  dbias = sum_t dp_t
    dinitial_state is dx_t of t < 0

x and dy are read once and dx is written once, in either layout. A program walks TILES tiles in time (`walks.py`) and
leaves one partial sum a channel, so that the sums are few, and the same in every run. The gradient of the initial
state needs the first width - 1 tokens only and is a kernel of its own.
"""

import torch
import triton
import triton.language as tl

from kernels.causal_conv1d.forward import different, label, piece_count, static_case, traits
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.causal_conv1d.tiles import convolve, find_piece, load_bias, load_taps, silu_gradient
from kernels.causal_conv1d.walks import walk_pieces, walk_rows
from kernels.implementations import interpreted, note
from kernels.layout import dense_like, is_token_major
from kernels.specialise import TYPES
from kernels.tuning import configuration


@triton.jit
def causal_conv1d_bwd_kernel(
    dy_ptr, dfinal_ptr, x_ptr, weight_ptr, bias_ptr, initial_ptr, cu_ptr, dx_ptr, sums_ptr,
    dy_strides, dfinal_strides, x_strides, initial_strides, dx_strides,
    dim, seqlen, sequences,
    WIDTH: tl.constexpr, SILU: tl.constexpr, CHANNEL_LAST: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    PIECE: tl.constexpr = TILES * BLOCK_G * GROUP
    PACKED: tl.constexpr = cu_ptr is not None
    pid, tiles_d = tl.program_id(0), tl.cdiv(dim, BLOCK_D)
    pieces = seqlen // PIECE + sequences if PACKED else tl.cdiv(seqlen, PIECE)
    if CHANNEL_LAST:
        pid_d, pid_l, pid_b = pid % tiles_d, pid // tiles_d % pieces, pid // tiles_d // pieces
    else:
        pid_l, pid_d, pid_b = pid % pieces, pid // pieces % tiles_d, pid // pieces // tiles_d
    # tokens are counted from the first of this piece: the sequence is start .. left
    if PACKED:
        sequence, first_l, start, left = find_piece(cu_ptr, pid_l, sequences, seqlen, PIECE)
    else:
        sequence, first_l = pid_b, pid_l * PIECE
        start, left = -first_l, seqlen - first_l

    wide_b, sequence = pid_b.to(tl.int64), sequence.to(tl.int64)
    first_d, first_l = pid_d.to(tl.int64) * BLOCK_D, first_l.to(tl.int64)
    x_ptr += wide_b * x_strides[0] + first_d * x_strides[1] + first_l * x_strides[2]
    dy_ptr += wide_b * dy_strides[0] + first_d * dy_strides[1] + first_l * dy_strides[2]
    dx_ptr += wide_b * dx_strides[0] + first_d * dx_strides[1] + first_l * dx_strides[2]
    offs_d = tl.arange(0, BLOCK_D)[:, None]
    mask_d = offs_d < dim - pid_d * BLOCK_D
    near_d = offs_d
    if not CHANNEL_LAST:
        offs_d = offs_d.to(tl.int64)  # channels may lie far apart
    if initial_ptr is not None:
        initial_ptr += sequence * initial_strides[0] + first_d * initial_strides[1]
    if dfinal_ptr is not None:
        dfinal_ptr += sequence * dfinal_strides[0] + first_d * dfinal_strides[1]
    taps = load_taps(weight_ptr + first_d * WIDTH, offs_d, mask_d, WIDTH, ACC)
    bias_ptr = bias_ptr + first_d if bias_ptr is not None else None
    bias = load_bias(bias_ptr, offs_d, mask_d, BLOCK_G, ACC)

    walk: tl.constexpr = walk_rows if CHANNEL_LAST else walk_pieces
    sums = walk(
        dy_ptr, dfinal_ptr, x_ptr, initial_ptr, dx_ptr,
        dy_strides, dfinal_strides, x_strides, initial_strides, dx_strides,
        taps, bias, offs_d, mask_d, start, left,
        WIDTH, SILU, PACKED, ACC, GROUP, BLOCK_G, BLOCK_D, TILES,
    )  # fmt: skip

    part = wide_b * pieces + pid_l
    sums_ptr += part * (WIDTH + 1) * dim + first_d
    for k in tl.static_range(WIDTH + 1):
        total = tl.sum(sums[k], axis=1, keep_dims=True)
        tl.store(sums_ptr + k * dim.to(tl.int64) + near_d, total, mask=mask_d)


@triton.jit
def causal_conv1d_bwd_initial_kernel(
    dy_ptr, dfinal_ptr, x_ptr, weight_ptr, bias_ptr, initial_ptr, cu_ptr, dinitial_ptr,
    dy_strides, dfinal_strides, x_strides, initial_strides, dinitial_strides,
    dim, seqlen,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    HALO: tl.constexpr = WIDTH - 1
    sequence, pid_d = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if cu_ptr is not None:
        first = tl.minimum(tl.maximum(tl.load(cu_ptr + sequence), 0), seqlen)
        length = tl.minimum(tl.maximum(tl.load(cu_ptr + sequence + 1), first), seqlen) - first
        pid_b = sequence * 0
    else:
        pid_b, first, length = sequence, 0, seqlen
    offs_d = pid_d.to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)[:, None]
    mask_d = offs_d < dim
    x_ptr += pid_b * x_strides[0] + first * x_strides[2] + offs_d * x_strides[1]
    dy_ptr += pid_b * dy_strides[0] + first * dy_strides[2] + offs_d * dy_strides[1]
    initial_ptr += sequence * initial_strides[0] + offs_d * initial_strides[1]
    dinitial_ptr += sequence * dinitial_strides[0] + offs_d * dinitial_strides[1]
    if dfinal_ptr is not None:
        dfinal_ptr += sequence * dfinal_strides[0] + offs_d * dfinal_strides[1]

    taps = load_taps(weight_ptr, offs_d, mask_d, WIDTH, ACC)
    bias = load_bias(bias_ptr, offs_d, mask_d, 1, ACC)
    inputs = ()
    for k in tl.static_range(HALO):
        inputs += (tl.load(initial_ptr + k * initial_strides[2], mask=mask_d, other=0.0).to(ACC),)
    for t in tl.static_range(HALO):
        x = tl.load(x_ptr + t * x_strides[2], mask=mask_d & (t < length), other=0.0)
        inputs += (x.to(ACC),)
    dps = ()
    for t in tl.static_range(HALO):
        dp = tl.load(dy_ptr + t * dy_strides[2], mask=mask_d & (t < length), other=0.0).to(ACC)
        if SILU:
            dp *= silu_gradient(convolve(inputs, taps, bias, t, WIDTH))
        dps += (dp,)

    for j in tl.static_range(HALO):
        dinitial = dps[j] * taps[0]
        for k in tl.static_range(1, j + 1):
            dinitial += dps[j - k] * taps[k]
        if dfinal_ptr is not None:  # a short sequence hands its initial state on
            offs = (j - length) * dfinal_strides[2]
            kept = tl.load(dfinal_ptr + offs, mask=mask_d & (j >= length), other=0.0)
            dinitial += kept.to(ACC)
        tl.store(dinitial_ptr + j * dinitial_strides[2], dinitial, mask=mask_d)


def causal_conv1d_backward_triton(
    dy, dfinal_state, x, weight, bias, initial_state, activation, cu_seqlens
):
    """Gradients of x, weight, bias and initial_state (None for an absent one), each `dense_like` its operand.

    dy has the shape of x and any strides; dfinal_state is the gradient of the final state, or None.
    """
    note("causal_conv1d_backward", "triton.causal_conv1d_bwd")
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    weights = weight.contiguous(), None if bias is None else bias.contiguous()
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    strides = lambda t: (0, 0, 0) if t is None else t.stride()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    options = {
        "WIDTH": width,
        "SILU": activation == "silu",
        "ACC": tl.float64 if wide == torch.float64 else tl.float32,
    }

    dx = dense_like(x)
    default = backward_tile_of(x.dtype, batch, dim, seqlen, is_token_major(x))
    tile = configuration("causal_conv1d_bwd", default, x.device, **traits(x))
    size = tile["TILES"] * tile["BLOCK_G"] * tile["GROUP"]
    pieces = piece_count(batch, seqlen, size, cu_seqlens)
    sums = x.new_empty(pieces, width + 1, dim, dtype=wide)
    causal_conv1d_bwd_kernel[(pieces * triton.cdiv(dim, tile["BLOCK_D"]),)](
        dy, dfinal_state, x, *weights, initial_state, cu_seqlens, dx, sums,
        dy.stride(), strides(dfinal_state), x.stride(), strides(initial_state), dx.stride(),
        dim, seqlen, sequences,
        CHANNEL_LAST=is_token_major(x), **options, **tile,
    )  # fmt: skip
    sums = sums.sum(0)
    dweight = dense_like(weight).copy_(sums[:-1].t())
    dbias = None if bias is None else dense_like(bias).copy_(sums[-1])
    if initial_state is None:
        return dx, dweight, dbias, None

    dinitial = dense_like(initial_state)
    block_d = min(1024 if interpreted() else 128, triton.next_power_of_2(dim))
    causal_conv1d_bwd_initial_kernel[(sequences, triton.cdiv(dim, block_d))](
        dy, dfinal_state, x, *weights, initial_state, cu_seqlens, dinitial,
        dy.stride(), strides(dfinal_state), x.stride(), initial_state.stride(), dinitial.stride(),
        dim, seqlen,
        BLOCK_D=block_d, num_warps=4, **options,
    )  # fmt: skip
    return dx, dweight, dbias, dinitial


def backward_tile_of(dtype, batch, dim, seqlen, channel_last):
    """Tile and warps for a problem: {GROUP, BLOCK_G, BLOCK_D, TILES, num_warps}.

    More tiles a program leave fewer sums, which cost 4 (width + 1) bytes a channel to write and to read, and fewer
    tokens that are read again: as many as leave the machine full.
    """
    if interpreted():  # cost is per operation, so one big tile
        block_d = min(1024, triton.next_power_of_2(dim))
        block_g = min(16, triton.next_power_of_2(triton.cdiv(seqlen, 8)))
        return {"GROUP": 8, "BLOCK_G": block_g, "BLOCK_D": block_d, "TILES": 2, "num_warps": 1}
    if channel_last:  # a thread has 4 channels, a warp a row of 128
        group, block_d, block_g, most = 4, min(128, triton.next_power_of_2(dim)), 4, 16
    else:
        group, most = 16 // dtype.itemsize, 8
        block_g = min(128, triton.next_power_of_2(triton.cdiv(seqlen, group)))
        block_d = min(256 // block_g, triton.next_power_of_2(dim))
    programs = batch * triton.cdiv(seqlen, group * block_g) * triton.cdiv(dim, block_d)
    tiles = min(most, triton.next_power_of_2(triton.cdiv(programs, 1024)))
    return {"GROUP": group, "BLOCK_G": block_g, "BLOCK_D": block_d, "TILES": tiles, "num_warps": 4}


def candidates(kernel, problem, dtype, generation):
    """Tiles to try for a CausalConv1dProblem, the static choice first; the same for every generation of GPUs."""
    default = backward_tile_of(
        dtype, problem.batch, problem.dim, problem.seqlen, problem.channel_last
    )
    group, tiles = default["GROUP"], default["TILES"]
    fewer, more = max(1, tiles // 2), 2 * tiles
    changes = [{"TILES": fewer}, {"TILES": more}, {"TILES": 2 * more}, {"TILES": 1}]
    if problem.channel_last:
        sizes = [
            (4, 2, 128, 2),
            (4, 8, 128, 8),
            (4, 4, 64, 4),
            (4, 8, 64, 4),
            (4, 4, 256, 8),
            (8, 4, 128, 4),
        ]
        sizes += [(2, 4, 128, 4), (4, 4, 128, 8)]
    else:
        sizes = [
            (group, 128, 1, 4),
            (group, 64, 4, 4),
            (group, 64, 2, 4),
            (group, 32, 8, 4),
            (group, 128, 4, 8),
        ]
        sizes += [(group, 256, 1, 8), (group, 64, 2, 2)]
    names = "GROUP", "BLOCK_G", "BLOCK_D", "num_warps"
    changes += [dict(zip(names, size, strict=True)) for size in sizes]
    found = []
    for tile in different(default, problem, [default | change for change in changes]):
        found += [tile] if tile not in found else []
    return (default, *found)


def static_cases():
    """The default configurations as `profiles.static` compiles them: width 4, bias, silu, no states."""
    cases = []
    for dtype in (torch.bfloat16, torch.float32):
        for channel_last, packed in ((True, False), (False, False), (True, True)):
            if dtype == torch.bfloat16 or not packed:
                tile = backward_tile_of(dtype, 8, 1536, 2048, channel_last)
                cases.append(_static_case(dtype, channel_last, tile, packed))
    return cases


def static_candidates(target):
    """Each candidate as `static_cases` has the default, with its name and configuration."""
    for channel_last in (True, False):
        problem = CausalConv1dProblem(8, 1536, 2048, channel_last=channel_last)
        for tile in candidates("causal_conv1d_bwd", problem, torch.bfloat16, None):
            case = _static_case(torch.bfloat16, channel_last, tile)
            case["name"] += label(tile)
            yield case | {"kernel_name": "causal_conv1d_bwd", "configuration": tile}


def _static_case(dtype, channel_last, tile, packed=False):
    layout = "channel-last" if channel_last else "time-last"
    case = static_case(
        f"causal_conv1d_bwd-{TYPES[dtype]}-{layout}{'-packed' if packed else ''}",
        causal_conv1d_bwd_kernel, TYPES[dtype], channel_last, tile,
        pointers=("dy_ptr", "x_ptr", "weight_ptr", "bias_ptr", "dx_ptr"), packed=packed,
        strides=("dy_strides", "x_strides", "dx_strides"), unused=("dfinal", "initial"),
        tokens=tile["GROUP"] * tile["BLOCK_G"],
    )  # fmt: skip
    case["signature"] |= {"sums_ptr": "*fp32"}
    return case
