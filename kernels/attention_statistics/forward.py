"""`triton`: a program owns BLOCK_M queries of one head and walks the keys twice at most; `received.py` owns keys.

Scores stay in base 2: with s = q k', c = softmax_scale log2(e) and a running maximum m, t = c s - m <= 0 and
p = exp2(t). The first walk keeps, per query, m and the sums

    l = sum p        u = sum p t        d = sum p (position - key)

rescaled by a = exp2(m_old - m) as m grows, u to a (u + (m_old - m) l). Every term of a sum has the same sign, so
nothing cancels: entropy = ln(2) (log2(l) - u / l), distance = d / l.

The `top_k` largest scores are a sorted tuple of vectors. A block of keys changes it only where the block's maximum is
above the smallest of them, which the whole block of queries asks at once; then maxima are taken out one by one.

The second walk looks for the first key above the span's threshold, from key 0 on, and ends when every query that
has such a key has found it: at once where no weight is large.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.attention_statistics.received import received_of, received_static_cases
from kernels.attention_statistics.reference import AttentionStatistics
from kernels.attention_statistics.scores import scores
from kernels.attention_statistics.tiles import TABLES, TRIED
from kernels.causal_attention.blocks import LOWEST, load_rows, schedule
from kernels.causal_attention.tiles import (
    candidates_of,
    heads_per_section,
    precision,
    static_candidates_of,
    static_cases_of,
    tile_for,
)
from kernels.implementations import note

KERNEL = "attention_statistics"
MOST_TOP_K = 8  # vectors of a row's largest scores that fit in registers
LN2 = tl.constexpr(math.log(2))
ABSENT = tl.constexpr(2**31 - 1)  # instead of a key


@triton.jit
def any_of(rows, BLOCK_M: tl.constexpr):
    """Whether a vector of booleans has one that is true.

    Their order is left to the compiler: it has no layout for this sum behind a product on Blackwell's tensor cores.
    """
    return tl.max(tl.reshape(rows.to(tl.int32), (BLOCK_M,), can_reorder=True), 0) > 0


@triton.jit
def insert(largest, x, TOP_K: tl.constexpr):
    """The tuple of the TOP_K largest, in descending order, with x taken into account."""
    updated = ()
    for i in tl.static_range(TOP_K):
        updated += (tl.maximum(largest[i], x),)
        x = tl.minimum(largest[i], x)
    return updated


@triton.jit
def keep_largest(
    largest, s, block_max, TOP_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Take the scores of a block of keys, of which `block_max` are the rows' maxima, into the TOP_K largest."""
    column = tl.arange(0, BLOCK_N)[None, :]
    more = any_of(block_max > largest[TOP_K - 1], BLOCK_M)
    for i in tl.static_range(TOP_K):
        if more:
            largest = insert(largest, block_max, TOP_K)
            if i + 1 < TOP_K:
                # one occurrence is taken out: equal scores count as often as they occur
                at = tl.min(tl.where(s == block_max[:, None], column, BLOCK_N), 1)
                s = tl.where(column == at[:, None], float("-inf"), s)
                block_max = tl.max(s, 1)
                more = any_of(block_max > largest[TOP_K - 1], BLOCK_M)
    return largest


@triton.jit
def gather(
    m, l, u, d, largest, q, q_ptr, q_strides, q_inside, k_ptr, k_strides, scale_log2, first, last, position, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TOP_K: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The first walk over the keys first..last; `k_ptr` points at key `first`. MASKED: not every query sees all."""
    # distance to the last key of the block: with the rest, common to a row, the sum has one sign
    to_end = (BLOCK_N - 1 - tl.arange(0, BLOCK_N)).to(tl.float32)[None, :]
    for n in tl.range(first, last, BLOCK_N):
        inside = None
        if MASKED:
            key = n + tl.arange(0, BLOCK_N)
            inside = key < seqlen_k
            seen = position[:, None] >= key[None, :]
        s = scores(
            q, q_ptr, q_strides, q_inside, None, k_ptr, k_strides, inside,
            HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        if MASKED:
            s = tl.where(seen, s, float("-inf"))
        block_max = tl.max(s, 1)
        m_new = tl.maximum(m, block_max * scale_log2)
        t = s * scale_log2 - m_new[:, None]
        if MASKED:
            t = tl.where(seen, t, 0.0)  # for 0 log2(0)
            p = tl.where(seen, tl.exp2(t), 0.0)
            far = (position[:, None] - key[None, :]).to(tl.float32)
            d_new = tl.sum(p * far, 1)
            l_new = tl.sum(p, 1)
        else:
            p = tl.exp2(t)
            l_new = tl.sum(p, 1)
            d_new = tl.sum(p * to_end, 1) + (position - (n + BLOCK_N - 1)).to(tl.float32) * l_new
        alpha = tl.exp2(m - m_new)
        u = alpha * (u + (m - m_new) * l) + tl.sum(p * t, 1)
        l = l * alpha + l_new
        d = d * alpha + d_new
        m = m_new
        largest = keep_largest(largest, s, block_max, TOP_K, BLOCK_M, BLOCK_N)
        k_ptr += BLOCK_N * k_strides[2]
    return m, l, u, d, largest


@triton.jit
def earliest_above(
    threshold, pending, q, q_ptr, q_strides, q_inside, k_ptr, k_strides, last, position, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The first key before `last` whose score is above the row's threshold, of rows that are `pending`; else ABSENT."""
    found = tl.full((BLOCK_M,), ABSENT, dtype=tl.int32)
    n = 0
    waiting = any_of(pending, BLOCK_M)
    while (n < last) & waiting:
        key = n + tl.arange(0, BLOCK_N)
        s = scores(
            q, q_ptr, q_strides, q_inside, None, k_ptr, k_strides, key < seqlen_k,
            HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        above = (s > threshold[:, None]) & (position[:, None] >= key[None, :])
        found = tl.minimum(found, tl.min(tl.where(above, key[None, :], ABSENT), 1))
        waiting = any_of(pending & (found == ABSENT), BLOCK_M)
        k_ptr += BLOCK_N * k_strides[2]
        n += BLOCK_N
    return found


@triton.jit
def attention_statistics_rows_kernel(
    q_ptr, k_ptr, positions_ptr, statistics_ptr, m_ptr, l_ptr,
    q_strides, k_strides,
    scale_log2, log2_threshold, heads, heads_per_section, nheads, groups, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(seqlen_q, BLOCK_M)
    rank, pid_b, pid_h = schedule(heads, heads_per_section, nheads, blocks)
    first_m = (blocks - 1 - rank) * BLOCK_M  # the last queries see the most keys
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1] + first_m.to(tl.int64) * q_strides[2]
    k_ptr += pid_b * k_strides[0] + (pid_h // groups) * k_strides[1]

    offs_m = tl.arange(0, BLOCK_M)
    inside = offs_m < seqlen_q - first_m
    position = tl.load(positions_ptr + first_m + offs_m, mask=inside, other=0).to(tl.int32)
    # positions ascend
    nearest = tl.load(positions_ptr + first_m).to(tl.int32)
    farthest = tl.load(positions_ptr + tl.minimum(first_m + BLOCK_M, seqlen_q) - 1).to(tl.int32)
    last = tl.minimum(farthest + 1, seqlen_k)
    diagonal = (tl.minimum(nearest, seqlen_k - 1) + 1) // BLOCK_N * BLOCK_N
    q = None
    if HEADDIM <= PIECE:
        q = load_rows(q_ptr, q_strides, inside, 0, HEADDIM, PIECE, BLOCK_M)
    largest = ()
    for _ in tl.static_range(TOP_K):
        largest += (tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32),)
    m = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    l = tl.zeros((BLOCK_M,), dtype=tl.float32)
    u, d = l, l

    m, l, u, d, largest = gather(
        m, l, u, d, largest, q, q_ptr, q_strides, inside, k_ptr, k_strides, scale_log2, 0, diagonal, position, seqlen_k,
        HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N, TOP_K, MASKED=False,
    )  # fmt: skip
    m, l, u, d, largest = gather(
        m, l, u, d, largest, q, q_ptr, q_strides, inside, k_ptr + diagonal.to(tl.int64) * k_strides[2], k_strides,
        scale_log2, diagonal, last, position, seqlen_k,
        HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N, TOP_K, MASKED=True,
    )  # fmt: skip
    top_mass = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for i in tl.static_range(TOP_K):
        top_mass += tl.exp2(largest[TOP_K - 1 - i] * scale_log2 - m)
    threshold = (m + tl.log2(l) + log2_threshold) / scale_log2
    pending = inside & (largest[0] > threshold)
    earliest = earliest_above(
        threshold, pending, q, q_ptr, q_strides, inside, k_ptr, k_strides, last, position, seqlen_k,
        HEADDIM, PIECE, PRECISION, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    span = tl.where(pending & (earliest < ABSENT), position - earliest, 0).to(tl.float32)

    rows = heads.to(tl.int64) * seqlen_q
    at = (pid_b * nheads + pid_h) * seqlen_q + first_m + offs_m
    inside = first_m + offs_m < seqlen_q
    tl.store(statistics_ptr + at, (tl.log2(l) - u / l) * LN2, mask=inside)
    tl.store(statistics_ptr + rows + at, d / l, mask=inside)
    tl.store(statistics_ptr + 2 * rows + at, top_mass / l, mask=inside)
    tl.store(statistics_ptr + 3 * rows + at, span, mask=inside)
    tl.store(m_ptr + at, m, mask=inside)
    tl.store(l_ptr + at, l, mask=inside)


def attention_statistics_triton(q, k, softmax_scale, top_k, span_threshold, positions):
    """Operands and results as `attention_statistics_ref`, for a positive scale; any strides, nothing is copied.

    float32 is computed from three TF32 products per product, or from one where
    `torch.backends.cuda.matmul.allow_tf32` is set.
    """
    _check(q, top_k)
    note("attention_statistics", "triton.attention_statistics")
    batch, nheads, seqlen_q, headdim = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    groups = nheads // nheads_kv
    statistics = q.new_empty(4, batch, nheads, seqlen_q, dtype=torch.float32)
    m, l = q.new_empty(2, batch, nheads, seqlen_q, dtype=torch.float32)
    tile = tile_for(TABLES, q, seqlen_k, KERNEL)
    key_bytes = seqlen_k * headdim * q.element_size()
    section = groups * heads_per_section(batch * nheads_kv, key_bytes)
    scale_log2 = softmax_scale * math.log2(math.e)
    attention_statistics_rows_kernel[(triton.cdiv(seqlen_q, tile["BLOCK_M"]) * batch * nheads,)](
        q, k, positions, statistics, m, l,
        q.stride(), k.stride(),
        scale_log2, math.log2(span_threshold), batch * nheads, section, nheads, groups, seqlen_q, seqlen_k,
        HEADDIM=headdim, PRECISION=precision(q), TOP_K=top_k, **tile,
    )  # fmt: skip
    return AttentionStatistics(*statistics, received_of(q, k, scale_log2, positions, m, l))


def _check(q, top_k):
    remedy = "use impl='torch'"
    if q.dtype == torch.float64 or q.shape[3] > 256:
        raise NotImplementedError(
            "attention_statistics: impl 'triton' takes float32, float16 and bfloat16 and a headdim up to 256, "
            f"got {q.dtype} and headdim {q.shape[3]}; {remedy}"
        )
    if top_k > MOST_TOP_K:
        raise NotImplementedError(
            f"attention_statistics: impl 'triton' takes a top_k up to {MOST_TOP_K}, got {top_k}; {remedy}"
        )


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for an `AttentionStatisticsProblem`, the default first."""
    return candidates_of(TABLES, TRIED, problem, dtype, generation)


COUNTS = ("heads", "heads_per_section", "nheads", "groups", "seqlen_q", "seqlen_k")
SCALARS = {"positions_ptr": "*i64", "scale_log2": "fp32", "log2_threshold": "fp32"}
SCALARS |= dict.fromkeys(("statistics_ptr", "m_ptr", "l_ptr"), "*fp32")
SCALARS |= dict.fromkeys(COUNTS, "i32")
CASE = {
    "kernel": attention_statistics_rows_kernel,
    "name": "attention_statistics_rows",
    "operands": "qk",
    "scalars": SCALARS,
}


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that they are meant for."""
    yield from map(_of_five, static_cases_of(**CASE, tables=TABLES))
    yield from received_static_cases()


def static_candidates(target):
    """The candidates as `profiles.static` compiles them."""
    return map(_of_five, static_candidates_of(KERNEL, candidates, target, **CASE))


def _of_five(case):
    """The case with the operator's own top_k."""
    return case | {"constexprs": case["constexprs"] | {"TOP_K": 5}}
