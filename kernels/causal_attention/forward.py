"""`triton`: exact attention in one pass over the keys (FlashAttention-2's online softmax).

A program owns BLOCK_M queries of one head and walks the keys in blocks of BLOCK_N: first those that all its
queries see, without a mask, then the few on the diagonal. Scores stay in base 2: with s = q k' and
c = softmax_scale log2(e), a probability is exp2(c s - m), one multiply-add and one exponential.

What may differ by configuration, for Hopper: LATE_VALUES forms p v of a block under the exponentials of the next one;
DESCRIPTORS have the copy engine fetch keys and values, which frees the registers of their addresses; WARP_SPECIALIZE
gives one group of warps the copies and two the arithmetic (FlashAttention-3), with a mask on every block.

Packed sequences: a block of queries starts at the first key of its first sequence. Where it holds several sequences,
all its keys are masked; such a block is at most BLOCK_M keys longer than the rest of its first sequence.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from kernels.causal_attention.blocks import (
    LOWEST,
    add_values,
    advance,
    attend,
    attend_late,
    load_rows,
    schedule,
    sequence_of,
    store_rows,
)
from kernels.causal_attention.decode import causal_attention_decode, is_decoding
from kernels.causal_attention.descriptors import describable, describe, launch_with_descriptors
from kernels.causal_attention.forward_tiles import TABLES, TRIED
from kernels.causal_attention.tiles import (
    candidates_of,
    check_operands,
    heads_per_section,
    precision,
    static_candidates_of,
    static_cases_of,
    tile_for,
)
from kernels.implementations import note
from kernels.layout import empty_like

KERNEL = "causal_attention_fwd"


@triton.jit(do_not_specialize=["sequences"])
def causal_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, cu_seqlens_ptr,
    q_strides, k_strides, v_strides, o_strides,
    scale_log2, heads, heads_per_section, nheads, groups, sequences, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr = False, LATE_VALUES: tl.constexpr = False, WARP_SPECIALIZE: tl.constexpr = False,
):  # fmt: skip
    PIECES: tl.constexpr = (HEADDIM + PIECE - 1) // PIECE
    blocks = tl.cdiv(seqlen_q, BLOCK_M)
    rank, pid_b, pid_h = schedule(heads, heads_per_section, nheads, blocks)
    first_m = (blocks - 1 - rank) * BLOCK_M  # the last queries see the most keys
    pid_kv = pid_h // groups
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1]
    o_ptr += pid_b * o_strides[0] + pid_h * o_strides[1]
    k_ptr += pid_b * k_strides[0] + pid_kv * k_strides[1]
    v_ptr += pid_b * v_strides[0] + pid_kv * v_strides[1]

    offs_m = tl.arange(0, BLOCK_M)
    inside = offs_m < seqlen_q - first_m
    m_i = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    l_i = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if WARP_SPECIALIZE:
        # Triton shares a block out to groups of warps if the copy engine brings and takes it
        q_source = describe(q_ptr, q_strides, seqlen_q, HEADDIM, PIECE, BLOCK_M)
        o_source = describe(o_ptr, o_strides, seqlen_q, HEADDIM, PIECE, BLOCK_M)
    else:
        q_ptr += first_m.to(tl.int64) * q_strides[2]
        o_ptr += first_m.to(tl.int64) * o_strides[2]
    q, acc = (), ()
    for i in tl.static_range(PIECES):
        if WARP_SPECIALIZE:
            q += (q_source.load([first_m, i * PIECE]),)
        else:
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
    if DESCRIPTORS:
        k = describe(k_ptr, k_strides, seqlen_k, HEADDIM, PIECE, BLOCK_N)
        v = describe(v_ptr, v_strides, seqlen_k, HEADDIM, PIECE, BLOCK_N)
        k_strides, v_strides = None, None
    else:
        k, v = k_ptr, v_ptr
        if cu_seqlens_ptr is not None:
            k = advance(k, k_strides, first.to(tl.int64))
            v = advance(v, v_strides, first.to(tl.int64))

    before = (diagonal - first).to(tl.int64)
    if LATE_VALUES:
        p, alpha = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32), l_i
        v_before = advance(v, v_strides, tl.maximum(before - BLOCK_N, 0))
        acc, alpha, p, m_i, l_i = attend_late(
            acc, alpha, p, m_i, l_i, q, k, v, k_strides, v_strides, scale_log2, first, diagonal, first, None, None,
            seqlen_k, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
        )  # fmt: skip
        acc, alpha, p, m_i, l_i = attend_late(
            acc, alpha, p, m_i, l_i, q, advance(k, k_strides, before), v_before,
            k_strides, v_strides, scale_log2, diagonal, last, first, position, start,
            seqlen_k, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
        )  # fmt: skip
        n = diagonal + (tl.cdiv(last - diagonal, BLOCK_N) - 1) * BLOCK_N
        v = advance(v, v_strides, (n - first).to(tl.int64))
        inside = tl.arange(0, BLOCK_N) < seqlen_k - n
        acc = add_values(
            acc, alpha, p, v, v_strides, inside, n, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N
        )  # fmt: skip
    else:
        if WARP_SPECIALIZE:  # of one loop only: every block is masked
            diagonal = first
        else:
            acc, m_i, l_i = attend(
                acc, m_i, l_i, q, k, v, k_strides, v_strides, scale_log2, first, diagonal, None, None, seqlen_k,
                HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
            )  # fmt: skip
            k = advance(k, k_strides, before)
            v = advance(v, v_strides, before)
        acc, m_i, l_i = attend(
            acc, m_i, l_i, q, k, v, k_strides, v_strides, scale_log2, diagonal, last, position, start, seqlen_k,
            HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N, WARP_SPECIALIZE,
        )  # fmt: skip

    inside = first_m + offs_m < seqlen_q  # formed again: it would take registers through the loops
    for i in tl.static_range(PIECES):
        o = acc[i] * (1 / l_i)[:, None]
        if WARP_SPECIALIZE:
            o_source.store([first_m, i * PIECE], o.to(o_ptr.dtype.element_ty))
        else:
            store_rows(o_ptr, o_strides, o, inside, i, HEADDIM, PIECE, BLOCK_M)
    if lse_ptr is not None:
        lse_ptr += (pid_b * nheads + pid_h) * seqlen_q + first_m
        tl.store(lse_ptr + offs_m, (m_i + tl.log2(l_i)) * 0.6931471805599453, mask=inside)


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
    tile = tile_for(TABLES, q, seqlen_k, KERNEL)
    described = tile.get("DESCRIPTORS", False)
    # Triton 3.6 and 3.7 cannot specialise the warps of a program that looks its sequences up
    looks_up = tile.get("WARP_SPECIALIZE", False) and cu_seqlens is not None
    if described and (looks_up or not all(map(describable, (q, k, v, o)))):
        tile, described = tile_for(TABLES, q, seqlen_k), False
    kv_bytes = 2 * seqlen_k * headdim * q.element_size()
    section = groups * heads_per_section(batch * nheads_kv, kv_bytes)
    launch = functools.partial(
        causal_attention_fwd_kernel[(triton.cdiv(seqlen_q, tile["BLOCK_M"]) * batch * nheads,)],
        q, k, v, o, lse, cu_seqlens,
        q.stride(), k.stride(), v.stride(), o.stride(),
        softmax_scale * math.log2(math.e), batch * nheads, section, nheads, groups,
        0 if cu_seqlens is None else len(cu_seqlens) - 1, seqlen_q, seqlen_k,
        HEADDIM=headdim, PRECISION=precision(q), **tile,
    )  # fmt: skip
    if described:
        launch_with_descriptors(q.device, launch)
    else:
        launch()
    return o, lse


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a `CausalAttentionProblem`, the default first."""
    return candidates_of(TABLES, TRIED, problem, dtype, generation)


COUNTS = ("heads", "heads_per_section", "nheads", "groups", "sequences", "seqlen_q", "seqlen_k")
SCALARS = {"lse_ptr": "*fp32", "scale_log2": "fp32"} | dict.fromkeys(COUNTS, "i32")


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that it is meant for."""
    return static_cases_of(
        causal_attention_fwd_kernel, KERNEL, TABLES, "qkvo", SCALARS,
        packed={"cu_seqlens_ptr": "*i32"},
    )  # fmt: skip


def static_candidates(target):
    """The candidates as `profiles.static` compiles them."""
    return static_candidates_of(
        KERNEL, candidates, target,
        kernel=causal_attention_fwd_kernel, name=KERNEL, operands="qkvo", scalars=SCALARS,
    )  # fmt: skip
