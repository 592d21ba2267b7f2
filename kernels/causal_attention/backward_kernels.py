"""Device side of the gradients of causal attention.

With s = q k', p = exp(softmax_scale s - lse), and a gradient dlse of lse beside do of o:

    delta_i = <do_i, o_i> - dlse_i       dv_j = sum_i p_ij do_i            ds_ij = p_ij (<do_i, v_j> - delta_i)
    dq_i = softmax_scale sum_j ds_ij k_j                                   dk_j = softmax_scale sum_i ds_ij q_i

Two kernels, each of which forms p and ds again from lse. The first owns BLOCK_M queries, forms and stores their delta,
and walks the keys. The second owns BLOCK_N keys of one head of keys and walks the queries of every head that reads it,
so grouped heads are summed inside. Blocks are masked on the diagonal only, or where they hold several packed sequences.
"""

import triton
import triton.language as tl

from kernels.causal_attention.blocks import (
    add_product,
    load_rows,
    schedule,
    sequence_of,
    store_rows,
)


@triton.jit(do_not_specialize=["sequences"])
def causal_attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, dlse_ptr, cu_seqlens_ptr, dq_ptr, delta_ptr,
    q_strides, k_strides, v_strides, o_strides, do_strides, dlse_strides, dq_strides,
    softmax_scale, heads, heads_per_section, nheads, groups, sequences, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (HEADDIM + PIECE - 1) // PIECE
    blocks = tl.cdiv(seqlen_q, BLOCK_M)
    rank, pid_b, pid_h = schedule(heads, heads_per_section, nheads, blocks)
    first_m = (blocks - 1 - rank) * BLOCK_M  # the last queries see the most keys
    row = first_m.to(tl.int64)
    pid_kv = pid_h // groups
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1] + row * q_strides[2]
    o_ptr += pid_b * o_strides[0] + pid_h * o_strides[1] + row * o_strides[2]
    do_ptr += pid_b * do_strides[0] + pid_h * do_strides[1] + row * do_strides[2]
    dq_ptr += pid_b * dq_strides[0] + pid_h * dq_strides[1] + row * dq_strides[2]
    k_ptr += pid_b * k_strides[0] + pid_kv * k_strides[1]
    v_ptr += pid_b * v_strides[0] + pid_kv * v_strides[1]

    offs_m = tl.arange(0, BLOCK_M)
    inside = offs_m < seqlen_q - first_m
    delta = tl.zeros((BLOCK_M,), dtype=tl.float32)
    q, do, dq = (), (), ()
    for i in tl.static_range(PIECES):
        q += (load_rows(q_ptr, q_strides, inside, i, HEADDIM, PIECE, BLOCK_M),)
        do += (load_rows(do_ptr, do_strides, inside, i, HEADDIM, PIECE, BLOCK_M),)
        dq += (tl.zeros((BLOCK_M, PIECE), dtype=tl.float32),)
        o = load_rows(o_ptr, o_strides, inside, i, HEADDIM, PIECE, BLOCK_M)
        delta += tl.sum(do[i].to(tl.float32) * o.to(tl.float32), 1)
    if dlse_ptr is not None:
        dlse_ptr += pid_b * dlse_strides[0] + pid_h * dlse_strides[1] + row * dlse_strides[2]
        delta -= tl.load(dlse_ptr + offs_m * dlse_strides[2], mask=inside, other=0.0)
    rows = (pid_b * nheads + pid_h) * seqlen_q + first_m + offs_m
    tl.store(delta_ptr + rows, delta, mask=inside)
    lse_log2 = tl.load(lse_ptr + rows, mask=inside, other=0.0) * 1.4426950408889634
    scale_log2 = softmax_scale * 1.4426950408889634

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
    dq = _walk_keys(
        dq, q, do, lse_log2, delta, k_ptr, v_ptr, k_strides, v_strides,
        scale_log2, first, diagonal, None, None, seqlen_k,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip
    k_ptr += (diagonal - first).to(tl.int64) * k_strides[2]
    v_ptr += (diagonal - first).to(tl.int64) * v_strides[2]
    dq = _walk_keys(
        dq, q, do, lse_log2, delta, k_ptr, v_ptr, k_strides, v_strides,
        scale_log2, diagonal, last, position, start, seqlen_k,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_N,
    )  # fmt: skip

    inside = first_m + offs_m < seqlen_q  # formed again: it would take registers through the loops
    for i in tl.static_range(PIECES):
        store_rows(dq_ptr, dq_strides, dq[i] * softmax_scale, inside, i, HEADDIM, PIECE, BLOCK_M)


@triton.jit
def _walk_keys(
    dq, q, do, lse_log2, delta, k_ptr, v_ptr, k_strides, v_strides,
    scale_log2, first, last, position, start, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the keys first..last to dq; the arguments are those of `blocks.attend`."""
    for n in tl.range(first, last, BLOCK_N):
        inside = None
        if position is not None:
            inside = tl.arange(0, BLOCK_N) < seqlen_k - n
            key = n + tl.arange(0, BLOCK_N)
        s = tl.zeros((lse_log2.shape[0], BLOCK_N), dtype=tl.float32)
        dp = s
        ks = ()
        for i in tl.static_range(PIECES):
            k = load_rows(k_ptr, k_strides, inside, i, HEADDIM, PIECE, BLOCK_N)
            s = tl.dot(q[i], k.T, s, input_precision=PRECISION)
            ks += (k,)
        for i in tl.static_range(PIECES):
            v = load_rows(v_ptr, v_strides, inside, i, HEADDIM, PIECE, BLOCK_N)
            dp = tl.dot(do[i], v.T, dp, input_precision=PRECISION)
        if position is not None:
            seen = position[:, None] >= key[None, :]
            if start is not None:
                seen &= start[:, None] <= key[None, :]
            s = tl.where(seen, s, float("-inf"))
        p = tl.exp2(s * scale_log2 - lse_log2[:, None])
        ds = (p * (dp - delta[:, None])).to(k_ptr.dtype.element_ty)
        updated = ()
        for i in tl.static_range(PIECES):
            updated += (add_product(dq[i], 1.0, ds, ks[i], PRECISION),)
        dq = updated
        k_ptr += BLOCK_N * k_strides[2]
        v_ptr += BLOCK_N * v_strides[2]
    return dq


@triton.jit(do_not_specialize=["sequences"])
def causal_attention_bwd_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, cu_seqlens_ptr, dk_ptr, dv_ptr,
    q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides,
    softmax_scale, heads, heads_per_section, nheads_kv, groups, sequences, seqlen_q, seqlen_k,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (HEADDIM + PIECE - 1) // PIECE
    rank, pid_b, pid_kv = schedule(heads, heads_per_section, nheads_kv, tl.cdiv(seqlen_k, BLOCK_N))
    first_n = rank * BLOCK_N  # the first keys are seen by the most queries
    row = first_n.to(tl.int64)
    k_ptr += pid_b * k_strides[0] + pid_kv * k_strides[1] + row * k_strides[2]
    v_ptr += pid_b * v_strides[0] + pid_kv * v_strides[1] + row * v_strides[2]

    offset = seqlen_k - seqlen_q  # of the position of a query among the keys
    key = first_n + tl.arange(0, BLOCK_N)
    inside = tl.arange(0, BLOCK_N) < seqlen_k - first_n
    first = tl.maximum(first_n - offset, 0)  # query that sees any of these keys
    whole = tl.maximum(first_n + BLOCK_N - 1 - offset, 0)  # first query that sees them all
    last, end = seqlen_q, None
    if cu_seqlens_ptr is not None:
        _, end = sequence_of(cu_seqlens_ptr, sequences, key, seqlen_k)
        last = tl.max(end, 0)
        whole = tl.where(tl.min(end, 0) == last, whole, last)
    # Whole blocks end with the last query, so the ragged block is on the diagonal, where there is a mask anyway. There,
    # blocks are half as high: less is computed for nothing, and the mask finds registers.
    HALF: tl.constexpr = max(16, BLOCK_M // 2)
    diagonal = last - tl.maximum(last - whole, 0) // BLOCK_M * BLOCK_M
    first = diagonal - tl.cdiv(diagonal - first, HALF) * HALF

    k, v, dk, dv = (), (), (), ()
    for i in tl.static_range(PIECES):
        k += (load_rows(k_ptr, k_strides, inside, i, HEADDIM, PIECE, BLOCK_N),)
        if dk_ptr is not None:
            v += (load_rows(v_ptr, v_strides, inside, i, HEADDIM, PIECE, BLOCK_N),)
            dk += (tl.zeros((BLOCK_N, PIECE), dtype=tl.float32),)
        if dv_ptr is not None:
            dv += (tl.zeros((BLOCK_N, PIECE), dtype=tl.float32),)
    lowest = tl.maximum(key - offset, 0)  # query that sees each key
    pid_h = pid_kv * groups
    q_ptr += pid_b * q_strides[0] + pid_h * q_strides[1]
    do_ptr += pid_b * do_strides[0] + pid_h * do_strides[1]
    rows = (pid_b * nheads_kv * groups + pid_h) * seqlen_q
    lse_ptr += rows
    delta_ptr += rows
    dk, dv = _walk_queries(
        dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, q_strides, do_strides,
        softmax_scale, groups, seqlen_q, first, diagonal, lowest, end,
        HEADDIM, PIECE, PIECES, PRECISION, HALF, BLOCK_N,
        DK=dk_ptr is not None, DV=dv_ptr is not None,
    )  # fmt: skip
    dk, dv = _walk_queries(
        dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, q_strides, do_strides,
        softmax_scale, groups, seqlen_q, diagonal, last, None, None,
        HEADDIM, PIECE, PIECES, PRECISION, BLOCK_M, BLOCK_N,
        DK=dk_ptr is not None, DV=dv_ptr is not None,
    )  # fmt: skip

    inside = key < seqlen_k
    if dk_ptr is not None:
        dk_ptr += pid_b * dk_strides[0] + pid_kv * dk_strides[1] + row * dk_strides[2]
        for i in tl.static_range(PIECES):
            dk_i = dk[i] * softmax_scale
            store_rows(dk_ptr, dk_strides, dk_i, inside, i, HEADDIM, PIECE, BLOCK_N)
    if dv_ptr is not None:
        dv_ptr += pid_b * dv_strides[0] + pid_kv * dv_strides[1] + row * dv_strides[2]
        for i in tl.static_range(PIECES):
            store_rows(dv_ptr, dv_strides, dv[i], inside, i, HEADDIM, PIECE, BLOCK_N)


@triton.jit
def _walk_queries(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, q_strides, do_strides,
    softmax_scale, groups, seqlen_q, first, last, lowest, end,
    HEADDIM: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Add the queries first..last of `groups` heads to dk and dv, in transposed products: rows are keys.

    A key is seen by the queries from `lowest` to before `end` (all if None); if `lowest` is None, by them all. The
    pointers point at query 0 of the first head; `first` may be negative where there is a mask. One loop over all
    blocks of all heads, whose loads run ahead from one head into the next. Without DK, or DV, that one is () and stays.

    Where it matters, the order is that of the machine: the exponentials run while the tensor cores form dp, and ds is
    formed while they add to dv. lse and delta come as late as that allows, by way of shared memory as q and do: as
    the start of a product each block would wait for them.
    """
    WIDE: tl.constexpr = q_ptr.dtype.element_ty == tl.float32
    offs_m = tl.arange(0, BLOCK_M)
    scale_log2 = softmax_scale * 1.4426950408889634
    q_ptr += first.to(tl.int64) * q_strides[2]
    do_ptr += first.to(tl.int64) * do_strides[2]
    lse_ptr += first
    delta_ptr += first
    height = (last - first).to(tl.int64) - BLOCK_M
    m = first
    for _ in tl.range(groups * ((last - first) // BLOCK_M)):
        inside = None
        if lowest is not None:
            inside = m + offs_m >= 0
        q, do, new_dk, new_dv = (), (), (), ()
        for i in tl.static_range(PIECES):
            q += (load_rows(q_ptr, q_strides, inside, i, HEADDIM, PIECE, BLOCK_M),)
        st = _products(k, q, PIECES, PRECISION)
        lse_log2 = _load_values(lse_ptr + offs_m, inside) * 1.4426950408889634
        for i in tl.static_range(PIECES):
            do += (load_rows(do_ptr, do_strides, inside, i, HEADDIM, PIECE, BLOCK_M),)
        if DK and not WIDE:
            dpt = _products(v, do, PIECES, PRECISION)
        if lowest is not None:
            seen = lowest[:, None] <= m + offs_m[None, :]
            if end is not None:
                seen &= m + offs_m[None, :] < end[:, None]
            st = tl.where(seen, st, float("-inf"))
        pt = tl.exp2(st * scale_log2 - lse_log2[None, :])
        if DV:
            p = pt.to(do_ptr.dtype.element_ty)
            for i in tl.static_range(PIECES):
                new_dv += (add_product(dv[i], 1.0, p, do[i], PRECISION),)
        if DK:
            if WIDE:  # nothing overlaps there, and registers are few
                dpt = _products(v, do, PIECES, PRECISION)
            delta = _load_values(delta_ptr + offs_m, inside)
            dst = (pt * (dpt - delta[None, :])).to(q_ptr.dtype.element_ty)
            for i in tl.static_range(PIECES):
                new_dk += (add_product(dk[i], 1.0, dst, q[i], PRECISION),)
        dk, dv = new_dk, new_dv
        m += BLOCK_M
        next_head = m >= last
        m = tl.where(next_head, first, m)
        q_ptr += tl.where(next_head, q_strides[1] - height * q_strides[2], BLOCK_M * q_strides[2])
        do_ptr += tl.where(
            next_head, do_strides[1] - height * do_strides[2], BLOCK_M * do_strides[2]
        )
        rows = tl.where(next_head, seqlen_q - height, BLOCK_M)
        lse_ptr += rows
        delta_ptr += rows
    return dk, dv


@triton.jit
def _products(rows, columns, PIECES: tl.constexpr, PRECISION: tl.constexpr):
    """rows columns', from the PIECES of both."""
    s = tl.zeros((rows[0].shape[0], columns[0].shape[0]), dtype=tl.float32)
    for i in tl.static_range(PIECES):
        s = tl.dot(rows[i], columns[i].T, s, input_precision=PRECISION)
    return s


@triton.jit
def _load_values(ptrs, inside):
    if inside is not None:
        return tl.load(ptrs, mask=inside, other=0.0)
    else:
        return tl.load(ptrs)
