"""`triton`: the mass that every key receives: a program owns BLOCK_N keys of one head and walks the queries.

No atomics: the weights p = exp2(c s - m) / l are formed again from the row maxima m and sums l, added up element by
element over the blocks of queries, and over the rows of a block once at the end. The result repeats bit by bit.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_statistics.scores import scores
from kernels.causal_attention.blocks import load_rows, schedule
from kernels.causal_attention.tiles import (
    heads_per_section,
    precision,
    static_cases_of,
    tile_for,
)


@triton.jit
def receive(
    acc, k, k_ptr, k_strides, q_ptr, q_strides, positions_ptr, m_ptr, l_ptr, scale_log2, first, last,
    key, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add the weights of the queries first..last to `acc`; the pointers are those of query `first`."""
    offs_m = tl.arange(0, BLOCK_M)
    for n in tl.range(first, last, BLOCK_M):
        inside = offs_m < seqlen_q - n
        s = scores(
            None, q_ptr, q_strides, inside, k, k_ptr, k_strides, key < seqlen_k,
            HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        # infinities: weights of zero
        m = tl.load(m_ptr + offs_m, mask=inside, other=float("inf"))
        l = tl.load(l_ptr + offs_m, mask=inside, other=float("inf"))
        t = s * scale_log2 - m[:, None]
        if MASKED:
            position = tl.load(positions_ptr + offs_m, mask=inside, other=0).to(tl.int32)
            t = tl.where(position[:, None] >= key[None, :], t, float("-inf"))
        acc += tl.exp2(t) * (1 / l)[:, None]
        q_ptr += BLOCK_M * q_strides[2]
        positions_ptr += BLOCK_M
        m_ptr += BLOCK_M
        l_ptr += BLOCK_M
    return acc


@triton.jit
def attention_statistics_received_kernel(
    q_ptr, k_ptr, positions_ptr, bounds_ptr, m_ptr, l_ptr, received_ptr,
    q_strides, k_strides,
    scale_log2, heads, heads_per_section, nheads, groups, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(seqlen_k, BLOCK_N)
    rank, pid_b, pid_h = schedule(heads, heads_per_section, nheads, blocks)
    first_n = rank * BLOCK_N  # the first keys are seen by the most queries
    # the block of queries with the first that sees the first key, and with the first that sees all of them
    first = tl.load(bounds_ptr + rank)
    diagonal = tl.load(bounds_ptr + blocks + rank)
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1] + first.to(tl.int64) * q_strides[2]
    k_ptr += pid_b * k_strides[0] + (pid_h // groups) * k_strides[1]
    k_ptr += first_n.to(tl.int64) * k_strides[2]
    row = (pid_b * nheads + pid_h) * seqlen_q + first
    m_ptr += row
    l_ptr += row

    key = first_n + tl.arange(0, BLOCK_N)
    k = None
    if HEADDIM <= PIECE:
        k = load_rows(k_ptr, k_strides, key < seqlen_k, 0, HEADDIM, PIECE, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc = receive(
        acc, k, k_ptr, k_strides, q_ptr, q_strides, positions_ptr + first, m_ptr, l_ptr, scale_log2, first, diagonal,
        key, seqlen_q, seqlen_k,
        HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N, MASKED=True,
    )  # fmt: skip
    done = (diagonal - first).to(tl.int64)
    acc = receive(
        acc, k, k_ptr, k_strides, q_ptr + done * q_strides[2], q_strides, positions_ptr, m_ptr + done, l_ptr + done,
        scale_log2, diagonal, seqlen_q, key, seqlen_q, seqlen_k,
        HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N, MASKED=False,
    )  # fmt: skip
    received_ptr += (pid_b * nheads + pid_h) * seqlen_k
    # in two steps: the interpreter adds rows one after the other, which errs as their number
    acc = tl.sum(tl.reshape(acc, (8, BLOCK_M // 8, BLOCK_N)), 0)
    tl.store(received_ptr + key, tl.sum(acc, 0), mask=key < seqlen_k)


# (BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages) by GPU generation and largest headdim; chosen so that nothing spills
HALF = {
    8: {64: (64, 64, 64, 4, 3), 128: (64, 64, 128, 4, 2), 256: (32, 64, 128, 8, 2)},
    9: {64: (64, 128, 64, 4, 3), 128: (64, 128, 128, 8, 3), 256: (64, 64, 128, 4, 2)},
    10: {64: (128, 64, 64, 4, 3), 128: (128, 64, 128, 8, 3), 256: (128, 64, 128, 8, 2)},
}
FLOAT32 = {
    8: {64: (32, 64, 32, 4, 2), 128: (32, 32, 64, 4, 2), 256: (16, 16, 64, 4, 1)},
    9: {64: (64, 32, 64, 4, 2), 128: (64, 32, 64, 4, 2), 256: (64, 16, 32, 4, 1)},
    10: {64: (64, 32, 64, 8, 2), 128: (64, 32, 64, 8, 2), 256: (16, 16, 64, 8, 1)},
}
TABLES = (HALF, FLOAT32)


def received_of(q, k, scale_log2, positions, m, l):
    """Sums of the weights by key, (batch, nheads, seqlen_k), from the maxima m (base 2) and sums l of the rows."""
    batch, nheads, seqlen_q, headdim = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    received = q.new_empty(batch, nheads, seqlen_k, dtype=torch.float32)
    tile = tile_for(TABLES, q, seqlen_k)
    bounds = _bounds(positions, seqlen_k, tile["BLOCK_M"], tile["BLOCK_N"])
    query_bytes = seqlen_q * headdim * q.element_size()
    section = heads_per_section(batch * nheads, query_bytes)
    attention_statistics_received_kernel[(bounds.shape[1] * batch * nheads,)](
        q, k, positions, bounds, m, l, received,
        q.stride(), k.stride(),
        scale_log2, batch * nheads, section, nheads, nheads // nheads_kv, seqlen_q, seqlen_k,
        HEADDIM=headdim, PRECISION=precision(q), **tile,
    )  # fmt: skip
    return received


def _bounds(positions, seqlen_k, block_m, block_n):
    """(2, blocks of keys) int32: the first query that sees the first key, and the first that sees all, in whole blocks.

    The former is rounded down and the latter up to a multiple of block_m, at most to the end of the queries.
    """
    first_key = torch.arange(0, seqlen_k, block_n, device=positions.device)
    last_key = (first_key + block_n - 1).clamp_(max=seqlen_k - 1)
    first, full = torch.searchsorted(positions, torch.stack([first_key, last_key]))
    full = ((full + block_m - 1) // block_m * block_m).clamp_(max=len(positions))
    return torch.stack([first // block_m * block_m, full]).int()


def received_static_cases():
    """As `forward.static_cases`."""
    counts = ("heads", "heads_per_section", "nheads", "groups", "seqlen_q", "seqlen_k")
    scalars = {"positions_ptr": "*i64", "bounds_ptr": "*i32", "scale_log2": "fp32"}
    scalars |= dict.fromkeys(("m_ptr", "l_ptr", "received_ptr"), "*fp32")
    scalars |= dict.fromkeys(counts, "i32")
    return static_cases_of(
        attention_statistics_received_kernel, "attention_statistics_received", TABLES, "qk", scalars
    )
