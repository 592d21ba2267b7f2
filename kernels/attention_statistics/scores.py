"""A block of scores for the Triton kernels: those that own queries and those that own keys."""

import triton
import triton.language as tl

from kernels.causal_attention.blocks import load_rows


@triton.jit
def scores(
    q, q_ptr, q_strides, q_inside, k, k_ptr, k_strides, k_inside,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q k', (BLOCK_M, BLOCK_N) float32. Rows are those that a program holds, or, if None, those at the pointer.

    A program cannot hold rows in several pieces: those are of a headdim for which registers do not suffice.
    """
    s = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in tl.static_range((HEADDIM + PIECE - 1) // PIECE):
        a, b = q, k
        if q is None:
            a = load_rows(q_ptr, q_strides, q_inside, i, HEADDIM, PIECE, BLOCK_M)
        if k is None:
            b = load_rows(k_ptr, k_strides, k_inside, i, HEADDIM, PIECE, BLOCK_N)
        s = tl.dot(a, b.T, s, input_precision=PRECISION)
    return s
