"""What the kernel that owns queries runs in by default (TABLES), and what else is worth a measurement (TRIED).

Rows are (BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages) by GPU generation and largest headdim; nothing spills. The
tuner tries this kernel only: `received.py` has the smaller part of the work.
"""

HALF = {
    8: {64: (64, 64, 64, 4, 3), 128: (64, 64, 128, 4, 3), 256: (64, 32, 128, 8, 2)},
    9: {64: (128, 64, 64, 8, 3), 128: (128, 64, 128, 8, 3), 256: (128, 64, 256, 8, 2)},
    10: {64: (128, 64, 64, 8, 3), 128: (128, 64, 128, 8, 3), 256: (128, 32, 128, 8, 2)},
}
FLOAT32 = {
    8: {64: (128, 32, 32, 8, 2), 128: (32, 32, 64, 4, 1), 256: (32, 16, 32, 8, 1)},
    9: {64: (64, 32, 64, 4, 2), 128: (64, 32, 32, 4, 2), 256: (64, 32, 32, 4, 1)},
    10: {64: (64, 32, 64, 8, 2), 128: (64, 32, 64, 8, 2), 256: (64, 32, 32, 8, 1)},
}
TABLES = (HALF, FLOAT32)

TRIED_HALF = {
    9: {
        64: (
            (128, 64, 64, 8, 2),
            (128, 64, 64, 8, 4),
            (64, 64, 64, 4, 2),
            (64, 64, 64, 4, 3),
            (64, 64, 64, 4, 4),
            (64, 32, 64, 4, 3),
            (128, 32, 64, 8, 3),
        ),
        128: (
            (128, 64, 128, 8, 2),
            (64, 64, 128, 4, 2),
            (64, 64, 128, 4, 3),
            (64, 32, 128, 4, 3),
            (128, 32, 128, 8, 3),
        ),
    }
}
TRIED_FLOAT32 = {9: {128: ((64, 32, 64, 4, 2), (64, 32, 64, 4, 1))}}
TRIED = (TRIED_HALF, TRIED_FLOAT32)
