"""`triton`: a few queries against a long cache (FlashDecoding): the keys are split over programs, then combined.

The queries of all heads that share a head of keys are stacked in one block, so every key and value is read once. A
program walks its part of the keys and leaves a normalised partial o_s and its lse_s; with lse = log sum_s exp(lse_s),

    o = sum_s exp(lse_s - lse) o_s

in a fixed order: repeats are bit-identical. A single part is written as the result, without a second kernel.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from kernels.causal_attention.blocks import LOWEST, attend
from kernels.causal_attention.tiles import (
    candidates_of,
    check_operands,
    precision,
    static_candidates_of,
    static_cases_of,
    tile_for,
    workspace,
)
from kernels.implementations import interpreted, note
from kernels.layout import empty_like

KERNEL = "causal_attention_decode"
MAX_QUERIES = 16
MAX_ROWS = 32  # queries times the heads that share a head of keys
MAX_SPLITS = 128
PROGRAMS = 2  # for a multiprocessor, which holds as many at once
INTERPRETED_MULTIPROCESSORS = 4


# The integers change with every token: they are no reason to compile again.
@triton.jit(do_not_specialize=["seqlen_q", "seqlen_k", "keys", "splits"])
def causal_attention_decode_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    q_strides, k_strides, v_strides, o_strides, split_stride,
    scale_log2, batch, nheads, groups, splits, keys, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (HEADDIM + PIECE - 1) // PIECE
    nheads_kv = nheads // groups
    split = tl.program_id(0) % splits
    pid_kv = (tl.program_id(0) // splits % nheads_kv).to(tl.int64)
    pid_b = (tl.program_id(0) // splits // nheads_kv).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    inside = rows < groups * seqlen_q
    query, head = (rows % seqlen_q).to(tl.int64), pid_kv * groups + rows // seqlen_q
    first = split * keys
    last = tl.minimum(first + keys, seqlen_k)
    k_ptr += pid_b * k_strides[0] + pid_kv * k_strides[1] + first.to(tl.int64) * k_strides[2]
    v_ptr += pid_b * v_strides[0] + pid_kv * v_strides[1] + first.to(tl.int64) * v_strides[2]

    q_rows = q_ptr + pid_b * q_strides[0] + head * q_strides[1] + query * q_strides[2]
    m_i = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    l_i = tl.zeros((BLOCK_M,), dtype=tl.float32)
    q, acc = (), ()
    for i in tl.static_range(PIECES):
        offs_d = i * PIECE + tl.arange(0, PIECE)[None, :]
        mask = inside[:, None] & (offs_d < HEADDIM)
        q += (tl.load(q_rows[:, None] + offs_d * q_strides[3], mask=mask, other=0.0),)
        acc += (tl.zeros((BLOCK_M, PIECE), dtype=tl.float32),)

    position = seqlen_k - seqlen_q + query
    seen = tl.minimum(last, seqlen_k - seqlen_q + 1)  # by every query
    diagonal = first + tl.maximum(seen - first, 0) // BLOCK_N * BLOCK_N
    acc, m_i, l_i = attend(
        acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, first, diagonal, None, None, seqlen_k,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip
    k_ptr += (diagonal - first).to(tl.int64) * k_strides[2]
    v_ptr += (diagonal - first).to(tl.int64) * v_strides[2]
    acc, m_i, l_i = attend(
        acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, diagonal, last, position, None, seqlen_k,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip

    l_i = tl.where(l_i == 0, 1.0, l_i)  # an early query may see no key of this part
    o_rows = o_ptr + split.to(tl.int64) * split_stride
    o_rows += pid_b * o_strides[0] + head * o_strides[1] + query * o_strides[2]
    for i in tl.static_range(PIECES):
        offs_d = i * PIECE + tl.arange(0, PIECE)[None, :]
        o = acc[i] * (1 / l_i)[:, None]
        ptrs = o_rows[:, None] + offs_d * o_strides[3]
        tl.store(ptrs, o.to(o_ptr.dtype.element_ty), mask=inside[:, None] & (offs_d < HEADDIM))
    if lse_ptr is not None:
        lse_rows = ((split * batch + pid_b) * nheads + head) * seqlen_q + query
        tl.store(lse_ptr + lse_rows, (m_i + tl.log2(l_i)) * 0.6931471805599453, mask=inside)


@triton.jit(do_not_specialize=["rows", "splits", "seqlen_q"])
def causal_attention_combine_kernel(
    parts_ptr, lses_ptr, o_ptr, lse_ptr, o_strides, rows, nheads, seqlen_q, splits,
    HEADDIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    query, head, pid_b = row % seqlen_q, row // seqlen_q % nheads, row // seqlen_q // nheads
    offs_s = tl.arange(0, BLOCK_S).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    here = (offs_s < splits)[:, None] & (offs_d < HEADDIM)[None, :]

    lses = tl.load(lses_ptr + offs_s * rows + row, mask=offs_s < splits, other=float("-inf"))
    parts = tl.load(
        parts_ptr + (offs_s * rows + row)[:, None] * HEADDIM + offs_d[None, :], mask=here, other=0.0
    )

    largest = tl.max(lses, 0)
    weights = tl.exp2((lses - largest) * 1.4426950408889634)
    total = tl.sum(weights, 0)
    o = tl.sum(weights[:, None] * parts, 0) / total

    o_ptr += pid_b * o_strides[0] + head * o_strides[1] + query * o_strides[2]
    tl.store(o_ptr + offs_d * o_strides[3], o.to(o_ptr.dtype.element_ty), mask=offs_d < HEADDIM)
    if lse_ptr is not None:
        tl.store(lse_ptr + row, largest + tl.log(total), mask=tl.program_id(1) == 0)


# (BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages) by GPU generation and largest headdim; BLOCK_M is the least, it grows
# with the rows. Static choices that nobody has measured yet: nothing spills, and two programs fit in the shared memory
# of a multiprocessor with two or three blocks of keys and values each on their way, which is what hides the memory's
# latency. On an H200 memory takes 2 headdim bytes * itemsize / 18.5 clocks a key; shared memory has to take less.
HALF = {
    8: {64: (16, 64, 64, 4, 3), 128: (16, 32, 128, 4, 3), 256: (16, 32, 128, 4, 2)},
    9: {64: (16, 128, 64, 4, 3), 128: (16, 64, 128, 4, 3), 256: (16, 32, 128, 4, 3)},
    10: {64: (16, 128, 64, 4, 3), 128: (16, 64, 128, 4, 3), 256: (16, 32, 128, 4, 3)},
}
FLOAT32 = {
    8: {64: (16, 32, 64, 4, 3), 128: (16, 32, 64, 4, 2), 256: (16, 16, 64, 4, 2)},
    9: {64: (16, 64, 64, 4, 3), 128: (16, 64, 32, 4, 2), 256: (16, 32, 32, 4, 2)},
    10: {64: (16, 64, 64, 4, 3), 128: (16, 32, 64, 4, 3), 256: (16, 16, 64, 8, 3)},
}
TABLES = (HALF, FLOAT32)
TRIED_HALF = {
    9: {
        64: (
            (16, 64, 64, 4, 3),
            (16, 64, 64, 4, 4),
            (16, 64, 64, 2, 3),
            (16, 128, 64, 4, 2),
            (16, 128, 64, 8, 3),
        ),
        128: (
            (16, 32, 128, 4, 4),
            (16, 64, 128, 4, 2),
            (16, 64, 64, 4, 3),
            (16, 64, 128, 8, 3),
            (16, 128, 128, 8, 2),
        ),
        256: ((16, 32, 128, 4, 2), (16, 32, 128, 8, 3), (16, 64, 128, 8, 2)),
    }
}
TRIED_FLOAT32 = {
    9: {
        64: ((16, 64, 64, 4, 2), (16, 32, 64, 4, 3)),
        128: ((16, 32, 64, 4, 2), (16, 32, 64, 4, 3)),
        256: ((16, 32, 64, 4, 2), (16, 16, 32, 4, 3), (16, 16, 64, 8, 3)),
    }
}
TRIED = (TRIED_HALF, TRIED_FLOAT32)


def is_decoding(seqlen_q, groups):
    """Whether a case goes to these kernels: at most 16 queries that, with their head's group, make at most 32 rows."""
    return seqlen_q <= MAX_QUERIES and seqlen_q * groups <= MAX_ROWS


def causal_attention_decode(q, k, v, softmax_scale, return_lse, splits=None):
    """Operands and results as `causal_attention_ref`, where `is_decoding`.

    splits: into how many parts the keys are split at most; enough to fill the device if None.
    """
    check_operands(q)
    note("causal_attention", "triton.causal_attention_decode")
    batch, nheads, seqlen_q, headdim = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    groups = nheads // nheads_kv
    tile = tile_for(TABLES, q, seqlen_k, KERNEL)
    programs = tile.pop("PROGRAMS", PROGRAMS)
    tile["BLOCK_M"] = max(16, triton.next_power_of_2(groups * seqlen_q))
    splits = splits or splits_of(batch * nheads_kv, programs * _multiprocessors(q.device))
    keys, splits = parts_of(seqlen_k, splits, tile["BLOCK_N"])

    o = empty_like(q)
    lse = q.new_empty(batch, nheads, seqlen_q, dtype=torch.float32) if return_lse else None
    rows = batch * nheads * seqlen_q
    if splits > 1:
        parts = workspace("the partial outputs of decoding", q, splits, *q.shape)
        lses = workspace("the partial log-sum-exps of decoding", q, splits, *q.shape[:3])
        written, written_lse = parts[0], lses
    else:
        written, written_lse = o, lse
    causal_attention_decode_kernel[(batch * nheads_kv * splits,)](
        q, k, v, written, written_lse,
        q.stride(), k.stride(), v.stride(), written.stride(), rows * headdim,
        softmax_scale * math.log2(math.e), batch, nheads, groups, splits, keys, seqlen_q, seqlen_k,
        HEADDIM=headdim, PRECISION=precision(q), **tile,
    )  # fmt: skip
    if splits > 1:
        block_d = min(32, triton.next_power_of_2(headdim))
        causal_attention_combine_kernel[(rows, triton.cdiv(headdim, block_d))](
            parts, lses, o, lse, o.stride(), rows, nheads, seqlen_q, splits,
            HEADDIM=headdim, BLOCK_D=block_d, BLOCK_S=triton.next_power_of_2(splits),
        )  # fmt: skip
    return o, lse


def splits_of(heads, programs):
    """How many programs share the keys of a head, so that there are about `programs` in all."""
    return min(MAX_SPLITS, max(1, programs // heads))


def parts_of(seqlen_k, splits, block_n):
    """(keys a part, parts): at most `splits` parts of whole blocks, of two at least, none of them empty."""
    blocks = triton.cdiv(seqlen_k, block_n)
    keys = max(triton.cdiv(blocks, splits), min(2, blocks)) * block_n
    return keys, triton.cdiv(seqlen_k, keys)


@functools.cache
def _multiprocessors(device):
    if interpreted():
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a `CausalAttentionProblem` of few queries, the default first."""
    tiles = candidates_of(TABLES, TRIED, problem, dtype, generation)
    more = [tile | {"PROGRAMS": 2 * PROGRAMS} for tile in tiles]  # what waits fills the end
    return (*tiles, *more)


def static_candidates(target):
    """The candidates as `profiles.static` compiles them: those that differ as code."""
    return static_candidates_of(
        KERNEL, lambda _, *case: candidates_of(TABLES, TRIED, *case), target,
        kernel=causal_attention_decode_kernel, name=KERNEL, operands="qkvo", scalars=SCALARS,
    )  # fmt: skip


COUNTS = ("batch", "nheads", "groups", "splits", "keys", "split_stride", "seqlen_q", "seqlen_k")
SCALARS = {"lse_ptr": "*fp32", "scale_log2": "fp32"} | dict.fromkeys(COUNTS, "i32")


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that it is meant for."""
    yield from static_cases_of(causal_attention_decode_kernel, KERNEL, TABLES, "qkvo", SCALARS)
    counts = ("rows", "nheads", "seqlen_q", "splits")
    floats = dict.fromkeys(("parts_ptr", "lses_ptr", "lse_ptr"), "*fp32")
    signature = dict.fromkeys(causal_attention_combine_kernel.arg_names, "constexpr")
    strides = causal_attention_combine_kernel.arg_names.index("o_strides")
    yield {
        "name": "causal_attention_combine-bf16-d128",
        "kernel": causal_attention_combine_kernel,
        "signature": signature
        | floats
        | dict.fromkeys(counts, "i32")
        | {"o_ptr": "*bf16", "o_strides": ("i32", "i32", "i32", "constexpr")},
        "constexprs": {"HEADDIM": 128, "BLOCK_D": 32, "BLOCK_S": 64, (strides, 3): 1},
        "unaligned": counts,
        "num_warps": 4,
        "work": {"parts": 64, "channels": 32},
    }
