"""Device code of the backward of `triton`. Mathematics and design: `backward.py`."""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

from kernels.selective_scan.forward_kernels import LN2, LOG2E, load_words, softplus, unpack
from kernels.selective_scan.lanes import LANES, exchange, merge, per_lane


@triton.jit
def load(ptr, mask):
    """As float32, and zero where masked: what lies beside the operands adds nothing to any sum."""
    if mask is None:
        x = tl.load(ptr)
    else:
        x = tl.load(ptr, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def load_or_zero(ptr, mask):
    x = 0.0
    if ptr is not None:
        x = load(ptr, mask)
    return x


@triton.jit
def load_all(ptr, strides, offs_d, mask_d, DSTATE: tl.constexpr):
    """DSTATE vectors over the channels `offs_d` of a (dim, dstate) matrix."""
    states = ()
    for n in tl.static_range(DSTATE):
        at = ptr + offs_d * strides[0] + n * tl.cast(strides[1], tl.int64)
        states = states + (load(at, mask_d),)
    return states


@triton.jit
def replicate(x, COUNT: tl.constexpr):
    copies = ()
    for _ in tl.static_range(COUNT):
        copies = copies + (x,)
    return copies


@triton.jit
def sigmoid(x):
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))  # its square is cheaper than a division
    return root * root


@triton.jit
def step_size(delta, SOFTPLUS: tl.constexpr):
    if SOFTPLUS:
        delta = softplus(delta)
    return delta


@triton.jit
def begins(owner_ptr, t, end):
    """Whether a sequence begins at token t (not the first of all), its number and that of the one before."""
    t_in = tl.minimum(t, end - 1)
    row = tl.load(owner_ptr + t_in)
    before = tl.load(owner_ptr + tl.maximum(t_in - 1, 0))
    return (row != before) & (t < end), row, before


@triton.jit
def restart(x, fresh, ptr, strides, row, offs_d, n: tl.constexpr, inside):
    """`x`, or where `fresh` state n of `row`, which is zero without `ptr`."""
    state = 0.0
    if ptr is not None:
        at = ptr + tl.cast(row, tl.int64) * strides[0] + offs_d * strides[1]
        state = load(at + n * tl.cast(strides[2], tl.int64), inside & fresh)
    return tl.where(fresh, state, x)


@triton.jit
def run_to_chunks(
    h, rates, start, chunks, end, u_ptr, delta_ptr, bias, B_ptr, B_stride, mask_d, inside, offs_d,
    first_ptr, first_strides, owner_ptr, scratch_ptr,
    U_STEP: tl.constexpr, DELTA_STEP: tl.constexpr, B_STEP: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """From the state `h` before a segment to the last of its chunks; stores the state before each."""
    DSTATE: tl.constexpr = len(rates)
    BLOCK_D: tl.constexpr = offs_d.shape[0]
    for n in tl.static_range(DSTATE):
        tl.store(scratch_ptr + n * BLOCK_D, h[n])
    for c in tl.range(0, chunks - 1):
        for k in tl.static_range(TOKENS):
            t = start + c * TOKENS + k
            u = load(u_ptr + t * U_STEP, mask_d)
            d = step_size(load(delta_ptr + t * DELTA_STEP, mask_d) + bias, SOFTPLUS)
            B = load_words(B_ptr + t * B_STEP, B_stride, None, DSTATE, PACK)
            if owner_ptr is not None:
                fresh, row, _ = begins(owner_ptr, t, end)
            du = d * u
            new = ()
            for n in tl.static_range(DSTATE):
                before = h[n]
                if owner_ptr is not None:
                    before = restart(
                        before, fresh, first_ptr, first_strides, row, offs_d, n, inside
                    )
                added = du * unpack(B, n, tl.float32, PACK)
                new = new + (tl.fma(tl.exp2(d * rates[n]), before, added),)
            h = new
        for n in tl.static_range(DSTATE):
            tl.store(scratch_ptr + ((c + 1) * DSTATE + n) * BLOCK_D, h[n])


@triton.jit
def place(first, dim, group_dim, BLOCK_D: tl.constexpr):
    """Where program `first + program_id` works.

    Returns: batch; block of channels among those of all batches, and within its group; group; channels within the
    group, and of all.
    """
    blocks = tl.cdiv(group_dim, BLOCK_D)
    channel_blocks = blocks * (dim // group_dim)
    pid = tl.program_id(0) + first
    pid_b = (pid // channel_blocks).to(tl.int64)
    pid_d = pid % channel_blocks
    group = (pid_d // blocks).to(tl.int64)
    in_group = (pid_d % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    block = pid_b * channel_blocks + pid_d
    return (
        pid_b,
        block,
        (pid_d % blocks).to(tl.int64),
        group,
        in_group,
        group * group_dim + in_group,
    )


@triton.jit
def selective_scan_bwd_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, first_ptr, checkpoint_ptr,
    adjoint_ptr, owner_ptr, dlast_ptr, scratch_ptr, partial_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, dfirst_ptr,
    dy_strides, u_strides, delta_strides, A_strides, B_strides, BC_strides, z_strides, first_strides,
    checkpoint_strides, adjoint_strides, dlast_strides, partial_strides, du_strides, ddelta_strides,
    dz_strides, dBC_strides, dfirst_strides,
    seqlen, piece, dim, group_dim, nothing,
    DY_STEP: tl.constexpr, U_STEP: tl.constexpr, DELTA_STEP: tl.constexpr, B_STEP: tl.constexpr,
    BC_STEP: tl.constexpr, Z_STEP: tl.constexpr, PARTIAL_STEP: tl.constexpr, DU_STEP: tl.constexpr,
    DDELTA_STEP: tl.constexpr, DZ_STEP: tl.constexpr, CHECKPOINT_STEP: tl.constexpr,
    ADD: tl.constexpr, SOFTPLUS: tl.constexpr, RAGGED: tl.constexpr, DSTATE: tl.constexpr,
    PACK: tl.constexpr, CHECKPOINT: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One warp, BLOCK_D channels, `piece` segments of CHECKPOINT tokens, from the last token to the first.

    Strides are (batch or row, group or segment if any, channel, state if any); those in time are constants, and that of
    the states of checkpoint. A reverse scan has the pointers of the last token, and negative strides.

    checkpoint: the states after every CHECKPOINT-th token. adjoint: what enters each piece from its right.
    owner: the number of the packed sequence that each token belongs to, and the row of first, dlast and dfirst.
    scratch: for each program the state before each chunk of TOKENS, and the decay rates, twice: read in turn, since 16
    addresses that stay the same throughout the loop would each take registers.
    nothing: 0, which the compiler does not know. An address that depends on it is formed where it is used; else all
    addresses of the tables of rates and dA are kept across the loops, in registers that are not there.
    partial: (3, ...) sums over states, of earlier parts of them if ADD; without du_ptr they are written back.
    dBC: (blocks, batch, ngroups, seqlen, 2 PADDED), dB and dC of each state side by side. dA, dD, dbias: by batch
    and piece.
    """
    GATED: tl.constexpr = z_ptr is not None
    PADDED: tl.constexpr = triton.next_power_of_2(DSTATE)
    pid_b, block, block_in_group, group, in_group, offs_d = place(0, dim, group_dim, BLOCK_D)
    pid_s = tl.program_id(1).to(tl.int64)
    program = pid_s * tl.num_programs(0) + tl.program_id(0)
    inside = in_group < group_dim
    mask_d = inside if RAGGED else None
    lane = tl.arange(0, LANES)

    dy_ptr += pid_b * dy_strides[0] + offs_d * dy_strides[1]
    u_ptr += pid_b * u_strides[0] + offs_d * u_strides[1]
    delta_ptr += pid_b * delta_strides[0] + offs_d * delta_strides[1]
    B_ptr += pid_b * B_strides[0] + group * B_strides[1]
    BC_ptr += pid_b * BC_strides[0] + group * BC_strides[1]
    if D_ptr is not None:
        D_ptr += offs_d
    if bias_ptr is not None:
        bias_ptr += offs_d
    if partial_ptr is not None:
        partial_ptr += pid_b * partial_strides[1] + offs_d * partial_strides[2]
    if du_ptr is not None:
        du_ptr += pid_b * du_strides[0] + offs_d * du_strides[1]
        ddelta_ptr += pid_b * ddelta_strides[0] + offs_d * ddelta_strides[1]
    if GATED:
        z_ptr += pid_b * z_strides[0] + offs_d * z_strides[1]
    if dz_ptr is not None:
        dz_ptr += pid_b * dz_strides[0] + offs_d * dz_strides[1]
    checkpoint_ptr += pid_b * checkpoint_strides[0]
    dBC_ptr += block_in_group * dBC_strides[0] + pid_b * dBC_strides[1] + group * dBC_strides[2]
    scratch_ptr += program * ((CHECKPOINT // TOKENS + 1) * DSTATE * BLOCK_D) + tl.arange(0, BLOCK_D)
    rates_ptr = scratch_ptr + CHECKPOINT // TOKENS * DSTATE * BLOCK_D
    dA_ptr += (block * tl.num_programs(1) + pid_s) * (DSTATE * BLOCK_D) + tl.arange(0, BLOCK_D)
    row = pid_b
    if owner_ptr is not None:
        row = tl.load(owner_ptr).to(tl.int64)

    zero = tl.zeros((BLOCK_D,), tl.float32)
    rates = load_all(A_ptr, A_strides, offs_d, mask_d, DSTATE)
    for n in tl.static_range(DSTATE):
        tl.store(rates_ptr + n * BLOCK_D, rates[n] * LOG2E)
        tl.store(dA_ptr + n * BLOCK_D, zero)
    g = replicate(zero, DSTATE)
    if adjoint_ptr is not None:
        adjoint_ptr += pid_b * adjoint_strides[0] + pid_s * adjoint_strides[1]
        g = load_all(adjoint_ptr, adjoint_strides[2:], offs_d, mask_d, DSTATE)
    dD, dbias = zero, zero

    first_segment = pid_s * piece
    stop_segment = tl.minimum(first_segment + piece, tl.cdiv(seqlen, CHECKPOINT))
    for i_segment in tl.range(0, tl.maximum(stop_segment - first_segment, 1)):
        segment = (stop_segment - 1 - i_segment) ^ nothing
        start = segment * CHECKPOINT
        end = tl.minimum(start + CHECKPOINT, seqlen)
        # at least one, known to the compiler: there is no path around the loop
        chunks = tl.maximum(tl.cdiv(end - start, TOKENS), 1)
        if segment > 0:
            kept_at = checkpoint_ptr + (segment - 1) * checkpoint_strides[1]
            kept_at += offs_d * checkpoint_strides[2]
            h = ()
            for n in tl.static_range(DSTATE):
                h = h + (load(kept_at + n * CHECKPOINT_STEP, mask_d),)
        elif first_ptr is not None:
            first_at = first_ptr + row * first_strides[0]
            h = load_all(first_at, first_strides[1:], offs_d, mask_d, DSTATE)
        else:
            h = replicate(zero, DSTATE)
        rates = ()
        for n in tl.static_range(DSTATE):
            rates = rates + (tl.load(rates_ptr + i_segment * nothing + n * BLOCK_D),)
        run_to_chunks(
            h, rates, start, chunks, end, u_ptr, delta_ptr, load_or_zero(bias_ptr, mask_d), B_ptr, B_strides[2],
            mask_d, inside, offs_d, first_ptr, first_strides, owner_ptr, scratch_ptr,
            U_STEP, DELTA_STEP, B_STEP, SOFTPLUS, PACK, TOKENS,
        )  # fmt: skip
        tl.debug_barrier()

        for i_chunk in tl.range(0, chunks):
            c = (chunks - 1 - i_chunk) ^ nothing
            t0 = start + c * TOKENS
            left = (end - t0).to(tl.int32)
            rates_at, dA_at = rates_ptr + i_chunk * nothing, dA_ptr + i_chunk * nothing
            bias = load_or_zero(bias_ptr, mask_d)
            # tokens past the end have no input, no step, and no gradient
            d, du, dy, fresh, rows, rows_before = (), (), (), (), (), ()
            for k in tl.static_range(TOKENS):
                t = t0 + k
                here = inside & (k < left) if RAGGED else k < left
                delta = load(delta_ptr + t * DELTA_STEP, here) + bias
                d = d + (tl.where(k < left, step_size(delta, SOFTPLUS), 0.0),)
                du = du + (d[k] * load(u_ptr + t * U_STEP, here),)
                before_gate = load(dy_ptr + t * DY_STEP, here)
                if GATED:
                    z = load(z_ptr + t * Z_STEP, here)
                    before_gate *= z * sigmoid(z)
                dy = dy + (before_gate,)
                if owner_ptr is not None:
                    begin, row_here, row_before = begins(owner_ptr, t, end)
                    fresh = fresh + (begin,)
                    rows = rows + (row_here,)
                    rows_before = rows_before + (row_before,)

            gB, gAh, hC = replicate(zero, TOKENS), replicate(zero, TOKENS), replicate(zero, TOKENS)
            new_g, stack = (), ()
            for n in tl.static_range(PADDED):
                entry = ()
                if n < DSTATE:
                    state = tl.load(scratch_ptr + (c * DSTATE + n) * BLOCK_D)
                    rate = tl.load(rates_at + n * BLOCK_D)
                    a, kept, B, C, dC, sums = (), (), (), (), (), ()
                    for k in tl.static_range(TOKENS):
                        # one load of 64 bits gives both; past the end, any others
                        pair = tl.load(BC_ptr + (t0 + tl.minimum(k, left - 1)) * BC_STEP + n)
                        B = B + (pair.to(tl.int32).to(tl.float32, bitcast=True),)
                        C = C + ((pair >> 32).to(tl.int32).to(tl.float32, bitcast=True),)
                        if owner_ptr is not None:
                            state = restart(
                                state, fresh[k], first_ptr, first_strides, rows[k], offs_d, n, inside
                            )  # fmt: skip
                        a = a + (tl.exp2(d[k] * rate),)
                        kept = kept + (a[k] * state,)
                        state = tl.fma(du[k], B[k], kept[k])
                        dC = dC + (per_lane(dy[k] * state),)
                        if GATED:
                            sums = sums + (tl.fma(state, C[k], hC[k]),)
                    if GATED:
                        hC = sums

                    g_n, dA_n = g[n], tl.load(dA_at + n * BLOCK_D)
                    sums, more_sums = (), ()
                    for i in tl.static_range(TOKENS):
                        g_n = tl.fma(dy[TOKENS - 1 - i], C[TOKENS - 1 - i], g_n)
                        dB = per_lane(g_n * du[TOKENS - 1 - i])
                        entry = (exchange(dB, dC[TOKENS - 1 - i], 1),) + entry
                        sums = (tl.fma(g_n, B[TOKENS - 1 - i], gB[TOKENS - 1 - i]),) + sums
                        gah = g_n * kept[TOKENS - 1 - i]
                        more_sums = (tl.fma(gah, rate, gAh[TOKENS - 1 - i]),) + more_sums
                        dA_n = tl.fma(gah, d[TOKENS - 1 - i], dA_n)
                        g_n *= a[TOKENS - 1 - i]
                        if owner_ptr is not None:
                            begin = fresh[TOKENS - 1 - i]
                            if dfirst_ptr is not None:
                                at = (
                                    dfirst_ptr
                                    + rows[TOKENS - 1 - i].to(tl.int64) * dfirst_strides[0]
                                )
                                at += offs_d * dfirst_strides[1] + n * dfirst_strides[2]
                                tl.store(at, g_n, mask=inside & begin)
                            g_n = restart(
                                g_n, begin, dlast_ptr, dlast_strides, rows_before[TOKENS - 1 - i], offs_d, n, inside
                            )  # fmt: skip
                    gB, gAh = sums, more_sums
                    new_g = new_g + (g_n,)
                    tl.store(dA_at + n * BLOCK_D, dA_n)
                else:
                    entry = replicate(tl.zeros((LANES,), tl.float32), TOKENS)
                stack = stack + (entry,)
                for level in tl.static_range(4):
                    stack = merge(stack, n, 2 << level)
            g = new_g

            for k in tl.static_range(TOKENS):
                t = t0 + k
                sums = stack[0][k]
                for level in tl.static_range(5):
                    if 1 << level >= 2 * PADDED:
                        sums += tl.gather(sums, lane ^ (1 << level), 0)
                at = dBC_ptr + t * dBC_strides[3] + lane
                tl.store(at, sums, mask=(lane < 2 * PADDED) & (k < left))

            dD_chunk, dbias_chunk = zero, zero
            for k in tl.static_range(TOKENS):
                t = t0 + k
                here = inside & (k < left) if RAGGED else k < left
                s1, s2, s3 = gB[k], gAh[k], hC[k]
                if ADD:
                    at = partial_ptr + t * PARTIAL_STEP
                    s1 += load(at, here)
                    s2 += load(at + partial_strides[0], here)
                    if GATED:
                        s3 += load(at + 2 * partial_strides[0], here)
                if du_ptr is None:
                    at = partial_ptr + t * PARTIAL_STEP
                    tl.store(at, s1, mask=here)
                    tl.store(at + partial_strides[0], s2, mask=here)
                    if GATED:
                        tl.store(at + 2 * partial_strides[0], s3, mask=here)
                else:
                    D = load_or_zero(D_ptr, mask_d)
                    u = load(u_ptr + t * U_STEP, here)
                    tl.store(du_ptr + t * DU_STEP, tl.fma(d[k], s1, D * dy[k]), mask=here)
                    ddelta = tl.fma(u, s1, s2 * LN2)
                    if SOFTPLUS:
                        ddelta *= sigmoid(load(delta_ptr + t * DELTA_STEP, here) + bias)
                    tl.store(ddelta_ptr + t * DDELTA_STEP, ddelta, mask=here)
                    dD_chunk = tl.fma(dy[k], u, dD_chunk)
                    dbias_chunk += tl.where(k < left, ddelta, 0.0)
                    if GATED:
                        z = load(z_ptr + t * Z_STEP, here)
                        s = sigmoid(z)
                        dz = load(dy_ptr + t * DY_STEP, here) * tl.fma(D, u, s3)
                        tl.store(dz_ptr + t * DZ_STEP, dz * tl.fma(z * s, 1.0 - s, s), mask=here)
            dD += dD_chunk
            dbias += dbias_chunk

    # once more, since what is kept from the beginning does not find registers
    pid_b, _, _, _, in_group, offs_d = place(nothing, dim + nothing, group_dim + nothing, BLOCK_D)
    pid_s = (tl.program_id(1) + nothing).to(tl.int64)
    inside = in_group < group_dim
    mask_d = inside if RAGGED else None
    share = pid_b * tl.num_programs(1) + pid_s
    if dD_ptr is not None:
        tl.store(dD_ptr + share * dim + offs_d, dD, mask=mask_d)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + share * dim + offs_d, dbias, mask=mask_d)
    if dfirst_ptr is not None:
        row = pid_b
        if owner_ptr is not None:
            row = tl.load(owner_ptr + nothing).to(tl.int64)
        at = dfirst_ptr + row * dfirst_strides[0] + offs_d * dfirst_strides[1]
        for n in tl.static_range(DSTATE):
            tl.store(at + n * dfirst_strides[2], g[n], mask=inside & (pid_s == 0))
