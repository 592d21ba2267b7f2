"""What the forward kernel runs in by default, and what else is worth a measurement: tiles by GPU, dtype and headdim.

A row is (BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages), and the names of what is switched on besides. Nothing spills.

On Hopper a multiprocessor reads 128 bytes of shared memory a clock. With 64 keys a block, q k' alone takes all of it:
64 x 64 scores of depth 16 read 2 KiB of q and 2 KiB of k in the 32 clocks that they multiply. With 128 keys it is
three quarters, so headdim 128 takes those; headdim 64 takes blocks small enough that two programs share a
multiprocessor, and one computes exponentials while the other multiplies. In float32 every product is three, and q, k
and v lie there in two parts each: shared memory is the bound, so the tiles are the largest that fit.

Copies of a block are issued at the end of a trip. With two stages the next trip waits for them at once; with three they
have a trip of their own, so three it is wherever they fit.

PIECE is the part of headdim that is in registers at once.
"""

HALF = {
    8: {64: (128, 64, 64, 4, 3), 128: (128, 64, 128, 8, 3), 256: (64, 32, 128, 8, 2)},
    9: {
        64: (128, 64, 64, 8, 3),
        96: (128, 64, 32, 8, 3),
        128: (128, 128, 64, 8, 3),
        192: (128, 64, 64, 8, 3),
        256: (128, 64, 128, 8, 2),
    },
    10: {64: (128, 64, 64, 8, 3), 128: (128, 64, 128, 8, 3), 256: (128, 64, 128, 8, 2)},
}
FLOAT32 = {
    8: {64: (128, 32, 32, 8, 2), 128: (32, 32, 64, 4, 2), 256: (16, 16, 64, 4, 1)},
    9: {64: (128, 64, 64, 8, 2), 128: (128, 32, 64, 8, 2), 256: (64, 32, 32, 8, 1)},
    10: {64: (64, 32, 64, 8, 2), 128: (64, 32, 64, 8, 2), 256: (16, 16, 64, 8, 1)},
}
TABLES = (HALF, FLOAT32)

D, L, W = "DESCRIPTORS", "LATE_VALUES", "WARP_SPECIALIZE"
TRIED_HALF = {
    9: {
        64: (
            (128, 64, 64, 8, 2),
            (128, 64, 64, 8, 4),
            (128, 64, 64, 4, 2),
            (128, 64, 64, 4, 3),
            (128, 128, 64, 8, 2),
            (128, 128, 64, 8, 3),
            (256, 64, 64, 8, 2),
            (256, 64, 64, 8, 3),
            (64, 128, 64, 4, 2),
            (128, 64, 64, 8, 3, L),
            (128, 64, 64, 8, 3, D),
            (128, 64, 64, 4, 3, D),
            (128, 128, 64, 8, 2, D),
            (128, 128, 64, 8, 3, D),
            (256, 64, 64, 8, 3, D),
            (128, 64, 64, 8, 3, D, L),
            (128, 128, 64, 8, 2, D, L),
            (128, 128, 64, 8, 3, D, L),
            (128, 128, 64, 4, 2, D, W),
            (128, 128, 64, 4, 3, D, W),
        ),
        96: (
            (128, 64, 32, 8, 2),
            (128, 64, 128, 8, 3),
            (128, 128, 32, 8, 2),
            (128, 128, 32, 8, 3),
            (128, 128, 128, 8, 2, D),
            (128, 128, 128, 8, 2, D, L),
            (128, 128, 32, 8, 2, D),
            (128, 128, 32, 8, 2, D, L),
            (128, 128, 128, 4, 2, D, W),
        ),
        128: (
            (128, 64, 64, 8, 3),
            (128, 64, 128, 8, 2),
            (128, 64, 128, 8, 3),
            (128, 128, 64, 8, 2),
            (64, 64, 64, 4, 2),
            (128, 64, 128, 8, 3, L),
            (128, 64, 128, 8, 3, D),
            (128, 64, 128, 8, 4, D),
            (128, 128, 128, 8, 2, D),
            (128, 128, 128, 8, 3, D),
            (128, 64, 128, 8, 3, D, L),
            (128, 128, 128, 8, 2, D, L),
            (128, 128, 128, 8, 3, D, L),
            (128, 64, 128, 4, 3, D, W),
            (128, 128, 128, 4, 2, D, W),
        ),
        192: (
            (128, 64, 64, 8, 2),
            (128, 64, 64, 8, 2, D),
            (128, 64, 64, 8, 3, D),
            (128, 64, 64, 8, 2, D, L),
        ),
        256: ((128, 64, 64, 8, 2), (128, 64, 128, 8, 2, D), (128, 64, 256, 8, 2, D)),
    }
}
TRIED_FLOAT32 = {
    9: {
        64: ((64, 32, 64, 4, 2), (64, 32, 64, 4, 3), (128, 32, 64, 8, 2), (128, 64, 64, 8, 1)),
        128: ((64, 32, 64, 4, 2), (64, 32, 64, 4, 1), (128, 32, 64, 8, 1), (128, 32, 32, 8, 2)),
        256: ((64, 16, 32, 8, 1), (32, 16, 64, 4, 1), (32, 32, 64, 8, 1)),
    }
}
TRIED = (TRIED_HALF, TRIED_FLOAT32)
