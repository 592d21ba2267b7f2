"""What the kernels of the backward run in by default, and what else is worth a measurement, by GPU, dtype and headdim.

A row is (BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages), and the names of what is switched on besides. Nothing spills,
and products are asynchronous where the GPU has such and half precision. Nobody has measured them yet.

On Hopper three stages let loads run a block ahead: with two, they start at the end of a block and the next one waits
for them. SPLIT forms dk and dv in a launch each: five products instead of four, but the sums of a wide headdim leave
registers for asynchronous ones. On generation 10 a tile of keys whose sums outgrow the tensor memory compiles to a
trap, not to an error.
"""

S = "SPLIT"
DQ_HALF = {
    8: {64: (128, 64, 64, 8, 2), 128: (128, 64, 64, 8, 2), 256: (32, 32, 64, 4, 2)},
    9: {
        64: (128, 128, 64, 8, 3),
        96: (128, 64, 32, 8, 3),
        128: (128, 64, 128, 8, 3),
        192: (128, 64, 64, 8, 2),
        256: (128, 32, 128, 8, 2),
    },
    10: {64: (128, 64, 64, 4, 2), 128: (128, 64, 128, 8, 2), 256: (64, 32, 64, 8, 2)},
}
DQ_FLOAT32 = {
    8: {64: (32, 32, 32, 4, 1), 128: (32, 16, 64, 4, 1), 256: (16, 16, 64, 8, 1)},
    9: {64: (64, 32, 32, 4, 2), 128: (64, 16, 64, 4, 1), 256: (16, 16, 64, 8, 1)},
    10: {64: (64, 32, 32, 8, 2), 128: (16, 16, 64, 4, 1), 256: (16, 16, 64, 8, 1)},
}
DKDV_HALF = {
    8: {64: (64, 128, 64, 8, 2), 128: (32, 64, 128, 4, 2), 256: (32, 32, 64, 4, 2)},
    9: {
        64: (64, 128, 64, 8, 3),
        96: (64, 128, 32, 8, 3),
        128: (64, 128, 128, 8, 3),
        192: (64, 128, 64, 8, 2, S),
        256: (32, 128, 128, 8, 2, S),
    },
    10: {64: (64, 128, 64, 8, 2), 128: (64, 128, 128, 8, 2), 256: (32, 32, 64, 4, 2)},
}
DKDV_FLOAT32 = {
    8: {64: (16, 32, 32, 4, 1), 128: (16, 32, 64, 8, 1), 256: (16, 16, 64, 8, 1, S)},
    9: {64: (32, 64, 32, 4, 1), 128: (16, 64, 64, 4, 1, S), 256: (16, 16, 64, 8, 1, S)},
    10: {64: (32, 32, 64, 8, 1), 128: (16, 16, 64, 4, 1), 256: (16, 16, 64, 8, 2, S)},
}
DQ, DKDV = (DQ_HALF, DQ_FLOAT32), (DKDV_HALF, DKDV_FLOAT32)

DQ_TRIED_HALF = {
    9: {
        64: (
            (128, 64, 64, 8, 2),
            (128, 64, 64, 8, 3),
            (128, 64, 64, 8, 4),
            (128, 128, 64, 8, 2),
            (64, 64, 64, 4, 2),
            (64, 64, 64, 4, 3),
            (64, 128, 64, 4, 3),
        ),
        96: ((128, 64, 32, 8, 2),),
        128: (
            (128, 64, 64, 8, 3),
            (128, 64, 128, 8, 2),
            (128, 64, 128, 8, 4),
            (64, 64, 64, 4, 3),
            (64, 64, 128, 4, 3),
            (64, 32, 128, 4, 3),
            (128, 32, 128, 8, 3),
        ),
        192: ((128, 32, 64, 8, 2), (128, 32, 64, 8, 3)),
        256: ((128, 32, 64, 8, 2),),
    }
}
DQ_TRIED_FLOAT32 = {9: {128: ((64, 16, 32, 4, 1),)}}
DKDV_TRIED_HALF = {
    9: {
        64: (
            (64, 128, 64, 8, 2),
            (64, 64, 64, 4, 2),
            (64, 64, 64, 4, 3),
            (32, 64, 64, 4, 2),
            (32, 64, 64, 4, 3),
            (32, 128, 64, 8, 3),
        ),
        96: ((64, 128, 32, 8, 2),),
        128: (
            (64, 128, 64, 8, 3),
            (64, 128, 128, 8, 2),
            (32, 64, 64, 4, 2),
            (32, 64, 64, 4, 3),
            (32, 64, 128, 4, 3),
            (32, 128, 128, 8, 3),
        ),
        256: ((32, 128, 64, 8, 2, S),),
    }
}
DKDV_TRIED_FLOAT32 = {9: {128: ((16, 64, 32, 4, 1, S),)}}
DQ_TRIED = (DQ_TRIED_HALF, DQ_TRIED_FLOAT32)
DKDV_TRIED = (DKDV_TRIED_HALF, DKDV_TRIED_FLOAT32)
