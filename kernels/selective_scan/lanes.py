"""Device code: sums over the lanes of a warp for many numbers at once.

A sum over 32 lanes takes 5 shuffles. For 32 sums, lanes exchange instead what the other half is to add up: after 5
rounds of 16, 8, 4, 2 and 1 shuffles each sum stands in a lane of its own.
"""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

LANES = tl.constexpr(32)


@triton.jit
def per_lane(x):
    """The sum over the channels of each lane: (BLOCK_D,) to (LANES,)."""
    return tl.sum(tl.reshape(x, (LANES, x.shape[0] // LANES)), 1)


@triton.jit
def exchange(x, y, bit: tl.constexpr):
    """Add up pairs of lanes that differ in `bit`: x in the lanes without it, y in those with it."""
    lane = tl.arange(0, LANES)
    upper = (lane & bit) != 0
    return tl.where(upper, y, x) + tl.gather(tl.where(upper, x, y), lane ^ bit, 0)


@triton.jit
def merge(stack, n: tl.constexpr, bit: tl.constexpr):
    """Exchange the two uppermost entries if n and the states before it complete a group of `bit`."""
    if (n + 1) % bit == 0:
        merged = ()
        for k in tl.static_range(len(stack[0])):
            merged = merged + (exchange(stack[len(stack) - 2][k], stack[len(stack) - 1][k], bit),)
        stack = stack[: len(stack) - 2] + (merged,)
    return stack
