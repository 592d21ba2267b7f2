"""How a program of the backward walks along time, in either layout; the equations are in `backward.py`."""

import triton
import triton.language as tl

from kernels.causal_conv1d.tiles import (
    add_initial,
    convolve,
    load_tokens,
    silu_gradient,
    store_tokens,
)


@triton.jit
def walk_rows(
    dy_ptr, dfinal_ptr, x_ptr, initial_ptr, dx_ptr,
    dy_strides, dfinal_strides, x_strides, initial_strides, dx_strides,
    taps, bias, offs_d, mask_d, start, left,
    WIDTH: tl.constexpr, SILU: tl.constexpr, PACKED: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Channel-last: a thread walks TILES runs, and keeps x and dp of the last width - 1 tokens for the next run.

    dx of a token is complete width - 1 tokens later. Returns the sums of the taps' gradients, then of the bias'.
    """
    HALO: tl.constexpr = WIDTH - 1
    STRETCH: tl.constexpr = TILES * GROUP
    offs_l = tl.arange(0, BLOCK_G)[None, :] * STRETCH
    inputs = load_tokens(
        x_ptr, x_strides, offs_d, offs_l, mask_d, start, left, HALO, 0, 0, True, PACKED, ACC
    )
    if initial_ptr is not None:
        inputs = add_initial(
            inputs, initial_ptr, initial_strides, offs_d, offs_l, mask_d, start, WIDTH, PACKED, ACC
        )
    dps = zeros(HALO, BLOCK_D, BLOCK_G, ACC)
    sums = zeros(WIDTH + 1, BLOCK_D, BLOCK_G, ACC)
    for run in range(tl.cdiv(tl.minimum(left, STRETCH) + HALO, GROUP)):
        here = run * GROUP
        new = load_tokens(
            x_ptr + here.to(tl.int64) * x_strides[2], x_strides, offs_d, offs_l, mask_d,
            start - here, left - here, 0, 0, GROUP, True, PACKED, ACC,
        )  # fmt: skip
        if PACKED and initial_ptr is not None:
            new = add_initial(
                new, initial_ptr, initial_strides, offs_d, offs_l + HALO, mask_d, start - here, WIDTH, PACKED, ACC
            )  # fmt: skip
        inputs += new
        dys = load_tokens(
            dy_ptr + here.to(tl.int64) * dy_strides[2], dy_strides, offs_d, offs_l, mask_d,
            start - here, left - here, 0, 0, GROUP, True, PACKED, ACC,
        )  # fmt: skip
        for i in tl.static_range(GROUP):
            dp = dys[i]
            if SILU:
                dp *= silu_gradient(convolve(inputs, taps, bias, i, WIDTH))
            dps += (dp,)

        for i in tl.static_range(GROUP):
            behind = here + (i - HALO)  # of the first token of the stretch
            t = offs_l + behind
            dx = input_gradient(dps, taps, i, WIDTH)
            if dfinal_ptr is not None:
                dx += load_final(dfinal_ptr, dfinal_strides, offs_d, t, mask_d, left, WIDTH, ACC)
            mask = mask_d & (t < left) & (behind >= 0) & (behind < STRETCH)
            if PACKED:
                mask = mask & (t >= start)
            row_ptr = dx_ptr + behind.to(tl.int64) * dx_strides[2]
            tl.store(row_ptr + offs_d * dx_strides[1] + offs_l * dx_strides[2], dx, mask=mask)

        own = ()
        for i in tl.static_range(GROUP):
            own += (tl.where(here + i < STRETCH, dps[HALO + i], 0.0),)
        sums = add_products(sums, own, inputs, GROUP, WIDTH)
        inputs, dps = inputs[GROUP:], dps[GROUP:]
    return sums


@triton.jit
def walk_pieces(
    dy_ptr, dfinal_ptr, x_ptr, initial_ptr, dx_ptr,
    dy_strides, dfinal_strides, x_strides, initial_strides, dx_strides,
    taps, bias, offs_d, mask_d, start, left,
    WIDTH: tl.constexpr, SILU: tl.constexpr, PACKED: tl.constexpr, ACC: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Time-last: all threads walk in tiles of neighbouring runs, and compute dp of the width - 1 tokens after theirs
    again. Returns the sums of the taps' gradients, then of the bias'.
    """
    HALO: tl.constexpr = WIDTH - 1
    BLOCK_L: tl.constexpr = BLOCK_G * GROUP
    PIECE: tl.constexpr = TILES * BLOCK_L
    offs_l = tl.arange(0, BLOCK_G)[None, :] * GROUP
    sums = zeros(WIDTH + 1, BLOCK_D, BLOCK_G, ACC)
    for tile in range(tl.maximum(start, 0) // BLOCK_L, tl.cdiv(tl.minimum(left, PIECE), BLOCK_L)):
        here = tile * BLOCK_L
        inputs = load_tokens(
            x_ptr + here.to(tl.int64) * x_strides[2], x_strides, offs_d, offs_l, mask_d,
            start - here, left - here, HALO, HALO, GROUP, False, PACKED, ACC,
        )  # fmt: skip
        if initial_ptr is not None:
            inputs = add_initial(
                inputs, initial_ptr, initial_strides, offs_d, offs_l, mask_d, start - here, WIDTH, PACKED, ACC
            )  # fmt: skip
        dys = load_tokens(
            dy_ptr + here.to(tl.int64) * dy_strides[2], dy_strides, offs_d, offs_l, mask_d,
            start - here, left - here, 0, HALO, GROUP, False, PACKED, ACC,
        )  # fmt: skip
        dps = ()
        for i in tl.static_range(GROUP + HALO):
            dp = dys[i]
            if SILU:
                dp *= silu_gradient(convolve(inputs, taps, bias, i, WIDTH))
            dps += (dp,)

        outputs = ()
        for i in tl.static_range(GROUP):
            dx = input_gradient(dps, taps, i, WIDTH)
            if dfinal_ptr is not None:
                t = offs_l + i
                dx += load_final(
                    dfinal_ptr, dfinal_strides, offs_d, t, mask_d, left - here, WIDTH, ACC
                )
            outputs += (dx.to(dx_ptr.dtype.element_ty),)
        store_tokens(
            dx_ptr + here.to(tl.int64) * dx_strides[2], dx_strides, offs_d, offs_l, mask_d,
            start - here, left - here, outputs, GROUP, False, PACKED,
        )  # fmt: skip
        sums = add_products(sums, dps, inputs, GROUP, WIDTH)
    return sums


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, ACC: tl.constexpr):
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks += (tl.zeros((BLOCK_D, BLOCK_G), dtype=ACC),)
    return blocks


@triton.jit
def input_gradient(dps, taps, i: tl.constexpr, WIDTH: tl.constexpr):
    """The filter backwards over dps[i], ..., dps[i + WIDTH - 1]."""
    dx = dps[i + WIDTH - 1] * taps[0]
    for k in tl.static_range(1, WIDTH):
        dx += dps[i + WIDTH - 1 - k] * taps[k]
    return dx


@triton.jit
def load_final(ptr, strides, offs_d, t, mask_d, left, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """What the gradient of the final state adds to the tokens `t`: 0 but for the last WIDTH - 1."""
    place = t - (left - WIDTH + 1)
    mask = mask_d & (place >= 0) & (t < left)
    return tl.load(ptr + offs_d * strides[1] + place * strides[2], mask=mask, other=0.0).to(ACC)


@triton.jit
def add_products(sums, dps, inputs, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    """sums[k] plus dps[i] inputs[i + k] of a run; the last one plus dps[i]."""
    more = ()
    for k in tl.static_range(WIDTH + 1):
        total = sums[k]
        for i in tl.static_range(GROUP):
            total += dps[i] * inputs[i + k] if k < WIDTH else dps[i]
        more += (total,)
    return more
