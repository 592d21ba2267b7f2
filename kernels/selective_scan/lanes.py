"""Device code: sums over the lanes of a warp for many numbers at once.

A sum over 32 lanes takes 5 shuffles. For 32 sums, lanes exchange instead what the other half is to add up: after 5
rounds of 16, 8, 4, 2 and 1 shuffles each sum stands in a lane of its own. A round of `exchange` is two selections, a
shuffle and an addition; where the halves already hold what they have in exchanged order, `merge` needs no selections.
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
def per_channel(x, BLOCK_D: tl.constexpr):
    """The number of each lane for its channels: (LANES,) to (BLOCK_D,)."""
    return tl.reshape(tl.broadcast_to(x[:, None], (LANES, BLOCK_D // LANES)), (BLOCK_D,))


@triton.jit
def of_neighbour(x, bit: tl.constexpr):
    """What the lane whose number differs in `bit` has."""
    return tl.gather(x, tl.arange(0, LANES) ^ bit, 0)


@triton.jit
def merge(stack, j: tl.constexpr, COUNT: tl.constexpr):
    """Add up as many of the last entries of `stack` as are complete, after entry j of COUNT.

    Entry j of lane i is about state j ^ (i * COUNT // LANES). At the end one entry is left, about state
    i * COUNT // LANES, summed over the lanes that differ in this.
    """
    for level in tl.static_range(3):
        if (2 << level) <= COUNT and (j + 1) % (2 << level) == 0:
            merged = ()
            for k in tl.static_range(len(stack[0])):
                other = of_neighbour(stack[len(stack) - 1][k], (LANES // COUNT) << level)
                merged = merged + (stack[len(stack) - 2][k] + other,)
            stack = stack[: len(stack) - 2] + (merged,)
    return stack


@triton.jit
def exchange(x, y, bit: tl.constexpr):
    """Add up pairs of lanes that differ in `bit`: x in the lanes without it, y in those with it."""
    upper = (tl.arange(0, LANES) & bit) != 0
    return tl.where(upper, y, x) + of_neighbour(tl.where(upper, x, y), bit)


@triton.jit
def exchange_all(sums, WIDTH: tl.constexpr):
    """Sums over groups of WIDTH lanes: number k of `sums`, a power of two of them, ends in lane k % WIDTH of a group.

    Returns a tuple: number k stands in entry k // WIDTH.
    """
    for level in tl.static_range(5):
        if (1 << level) < WIDTH:
            halved = ()
            if len(sums) > 1:
                for k in tl.static_range(len(sums) // 2):
                    halved = halved + (exchange(sums[2 * k], sums[2 * k + 1], 1 << level),)
            else:
                halved = (sums[0] + of_neighbour(sums[0], 1 << level),)
            sums = halved
    return sums
