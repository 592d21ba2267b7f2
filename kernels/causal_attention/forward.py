"""`triton`: exact attention in one pass over the keys (FlashAttention-2's online softmax).

A program owns BLOCK_M queries of one head and walks the keys in blocks of BLOCK_N: first those that all its
queries see, without a mask, then the few on the diagonal. Scores stay in base 2: with s = q k' and
c = softmax_scale log2(e), a probability is exp2(c s - m), one multiply-add and one exponential.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from kernels import checks
from kernels.implementations import interpreted, note
from kernels.layout import empty_like


@triton.jit
def causal_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    q_strides, k_strides, v_strides, o_strides,
    scale_log2, heads, heads_per_section, nheads, groups, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (HEADDIM + PIECE - 1) // PIECE
    first_m, pid_b, pid_h = _schedule(heads, heads_per_section, nheads, seqlen_q, BLOCK_M)
    pid_kv = pid_h // groups
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1] + first_m.to(tl.int64) * q_strides[2]
    o_ptr += pid_b * o_strides[0] + pid_h * o_strides[1] + first_m.to(tl.int64) * o_strides[2]
    k_ptr += pid_b * k_strides[0] + pid_kv * k_strides[1]
    v_ptr += pid_b * v_strides[0] + pid_kv * v_strides[1]

    offs_m = tl.arange(0, BLOCK_M)
    m_i = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    l_i = tl.zeros((BLOCK_M,), dtype=tl.float32)
    q, acc = (), ()
    for i in tl.static_range(PIECES):
        q += (_load_rows(q_ptr, q_strides, seqlen_q - first_m, i, True, HEADDIM, PIECE, BLOCK_M),)
        acc += (tl.zeros((BLOCK_M, PIECE), dtype=tl.float32),)

    first_position = seqlen_k - seqlen_q + first_m  # of the first query among the keys
    position = first_position + offs_m
    diagonal = (first_position + 1) // BLOCK_N * BLOCK_N  # all queries see the keys before it
    last = tl.minimum(first_position + BLOCK_M, seqlen_k)
    acc, m_i, l_i = _attend(
        acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, 0, diagonal, position, seqlen_k,
        False, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip
    k_ptr += diagonal.to(tl.int64) * k_strides[2]
    v_ptr += diagonal.to(tl.int64) * v_strides[2]
    acc, m_i, l_i = _attend(
        acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, diagonal, last, position, seqlen_k,
        True, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip

    mask_m = first_m + offs_m < seqlen_q
    for i in tl.static_range(PIECES):
        o = acc[i] * (1 / l_i)[:, None]
        offs_d = i * PIECE + tl.arange(0, PIECE)
        tl.store(
            o_ptr + offs_m[:, None] * o_strides[2] + offs_d[None, :] * o_strides[3],
            o.to(o_ptr.dtype.element_ty), mask=mask_m[:, None] & (offs_d[None, :] < HEADDIM),
        )  # fmt: skip
    if lse_ptr is not None:
        lse_ptr += (pid_b * nheads + pid_h) * seqlen_q + first_m
        tl.store(lse_ptr + offs_m, (m_i + tl.log2(l_i)) * 0.6931471805599453, mask=mask_m)


@triton.jit
def _schedule(heads, heads_per_section, nheads, seqlen_q, BLOCK_M: tl.constexpr):
    """The first query, the batch and the head of this program.

    Heads run in sections whose keys and values fit in the L2 cache together; within one, the longest rows of all
    heads come first, so that the short ones fill the machine at the end.
    """
    blocks = tl.cdiv(seqlen_q, BLOCK_M)
    section = tl.program_id(0) // (blocks * heads_per_section)
    within = tl.program_id(0) % (blocks * heads_per_section)
    here = tl.minimum(heads_per_section, heads - section * heads_per_section)
    head = section * heads_per_section + within % here
    return (
        (blocks - 1 - within // here) * BLOCK_M,
        (head // nheads).to(tl.int64),
        (head % nheads).to(tl.int64),
    )


@triton.jit
def _attend(
    acc, m_i, l_i, q, k_ptr, v_ptr, k_strides, v_strides, scale_log2, first, last, position, seqlen_k,
    MASKED: tl.constexpr, HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the keys first..last to the running maximum m_i, sum l_i and weighted values acc of each query.

    `k_ptr` and `v_ptr` point at key `first`. They advance as scalars: an int64 offset made from the loop's counter
    lets LLVM widen the counter, and then ptxas serialises the asynchronous products.
    """
    for n in tl.range(first, last, BLOCK_N):
        left = seqlen_k - n
        k = _load_rows(k_ptr, k_strides, left, 0, MASKED, HEADDIM, PIECE, BLOCK_N)
        s = tl.dot(q[0], k.T, input_precision=PRECISION)
        for i in tl.static_range(1, PIECES):
            k = _load_rows(k_ptr, k_strides, left, i, MASKED, HEADDIM, PIECE, BLOCK_N)
            s = tl.dot(q[i], k.T, s, input_precision=PRECISION)
        if MASKED:
            s = tl.where(position[:, None] >= n + tl.arange(0, BLOCK_N)[None, :], s, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1) * scale_log2)
        p = tl.exp2(s * scale_log2 - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        m_i = m_new
        updated = ()
        for i in tl.static_range(PIECES):
            v = _load_rows(v_ptr, v_strides, left, i, MASKED, HEADDIM, PIECE, BLOCK_N)
            if v.dtype == tl.float32:
                # tensor cores round sums towards zero: long sums are formed outside of them
                pv = tl.dot(p, v, input_precision=PRECISION)
                updated += (tl.fma(acc[i], alpha[:, None], pv),)
            else:
                updated += (tl.dot(p.to(v.dtype), v, acc[i] * alpha[:, None]),)
        acc = updated
        k_ptr += BLOCK_N * k_strides[2]
        v_ptr += BLOCK_N * v_strides[2]
    return acc, m_i, l_i


@triton.jit
def _load_rows(
    ptr, strides, left, i,
    MASKED: tl.constexpr, HEADDIM: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Piece i of the next ROWS tokens, zero beyond HEADDIM and, if MASKED, beyond the `left` tokens that remain."""
    offs_n, offs_d = tl.arange(0, ROWS)[:, None], i * PIECE + tl.arange(0, PIECE)[None, :]
    ptrs = ptr + offs_n * strides[2] + offs_d * strides[3]
    if MASKED:
        return tl.load(ptrs, mask=(offs_n < left) & (offs_d < HEADDIM), other=0.0)
    elif HEADDIM % PIECE != 0:
        return tl.load(ptrs, mask=offs_d < HEADDIM, other=0.0)
    else:
        return tl.load(ptrs)


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
L2_BYTES = (
    24 * 2**20
)  # of keys and values that programs may share: half the L2 cache of an A100, H100 or H200


def causal_attention_triton(q, k, v, softmax_scale, return_lse):
    """Operands and results as `causal_attention_ref`, for a positive scale; nothing is copied, whatever the strides.

    float32 is computed from three TF32 products per product, which errs no more than float32 arithmetic does,
    or from one where `torch.backends.cuda.matmul.allow_tf32` is set.
    """
    checks.check_no_gradient("causal_attention", "triton", q, k, v)
    batch, nheads, seqlen_q, headdim = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    if q.dtype == torch.float64 or headdim > 256:
        raise NotImplementedError(
            "causal_attention: impl 'triton' takes float32, float16 and bfloat16 and a headdim up to 256, "
            f"got {q.dtype} and headdim {headdim}; use impl='torch'"
        )
    note("causal_attention", "triton.causal_attention_fwd")
    o = empty_like(q)
    lse = q.new_empty(batch, nheads, seqlen_q, dtype=torch.float32) if return_lse else None
    tile = _tile(q, seqlen_k)
    groups = nheads // nheads_kv
    head_bytes = 2 * seqlen_k * headdim * q.element_size()
    heads_per_section = min(batch * nheads, max(1, L2_BYTES // head_bytes) * groups)
    causal_attention_fwd_kernel[(triton.cdiv(seqlen_q, tile["BLOCK_M"]) * batch * nheads,)](
        q, k, v, o, lse,
        q.stride(), k.stride(), v.stride(), o.stride(),
        softmax_scale * math.log2(math.e), batch * nheads, heads_per_section, nheads, groups, seqlen_q, seqlen_k,
        HEADDIM=headdim, PRECISION=_precision(q), **tile,
    )  # fmt: skip
    return o, lse


def tile_of(dtype, headdim, generation):
    """{BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages} on a GPU whose compute capability is `generation`.x."""
    table = (FLOAT32 if dtype == torch.float32 else HALF)[generation]
    tile = next(tile for largest, tile in table.items() if headdim <= largest)
    block_m, block_n, piece, num_warps, num_stages = tile
    piece = min(piece, max(16, triton.next_power_of_2(headdim)))
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "PIECE": piece,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def _tile(q, seqlen_k):
    if interpreted():  # cost is per operation, so few and big blocks
        fit = lambda n, most: min(most, max(16, triton.next_power_of_2(n)))
        block = {"BLOCK_M": fit(q.shape[2], 128), "BLOCK_N": fit(seqlen_k, 128)}
        return block | {"PIECE": fit(q.shape[3], 256), "num_warps": 1, "num_stages": 1}
    return tile_of(q.dtype, q.shape[3], _generation(q.device))


@functools.cache
def _generation(device):
    if torch.version.hip:
        return 8  # no asynchronous products: the configurations of the GPUs that have none either
    return min(max(torch.cuda.get_device_capability(device)[0], 8), 10)


def _precision(q):
    if q.dtype != torch.float32 or torch.version.hip:
        return (
            "ieee"  # products of half precision are exact; Triton has no three-product form for AMD
        )
    if q.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "tf32x3"


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that it is meant for."""
    arguments = causal_attention_fwd_kernel.arg_names
    for generation, target in ((8, "sm_80"), (9, "sm_90"), (10, "sm_100")):
        for name, dtype, table in (
            ("bf16", torch.bfloat16, HALF),
            ("fp32", torch.float32, FLOAT32),
        ):
            for headdim in table[generation]:
                signature = dict.fromkeys(arguments, "constexpr") | {
                    "lse_ptr": "*fp32",
                    "scale_log2": "fp32",
                }
                constexprs = {
                    "HEADDIM": headdim,
                    "PRECISION": "ieee" if name == "bf16" else "tf32x3",
                }
                for operand in "qkvo":
                    signature[f"{operand}_ptr"] = f"*{name}"
                    signature[f"{operand}_strides"] = ("i32", "i32", "i32", "constexpr")
                    constexprs[(arguments.index(f"{operand}_strides"), 3)] = 1
                counts = ("heads", "heads_per_section", "nheads", "groups")
                signature |= dict.fromkeys((*counts, "seqlen_q", "seqlen_k"), "i32")
                tile = tile_of(dtype, headdim, generation)
                options = {option: tile.pop(option) for option in ("num_warps", "num_stages")}
                yield {
                    "name": f"causal_attention_fwd-{name}-d{headdim}",
                    "kernel": causal_attention_fwd_kernel,
                    "signature": signature,
                    "constexprs": constexprs | tile,
                    "unaligned": counts,
                    "targets": (target,),
                    "work": {"scores": tile["BLOCK_M"] * tile["BLOCK_N"]},
                    **options,
                }
