"""What forward and backward kernels share: which tokens a program computes, and how it reads them.

A thread owns runs of GROUP neighbouring tokens, so that all taps of an output lie in its own registers; only the
width - 1 tokens around a run are read again, from the caches. Channel-last, a run is GROUP rows of 16 bytes;
time-last it is one piece of 16 bytes, and the runs around it come whole, because a shifted piece is not aligned.
Packed sequences begin anywhere, which leaves time-last pieces without a common mask: they are read token by token.
"""

import triton
import triton.language as tl


@triton.jit
def find_piece(cu_ptr, pid, sequences, seqlen, SIZE: tl.constexpr):
    """The packed sequence of piece `pid`, the first token of the piece, and the sequence's bounds counted from there.

    Pieces are the SIZE tokens from a multiple of SIZE on, once for each sequence that they touch: numbered by
    token // SIZE + sequence there are seqlen // SIZE + sequences of them. Wrong bounds stay inside of seqlen.
    """
    low, high = pid * 0, sequences - 1  # a tensor, as the loop leaves it
    while low < high:
        middle = (low + high + 1) // 2
        before = tl.load(cu_ptr + middle) // SIZE + middle <= pid
        low, high = tl.where(before, middle, low), tl.where(before, high, middle - 1)
    first = (pid - low) * SIZE
    start = tl.minimum(tl.maximum(tl.load(cu_ptr + low), 0), seqlen)
    end = tl.minimum(tl.maximum(tl.load(cu_ptr + low + 1), start), seqlen)
    return low, first, start - first, end - first


@triton.jit
def load_tokens(
    ptr, strides, offs_d, offs_l, mask_d, start, left,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, GROUP: tl.constexpr,
    CHANNEL_LAST: tl.constexpr, PACKED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Blocks of the tokens offs_l - BEFORE, ..., offs_l + GROUP + AFTER - 1; 0 outside of start .. left."""
    blocks = ()
    if CHANNEL_LAST:
        for i in tl.static_range(BEFORE + GROUP + AFTER):
            t = offs_l + (i - BEFORE)
            mask = mask_d & (t < left)
            if PACKED or i < BEFORE:
                mask = mask & (t >= start)
            x = tl.load(ptr + offs_d * strides[1] + t * strides[2], mask=mask, other=0.0)
            blocks += (x.to(ACC),)
    else:
        RUNS: tl.constexpr = (BEFORE + GROUP - 1) // GROUP  # whole runs that hold the tokens before
        LATER: tl.constexpr = (AFTER + GROUP - 1) // GROUP
        for run in tl.static_range(RUNS + 1 + LATER):
            first = offs_l[:, :, None] + (run - RUNS) * GROUP
            t = first + tl.arange(0, GROUP)[None, None, :]
            mask = mask_d[:, :, None] & (t < left)
            if PACKED:
                mask = mask & (t >= start)
            elif run < RUNS:
                # a run lies wholly in the sequence or wholly before it
                mask = mask & (first >= start)
            offs = offs_d[:, :, None] * strides[1] + t * strides[2]
            pieces = unstack(tl.load(ptr + offs, mask=mask, other=0.0), GROUP)
            for i in tl.static_range(GROUP):
                if (RUNS - run) * GROUP - i <= BEFORE and (run - RUNS - 1) * GROUP + i < AFTER:
                    blocks += (pieces[i].to(ACC),)
    return blocks


@triton.jit
def add_initial(
    inputs, ptr, strides, offs_d, offs_l, mask_d, start,
    WIDTH: tl.constexpr, PACKED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The blocks of `load_tokens` with BEFORE = WIDTH - 1, and the initial state in front of `start`."""
    HALO: tl.constexpr = WIDTH - 1
    carried = ()
    for i in tl.static_range(len(inputs)):
        if PACKED or i < HALO:
            place = offs_l + i - start
            mask = mask_d & (place < HALO)
            if PACKED:
                mask = mask & (place >= 0)
            offs = offs_d * strides[1] + place * strides[2]
            carried += (inputs[i] + tl.load(ptr + offs, mask=mask, other=0.0).to(ACC),)
        else:
            carried += (inputs[i],)
    return carried


@triton.jit
def store_tokens(
    ptr, strides, offs_d, offs_l, mask_d, start, left, outputs,
    GROUP: tl.constexpr, CHANNEL_LAST: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Write GROUP blocks to the tokens offs_l, offs_l + 1, ... of start .. left."""
    if CHANNEL_LAST:
        for i in tl.static_range(GROUP):
            t = offs_l + i
            mask = mask_d & (t < left)
            if PACKED:
                mask = mask & (t >= start)
            tl.store(ptr + offs_d * strides[1] + t * strides[2], outputs[i], mask=mask)
    else:
        t = offs_l[:, :, None] + tl.arange(0, GROUP)[None, None, :]
        mask = mask_d[:, :, None] & (t < left)
        if PACKED:
            mask = mask & (t >= start)
        offs = offs_d[:, :, None] * strides[1] + t * strides[2]
        tl.store(ptr + offs, stack(outputs, GROUP), mask=mask)


@triton.jit
def load_taps(ptr, offs_d, mask_d, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """The filters as WIDTH blocks (BLOCK_D, 1), read in one piece: column by column is 32 lines a warp."""
    PADDED: tl.constexpr = triton.next_power_of_2(WIDTH)
    offs_k = tl.arange(0, PADDED)[None, None, :]
    mask = mask_d[:, :, None] & (offs_k < WIDTH)
    weight = tl.load(ptr + offs_d[:, :, None] * WIDTH + offs_k, mask=mask, other=0.0)
    return unstack(weight.to(ACC), PADDED)


@triton.jit
def load_bias(ptr, offs_d, mask_d, BLOCK_G: tl.constexpr, ACC: tl.constexpr):
    """(BLOCK_D, BLOCK_G): as wide as the tile, which gives it the tile's layout; 0 without a bias."""
    wide = offs_d + tl.zeros((1, BLOCK_G), dtype=tl.int32)
    if ptr is None:
        return wide.to(ACC) * 0
    else:
        return tl.load(ptr + wide, mask=mask_d, other=0.0).to(ACC)


@triton.jit
def convolve(inputs, taps, bias, i: tl.constexpr, WIDTH: tl.constexpr):
    """bias plus the filter over inputs[i], ..., inputs[i + WIDTH - 1]."""
    acc = inputs[i] * taps[0] + bias
    for k in tl.static_range(1, WIDTH):
        acc += inputs[i + k] * taps[k]
    return acc


@triton.jit
def silu(x):
    # x / (1 + e^-x) in six instructions: exp2 and rsqrt are one each, exp and a division are not
    root = tl.rsqrt(1 + tl.exp2(x * -1.4426950408889634))
    return x * root * root


@triton.jit
def silu_gradient(x):
    """s + x s (1 - s) of the sigmoid s; 1 - s as e^-x s, which does not cancel."""
    e = tl.minimum(tl.exp2(x * -1.4426950408889634), 1e30)  # infinite, times s = 0, is no number
    root = tl.rsqrt(1 + e)
    s = root * root
    return s + s * x * (e * s)


@triton.jit
def unstack(block, COUNT: tl.constexpr):
    """(A, B, COUNT) -> COUNT blocks (A, B), in registers."""
    if COUNT == 1:
        return (block.reshape(block.shape[0], block.shape[1]),)
    else:
        pairs = block.reshape(block.shape[0], block.shape[1], COUNT // 2, 2)
        even, odd = pairs.split()
        even, odd = unstack(even, COUNT // 2), unstack(odd, COUNT // 2)
        blocks = ()
        for i in tl.static_range(COUNT // 2):
            blocks += (even[i], odd[i])
        return blocks


@triton.jit
def stack(blocks, COUNT: tl.constexpr):
    """COUNT blocks (A, B) -> (A, B, COUNT), in registers."""
    if COUNT == 1:
        return blocks[0][:, :, None]
    else:
        pairs = tl.join(stack(blocks[0::2], COUNT // 2), stack(blocks[1::2], COUNT // 2))
        return pairs.reshape(pairs.shape[0], pairs.shape[1], COUNT)
