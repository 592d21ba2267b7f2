"""What the Triton kernels share: the order of the programs, blocks of rows, the walk over keys, packed sequences."""

import triton
import triton.language as tl

# The running maximum before the first key: finite, so that a query that has seen none yet has weights of zero, not NaN.
LOWEST = tl.constexpr(-3e38)


@triton.jit
def schedule(heads, heads_per_section, nheads, blocks):
    """Where this program comes among the blocks of its head, and which batch and head it is.

    Heads run in sections whose shared rows fit in the L2 cache together; within one, the first blocks of all heads
    come first: those with the most work, so that the short ones fill the machine at the end.
    """
    section = tl.program_id(0) // (blocks * heads_per_section)
    within = tl.program_id(0) % (blocks * heads_per_section)
    here = tl.minimum(heads_per_section, heads - section * heads_per_section)
    head = section * heads_per_section + within % here
    return within // here, (head // nheads).to(tl.int64), (head % nheads).to(tl.int64)


@triton.jit
def load_rows(
    ptr, strides, seen, i,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Piece i of the next ROWS tokens, zero beyond HEADDIM and where `seen`, a mask of tokens or None, is false."""
    offs_n, offs_d = tl.arange(0, ROWS)[:, None], i * PIECE + tl.arange(0, PIECE)[None, :]
    ptrs = ptr + offs_n * strides[2] + offs_d * strides[3]
    if seen is not None:
        return tl.load(ptrs, mask=seen[:, None] & (offs_d < HEADDIM), other=0.0)
    elif HEADDIM % PIECE != 0:
        return tl.load(ptrs, mask=offs_d < HEADDIM, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def store_rows(
    ptr, strides, rows, seen, i,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store piece i of ROWS tokens where `seen` is true, in the dtype of `ptr`."""
    offs_n, offs_d = tl.arange(0, ROWS)[:, None], i * PIECE + tl.arange(0, PIECE)[None, :]
    ptrs = ptr + offs_n * strides[2] + offs_d * strides[3]
    tl.store(ptrs, rows.to(ptr.dtype.element_ty), mask=seen[:, None] & (offs_d < HEADDIM))


@triton.jit
def add_product(acc, factor, a, b, PRECISION: tl.constexpr):
    """acc factor + a b. Tensor cores round sums towards zero: in float32, long sums are formed outside of them."""
    if b.dtype == tl.float32:
        return tl.fma(acc, factor, tl.dot(a, b, input_precision=PRECISION))
    else:
        return tl.dot(a.to(b.dtype), b, acc * factor)


@triton.jit
def sequence_of(cu_seqlens_ptr, sequences, token, tokens):
    """(first, last + 1) of the sequence of each `token`, by bisection; within `tokens` whatever the bounds hold."""
    token = tl.minimum(token, tokens - 1)
    low, high = tl.zeros_like(token), tl.zeros_like(token) + sequences
    width = sequences
    while width > 0:
        middle = (low + high) // 2
        starts_before = tl.load(cu_seqlens_ptr + middle) <= token
        low, high = tl.where(starts_before, middle, low), tl.where(starts_before, high, middle)
        width //= 2
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + low), 0), token)
    end = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + low + 1), tokens), token + 1)
    return start, end


@triton.jit
def load_keys(
    source, strides, inside, n, i,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Piece i of the BLOCK_N keys, or values, from n on. `source` points at key n, or describes the head if no strides.

    A described head gives zeros beyond its end; else `inside` masks keys as in `load_rows`.
    """
    if strides is None:
        return source.load([n, i * PIECE])
    else:
        return load_rows(source, strides, inside, i, HEADDIM, PIECE, BLOCK_N)


@triton.jit
def advance(source, strides, keys):
    """`source` some keys further, as a scalar: an int64 offset made from a loop's counter lets LLVM widen the counter,
    and then ptxas serialises the asynchronous products."""
    if strides is None:
        return source
    else:
        return source + keys * strides[2]


@triton.jit
def scores_of(
    q, k, k_strides, inside, n, position, start,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q k' with the BLOCK_N keys from n on, -inf where a query does not see the key."""
    piece = load_keys(k, k_strides, inside, n, 0, HEADDIM, PIECE, BLOCK_N)
    s = tl.dot(q[0], piece.T, input_precision=PRECISION)
    for i in tl.static_range(1, PIECES):
        piece = load_keys(k, k_strides, inside, n, i, HEADDIM, PIECE, BLOCK_N)
        s = tl.dot(q[i], piece.T, s, input_precision=PRECISION)
    if position is not None:
        key = n + tl.arange(0, BLOCK_N)
        seen = position[:, None] >= key[None, :]
        if start is not None:
            seen &= start[:, None] <= key[None, :]
        s = tl.where(seen, s, float("-inf"))
    return s


@triton.jit
def softmax_of(s, m_i, l_i, scale_log2):
    """A block's weights p, the factor alpha of what was summed before it, and the maximum and sum with it."""
    m_new = tl.maximum(m_i, tl.max(s, 1) * scale_log2)
    p = tl.exp2(s * scale_log2 - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    return p, alpha, m_new, l_i * alpha + tl.sum(p, 1)


@triton.jit
def add_values(
    acc, alpha, p, v, v_strides, inside, n,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """acc alpha + p v with the BLOCK_N values from n on."""
    updated = ()
    for i in tl.static_range(PIECES):
        piece = load_keys(v, v_strides, inside, n, i, HEADDIM, PIECE, BLOCK_N)
        updated += (add_product(acc[i], alpha[:, None], p, piece, PRECISION),)
    return updated


@triton.jit
def attend(
    acc, m_i, l_i, q, k, v, k_strides, v_strides, scale_log2, first, last, position, start, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr = False,
):  # fmt: skip
    """Add the keys first..last to the running maximum m_i, sum l_i and weighted values acc of each query.

    A query sees the keys from its `start` (0 if None) to its `position`; if that is None, it sees them all.
    `k` and `v` are what `load_keys` takes, at key `first`.
    """
    for n in tl.range(first, last, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        inside = None
        if position is not None:
            inside = tl.arange(0, BLOCK_N) < seqlen_k - n
        s = scores_of(
            q, k, k_strides, inside, n, position, start, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N
        )
        p, alpha, m_i, l_i = softmax_of(s, m_i, l_i, scale_log2)
        acc = add_values(
            acc, alpha, p, v, v_strides, inside, n, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N
        )
        k = advance(k, k_strides, BLOCK_N)
        v = advance(v, v_strides, BLOCK_N)
    return acc, m_i, l_i


@triton.jit
def attend_late(
    acc, alpha, p, m_i, l_i, q, k, v, k_strides, v_strides,
    scale_log2, first, last, earliest, position, start, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`attend`, one product late: p v of the block before `first` is not in acc yet, and the last block's is not after.

    On Hopper p v then runs under the exponentials of the next block, in the same warps. For that p has to be float32
    between trips: what an asynchronous product reads must be made in the trip that starts it. `v` is one block behind
    `k`, except at the block `earliest`, which has none before it: there p is zero.
    """
    for n in tl.range(first, last, BLOCK_N):
        before = tl.maximum(n - BLOCK_N, earliest)
        inside, inside_before = None, None
        if position is not None:
            inside = tl.arange(0, BLOCK_N) < seqlen_k - n
            inside_before = tl.arange(0, BLOCK_N) < seqlen_k - before
        s = scores_of(
            q, k, k_strides, inside, n, position, start, HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N
        )
        acc = add_values(
            acc,
            alpha,
            p,
            v,
            v_strides,
            inside_before,
            before,
            HEADDIM,
            PIECE,
            PIECES,
            PRECISION,
            BLOCK_N,
        )
        p, alpha, m_i, l_i = softmax_of(s, m_i, l_i, scale_log2)
        k = advance(k, k_strides, BLOCK_N)
        v = advance(v, v_strides, tl.where(n > earliest, BLOCK_N, 0))
    return acc, alpha, p, m_i, l_i
