"""`triton`: a memory-bound kernel. Each program reads a tile of x once, in 16-byte pieces, in either layout.

A thread owns runs of GROUP neighbouring tokens, so that all taps of an output lie in its own registers; only the
width - 1 tokens before a run are read again, from the caches. Channel-last, a run is GROUP rows of 16 bytes;
time-last it is one piece of 16 bytes, and the runs before it come whole, because a shifted piece is not aligned.
"""

import torch
import triton
import triton.language as tl

from kernels import checks
from kernels.implementations import interpreted, note
from kernels.layout import empty_like, is_token_major


@triton.jit
def causal_conv1d_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, y_ptr, final_ptr,
    x_strides, initial_strides, y_strides,
    dim, seqlen,
    WIDTH: tl.constexpr, SILU: tl.constexpr, CHANNEL_LAST: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    HALO: tl.constexpr = WIDTH - 1
    BLOCK_L: tl.constexpr = BLOCK_G * GROUP
    pid, tiles_l, tiles_d = tl.program_id(0), tl.cdiv(seqlen, BLOCK_L), tl.cdiv(dim, BLOCK_D)
    # neighbouring programs take neighbouring memory
    if CHANNEL_LAST:
        pid_d, pid_l, pid_b = pid % tiles_d, pid // tiles_d % tiles_l, pid // tiles_d // tiles_l
    else:
        pid_l, pid_d, pid_b = pid % tiles_l, pid // tiles_l % tiles_d, pid // tiles_l // tiles_d
    left_l, left_d = seqlen - pid_l * BLOCK_L, dim - pid_d * BLOCK_D
    start = -pid_l * BLOCK_L  # where the sequence starts, counted from the first token of this tile

    # the offset of the tile needs 64 bits, that of a token inside it does not
    pid_b = pid_b.to(tl.int64)
    first_d, first_l = pid_d.to(tl.int64) * BLOCK_D, pid_l.to(tl.int64) * BLOCK_L
    x_ptr += pid_b * x_strides[0] + first_d * x_strides[1] + first_l * x_strides[2]
    y_ptr += pid_b * y_strides[0] + first_d * y_strides[1] + first_l * y_strides[2]
    offs_d = tl.arange(0, BLOCK_D)[:, None]
    offs_l = tl.arange(0, BLOCK_G)[None, :] * GROUP
    mask_d = offs_d < left_d
    if not CHANNEL_LAST:
        offs_d = offs_d.to(tl.int64)  # channels may lie far apart
    if initial_ptr is not None:
        initial_ptr += pid_b * initial_strides[0] + first_d * initial_strides[1]

    inputs = ()  # inputs[i] holds the tokens offs_l - HALO + i
    if CHANNEL_LAST:
        for i in tl.static_range(HALO + GROUP):
            t = offs_l + (i - HALO)
            mask = mask_d & (t < left_l)
            if i < HALO:
                mask = mask & (t >= start)
            x = tl.load(x_ptr + offs_d * x_strides[1] + t * x_strides[2], mask=mask, other=0.0)
            inputs += (x.to(ACC),)
    else:
        RUNS: tl.constexpr = (HALO + GROUP - 1) // GROUP  # whole runs that hold the halo
        for run in tl.static_range(RUNS + 1):
            first = offs_l[:, :, None] + (run - RUNS) * GROUP
            t = first + tl.arange(0, GROUP)[None, None, :]
            mask = mask_d[:, :, None] & (t < left_l)
            if run < RUNS:
                # a run lies wholly in the sequence or wholly before it
                mask = mask & (first >= start)
            offs = offs_d[:, :, None] * x_strides[1] + t * x_strides[2]
            pieces = _unstack(tl.load(x_ptr + offs, mask=mask, other=0.0), GROUP)
            for i in tl.static_range(GROUP):
                if (RUNS - run) * GROUP - i <= HALO:
                    inputs += (pieces[i].to(ACC),)
    if initial_ptr is not None:
        carried = ()
        for i in tl.static_range(HALO):
            offs = offs_d * initial_strides[1] + (offs_l + i - start) * initial_strides[2]
            mask = mask_d & (offs_l + i - start < HALO)
            carried += (inputs[i] + tl.load(initial_ptr + offs, mask=mask, other=0.0).to(ACC),)
        for i in tl.static_range(GROUP):
            carried += (inputs[HALO + i],)
        inputs = carried

    taps = _load_taps(weight_ptr + first_d * WIDTH, offs_d, mask_d, WIDTH, ACC)
    if bias_ptr is not None:
        # as wide as the tile, which gives it the tile's layout
        wide = offs_d + tl.zeros((1, BLOCK_G), dtype=tl.int32)
        bias = tl.load(bias_ptr + first_d + wide, mask=mask_d, other=0.0).to(ACC)
    else:
        bias = tl.zeros((BLOCK_D, 1), dtype=ACC)
    outputs = ()
    for i in tl.static_range(GROUP):
        acc = inputs[i] * taps[0] + bias
        for k in tl.static_range(1, WIDTH):
            acc += inputs[i + k] * taps[k]
        if SILU:
            # acc / (1 + e^-acc) in six instructions: exp2 and rsqrt are one each, exp and a division are not
            root = tl.rsqrt(1 + tl.exp2(acc * -1.4426950408889634))
            acc = acc * root * root
        outputs += (acc.to(y_ptr.dtype.element_ty),)
    if CHANNEL_LAST:
        for i in tl.static_range(GROUP):
            offs = offs_d * y_strides[1] + (offs_l + i) * y_strides[2]
            tl.store(y_ptr + offs, outputs[i], mask=mask_d & (offs_l + i < left_l))
    else:
        t = offs_l[:, :, None] + tl.arange(0, GROUP)[None, None, :]
        offs = offs_d[:, :, None] * y_strides[1] + t * y_strides[2]
        tl.store(y_ptr + offs, _stack(outputs, GROUP), mask=mask_d[:, :, None] & (t < left_l))

    if left_l <= BLOCK_L:  # the last tile also keeps the last inputs
        final_ptr += (pid_b * dim + first_d) * HALO
        for k in tl.static_range(HALO):
            last = left_l - HALO + k
            newer = x_ptr + offs_d * x_strides[1] + last * x_strides[2]
            kept = tl.load(newer, mask=mask_d & (last >= start), other=0.0)
            if initial_ptr is not None:
                offs = offs_d * initial_strides[1] + (seqlen + k) * initial_strides[2]
                kept += tl.load(initial_ptr + offs, mask=mask_d & (last < start), other=0.0).to(
                    kept.dtype
                )
            tl.store(final_ptr + offs_d * HALO + k, kept, mask=mask_d)


@triton.jit
def _load_taps(weight_ptr, offs_d, mask_d, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """The filters as WIDTH blocks (BLOCK_D, 1), read in one piece: column by column is 32 lines a warp."""
    PADDED: tl.constexpr = triton.next_power_of_2(WIDTH)
    offs_k = tl.arange(0, PADDED)[None, None, :]
    mask = mask_d[:, :, None] & (offs_k < WIDTH)
    weight = tl.load(weight_ptr + offs_d[:, :, None] * WIDTH + offs_k, mask=mask, other=0.0)
    return _unstack(weight.to(ACC), PADDED)


@triton.jit
def _unstack(block, COUNT: tl.constexpr):
    """(A, B, COUNT) -> COUNT blocks (A, B), in registers."""
    if COUNT == 1:
        return (block.reshape(block.shape[0], block.shape[1]),)
    else:
        pairs = block.reshape(block.shape[0], block.shape[1], COUNT // 2, 2)
        even, odd = pairs.split()
        even, odd = _unstack(even, COUNT // 2), _unstack(odd, COUNT // 2)
        blocks = ()
        for i in tl.static_range(COUNT // 2):
            blocks += (even[i], odd[i])
        return blocks


@triton.jit
def _stack(blocks, COUNT: tl.constexpr):
    """COUNT blocks (A, B) -> (A, B, COUNT), in registers."""
    if COUNT == 1:
        return blocks[0][:, :, None]
    else:
        pairs = tl.join(_stack(blocks[0::2], COUNT // 2), _stack(blocks[1::2], COUNT // 2))
        return pairs.reshape(pairs.shape[0], pairs.shape[1], COUNT)


def causal_conv1d_triton(x, weight, bias, initial_state, activation):
    """Operands and results as `causal_conv1d_ref`; y has the layout of `x`, which is not copied."""
    checks.check_no_gradient("causal_conv1d", "triton", x, weight, bias, initial_state)
    note("causal_conv1d", "triton.causal_conv1d_fwd")
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    y = empty_like(x)
    final_state = x.new_empty(batch, dim, width - 1)
    tile = tile_of(x.dtype, dim, seqlen, is_token_major(x))
    tiles = triton.cdiv(seqlen, tile["BLOCK_G"] * tile["GROUP"]) * triton.cdiv(dim, tile["BLOCK_D"])
    causal_conv1d_fwd_kernel[(tiles * batch,)](
        x, weight.contiguous(), None if bias is None else bias.contiguous(), initial_state, y, final_state,
        x.stride(), (0, 0, 0) if initial_state is None else initial_state.stride(), y.stride(),
        dim, seqlen,
        WIDTH=width, SILU=activation == "silu", CHANNEL_LAST=is_token_major(x),
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32, **tile,
    )  # fmt: skip
    return y, final_state


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


def static_cases():
    """The default configurations as `profiles.static` compiles them: width 4, bias, silu, no initial state."""
    cases = []
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for channel_last in (True, False):
            arguments = causal_conv1d_fwd_kernel.arg_names
            unit = 1 if channel_last else 2  # the dimension whose stride is 1
            strides = tuple("constexpr" if i == unit else "i32" for i in range(3))
            signature = dict.fromkeys(arguments, "constexpr")
            for argument in ("x_ptr", "weight_ptr", "bias_ptr", "y_ptr", "final_ptr"):
                signature[argument] = f"*{name}"
            signature |= {"x_strides": strides, "y_strides": strides, "dim": "i32", "seqlen": "i32"}
            signature["initial_strides"] = ("i32", "i32", "i32")
            constexprs = {
                "initial_ptr": None, "WIDTH": 4, "SILU": True, "CHANNEL_LAST": channel_last, "ACC": tl.float32,
                (arguments.index("x_strides"), unit): 1, (arguments.index("y_strides"), unit): 1,
            }  # fmt: skip
            tile = tile_of(dtype, 1536, 2048, channel_last)
            num_warps = tile.pop("num_warps")
            layout = "channel-last" if channel_last else "time-last"
            cases.append(
                {
                    "name": f"causal_conv1d_fwd-{name}-{layout}",
                    "kernel": causal_conv1d_fwd_kernel,
                    "signature": signature,
                    "constexprs": constexprs | tile,
                    "num_warps": num_warps,
                    "num_stages": 1,
                    "work": {
                        "tokens x channels": tile["GROUP"] * tile["BLOCK_G"] * tile["BLOCK_D"]
                    },
                }
            )
    return cases
