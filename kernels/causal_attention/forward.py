"""`triton`: exact attention in one pass over the keys (FlashAttention-2's online softmax).

A program owns BLOCK_M queries of one head and walks the keys in blocks of BLOCK_N: first those that all its
queries see, without a mask, then the few on the diagonal. Scores stay in base 2: with s = q k' and
c = softmax_scale log2(e), a probability is exp2(c s - m), one multiply-add and one exponential.

Packed sequences: a block of queries starts at the first key of its first sequence. Where it holds several sequences,
all its keys are masked; such a block is at most BLOCK_M keys longer than the rest of its first sequence.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.causal_attention.blocks import (
    LOWEST,
    attend,
    load_rows,
    schedule,
    sequence_of,
    store_rows,
)
from kernels.causal_attention.decode import causal_attention_decode, is_decoding
from kernels.causal_attention.tiles import (
    check_operands,
    heads_per_section,
    precision,
    static_cases_of,
    tile_for,
)
from kernels.implementations import note
from kernels.layout import empty_like


@triton.jit(do_not_specialize=["sequences"])
def causal_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, cu_seqlens_ptr,
    q_strides, k_strides, v_strides, o_strides,
    scale_log2, heads, heads_per_section, nheads, groups, sequences, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (HEADDIM + PIECE - 1) // PIECE
    blocks = tl.cdiv(seqlen_q, BLOCK_M)
    rank, pid_b, pid_h = schedule(heads, heads_per_section, nheads, blocks)
    first_m = (blocks - 1 - rank) * BLOCK_M  # the last queries see the most keys
    pid_kv = pid_h // groups
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1] + first_m.to(tl.int64) * q_strides[2]
    o_ptr += pid_b * o_strides[0] + pid_h * o_strides[1] + first_m.to(tl.int64) * o_strides[2]
    k_ptr += pid_b * k_strides[0] + pid_kv * k_strides[1]
    v_ptr += pid_b * v_strides[0] + pid_kv * v_strides[1]

    offs_m = tl.arange(0, BLOCK_M)
    inside = offs_m < seqlen_q - first_m
    m_i = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    l_i = tl.zeros((BLOCK_M,), dtype=tl.float32)
    q, acc = (), ()
    for i in tl.static_range(PIECES):
        q += (load_rows(q_ptr, q_strides, inside, i, HEADDIM, PIECE, BLOCK_M),)
        acc += (tl.zeros((BLOCK_M, PIECE), dtype=tl.float32),)

    first_position = seqlen_k - seqlen_q + first_m  # of the first query among the keys
    position = first_position + offs_m
    last = tl.minimum(first_position + BLOCK_M, seqlen_k)
    first, start = 0, None
    diagonal = (first_position + 1) // BLOCK_N * BLOCK_N  # all queries see the keys before it
    if cu_seqlens_ptr is not None:
        start, _ = sequence_of(cu_seqlens_ptr, sequences, position, seqlen_k)
        first = tl.min(start, 0)
        diagonal = first + (first_position + 1 - first) // BLOCK_N * BLOCK_N
        diagonal = tl.where(tl.max(start, 0) == first, diagonal, first)
        k_ptr += first.to(tl.int64) * k_strides[2]
        v_ptr += first.to(tl.int64) * v_strides[2]
    acc, m_i, l_i = attend(
        acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, first, diagonal, None, None, seqlen_k,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip
    k_ptr += (diagonal - first).to(tl.int64) * k_strides[2]
    v_ptr += (diagonal - first).to(tl.int64) * v_strides[2]
    acc, m_i, l_i = attend(
        acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, diagonal, last, position, start, seqlen_k,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip

    inside = first_m + offs_m < seqlen_q  # formed again: it would take registers through the loops
    for i in tl.static_range(PIECES):
        store_rows(
            o_ptr, o_strides, acc[i] * (1 / l_i)[:, None], inside, i, HEADDIM, PIECE, BLOCK_M
        )
    if lse_ptr is not None:
        lse_ptr += (pid_b * nheads + pid_h) * seqlen_q + first_m
        tl.store(lse_ptr + offs_m, (m_i + tl.log2(l_i)) * 0.6931471805599453, mask=inside)


# (BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages) by GPU generation and largest headdim. Chosen so that nothing spills
# and, on Hopper, that two thread blocks or two warp groups share a multiprocessor: one computes exponentials while
# the other multiplies. PIECE is the part of headdim that is in registers at once.
HALF = {
    8: {64: (128, 64, 64, 4, 3), 128: (128, 64, 128, 8, 3), 256: (64, 32, 128, 8, 2)},
    9: {
        64: (128, 64, 64, 8, 3),
        96: (128, 64, 32, 8, 3),
        128: (128, 64, 128, 8, 3),
        192: (128, 64, 64, 8, 2),
        256: (128, 64, 128, 8, 2),
    },
    10: {64: (128, 64, 64, 8, 3), 128: (128, 64, 128, 8, 3), 256: (128, 64, 128, 8, 2)},
}
FLOAT32 = {
    8: {64: (128, 32, 32, 8, 2), 128: (32, 32, 64, 4, 2), 256: (16, 16, 64, 4, 1)},
    9: {64: (64, 32, 64, 4, 2), 128: (64, 32, 64, 4, 2), 256: (64, 32, 32, 8, 1)},
    10: {64: (64, 32, 64, 8, 2), 128: (64, 32, 64, 8, 2), 256: (16, 16, 64, 8, 1)},
}
TABLES = (HALF, FLOAT32)


def causal_attention_triton(q, k, v, softmax_scale, return_lse, cu_seqlens=None):
    """Operands and results as `causal_attention_ref`, for a positive scale; nothing is copied, whatever the strides.

    float32 is computed from three TF32 products per product, which errs no more than float32 arithmetic does,
    or from one where `torch.backends.cuda.matmul.allow_tf32` is set. A few queries go to `decode.py`.
    """
    check_operands(q)
    batch, nheads, seqlen_q, headdim = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    groups = nheads // nheads_kv
    if cu_seqlens is None and is_decoding(seqlen_q, groups):
        return causal_attention_decode(q, k, v, softmax_scale, return_lse)
    note("causal_attention", "triton.causal_attention_fwd")
    o = empty_like(q)
    lse = q.new_empty(batch, nheads, seqlen_q, dtype=torch.float32) if return_lse else None
    tile = tile_for(TABLES, q, seqlen_k)
    kv_bytes = 2 * seqlen_k * headdim * q.element_size()
    section = groups * heads_per_section(batch * nheads_kv, kv_bytes)
    causal_attention_fwd_kernel[(triton.cdiv(seqlen_q, tile["BLOCK_M"]) * batch * nheads,)](
        q, k, v, o, lse, cu_seqlens,
        q.stride(), k.stride(), v.stride(), o.stride(),
        softmax_scale * math.log2(math.e), batch * nheads, section, nheads, groups,
        0 if cu_seqlens is None else len(cu_seqlens) - 1, seqlen_q, seqlen_k,
        HEADDIM=headdim, PRECISION=precision(q), **tile,
    )  # fmt: skip
    return o, lse


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that it is meant for."""
    counts = ("heads", "heads_per_section", "nheads", "groups", "sequences", "seqlen_q", "seqlen_k")
    scalars = {"lse_ptr": "*fp32", "scale_log2": "fp32"} | dict.fromkeys(counts, "i32")
    return static_cases_of(
        causal_attention_fwd_kernel, "causal_attention_fwd", TABLES, "qkvo", scalars,
        packed={"cu_seqlens_ptr": "*i32"},
    )  # fmt: skip
