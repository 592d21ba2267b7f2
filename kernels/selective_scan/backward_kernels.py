"""Device code of the backward of `triton`. Mathematics and design: `backward.py`."""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

from kernels.selective_scan.exponentials import LN2, LOG2E, softplus
from kernels.selective_scan.lanes import LANES, exchange_all, merge, per_channel, per_lane

RUN_UNROLL = tl.constexpr(2)  # tokens on the way forward: more of them want more registers


@triton.jit
def load(ptr, mask):
    """As float32, and zero where masked: what lies beside the operands adds nothing to any sum."""
    if mask is None:
        x = tl.load(ptr)
    else:
        x = tl.load(ptr, mask=mask, other=0.0)
    return x.to(tl.float32)


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
def restart(x, fresh, ptr, strides, row, offs_d, n, inside):
    """`x`, or where `fresh` the state(s) n of `row`, which is zero without `ptr`."""
    state = 0.0
    if ptr is not None:
        at = ptr + tl.cast(row, tl.int64) * strides[0] + offs_d * strides[1]
        state = load(at + n * tl.cast(strides[2], tl.int64), inside & fresh)
    return tl.where(fresh, state, x)


@triton.jit
def prepare(
    table_ptr, A_ptr, A_strides, D_ptr, bias_ptr, adjoint_ptr, adjoint_strides, offs_d, inside,
    DSTATE: tl.constexpr, PADDED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Fill the table of a program; states from DSTATE on are 0."""
    zero = tl.zeros((BLOCK_D,), tl.float32)
    for n in tl.range(0, PADDED):
        here = inside & (n < DSTATE)
        at = A_ptr + offs_d * A_strides[0] + n * tl.cast(A_strides[1], tl.int64)
        tl.store(table_ptr + n * BLOCK_D, load(at, here) * LOG2E)
        g = zero
        if adjoint_ptr is not None:
            at = adjoint_ptr + offs_d * adjoint_strides[0]
            g = load(at + n * tl.cast(adjoint_strides[1], tl.int64), here)
        tl.store(table_ptr + (PADDED + n) * BLOCK_D, g)
        tl.store(table_ptr + (2 * PADDED + n) * BLOCK_D, zero)
    weights_ptr = table_ptr + 3 * PADDED * BLOCK_D
    for i in tl.static_range(2):
        ptr = bias_ptr if i == 0 else D_ptr
        weight = zero
        if ptr is not None:
            weight = load(ptr + offs_d, inside)
        tl.store(weights_ptr + i * BLOCK_D, weight)
        tl.store(weights_ptr + (2 + i) * BLOCK_D, zero)


@triton.jit
def take_steps(
    steps_ptr, delta_ptr, bias, tokens, chunks, inside,
    DELTA_STEP: tl.constexpr, SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The step sizes of a segment, which every state needs twice; tokens past the end have none."""
    for c in tl.range(0, chunks):
        for k in tl.static_range(TOKENS):
            t = c * TOKENS + k
            here = inside & (t < tokens)
            d = step_size(load(delta_ptr + t * DELTA_STEP, here) + bias, SOFTPLUS)
            tl.store(steps_ptr + t * BLOCK_D, tl.where(here, d, 0.0))


@triton.jit
def run_to_chunks(
    states_ptr, table_ptr, steps_ptr, u_ptr, BC_ptr, segment, start, chunks, end, mask_d, inside, offs_d,
    checkpoint_ptr, checkpoint_strides, first_ptr, first_strides, owner_ptr, row,
    U_STEP: tl.constexpr, DSTATE: tl.constexpr, PADDED: tl.constexpr, STATES: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """From the states before a segment to its last chunk, STATES at once: store the states before each chunk."""
    for some in tl.range(0, PADDED, STATES):
        h, rates = (), ()
        for j in tl.static_range(STATES):
            n = tl.cast(some + j, tl.int64)
            here = inside & (n < DSTATE)
            at = checkpoint_ptr + (segment - 1) * checkpoint_strides[0]
            at += offs_d * checkpoint_strides[1] + n * checkpoint_strides[2]
            h_n = load(at, here & (segment > 0))
            if first_ptr is not None:
                at = first_ptr + row * first_strides[0] + offs_d * first_strides[1]
                h_n += load(at + n * first_strides[2], here & (segment == 0))
            h = h + (h_n,)
            rates = rates + (tl.load(table_ptr + n * BLOCK_D),)
            tl.store(states_ptr + n * BLOCK_D, h_n)
        for c in tl.range(0, chunks - 1):
            for k in tl.range(c * TOKENS, (c + 1) * TOKENS, loop_unroll_factor=RUN_UNROLL):
                t = start + k
                d = tl.load(steps_ptr + k * BLOCK_D)
                du = d * load(u_ptr + k * U_STEP, mask_d)
                if owner_ptr is not None:
                    fresh, sequence, _ = begins(owner_ptr, t, end)
                new = ()
                for j in tl.static_range(STATES):
                    before = h[j]
                    if owner_ptr is not None:
                        before = restart(
                            before, fresh, first_ptr, first_strides, sequence, offs_d, some + j,
                            inside & (some + j < DSTATE),
                        )  # fmt: skip
                    B = tl.load(BC_ptr + (t * PADDED + some + j) * 2)
                    new = new + (tl.fma(tl.exp2(d * rates[j]), before, du * B),)
                h = new
            for j in tl.static_range(STATES):
                tl.store(states_ptr + ((c + 1) * PADDED + some + j) * BLOCK_D, h[j])


@triton.jit
def place(dim, group_dim, BLOCK_D: tl.constexpr):
    """Where a program works.

    Returns: batch; block of channels within its group; group; channels within the group, and of all.
    """
    blocks = tl.cdiv(group_dim, BLOCK_D)
    channel_blocks = blocks * (dim // group_dim)
    pid_b = (tl.program_id(0) // channel_blocks).to(tl.int64)
    pid_d = tl.program_id(0) % channel_blocks
    group = (pid_d // blocks).to(tl.int64)
    in_group = (pid_d % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    return pid_b, (pid_d % blocks).to(tl.int64), group, in_group, group * group_dim + in_group


@triton.jit
def at_token(ptr, strides, pid_b, t, first, channel, STEP: tl.constexpr):
    """Pointers to token t of the channels from `first` on."""
    at = ptr + pid_b * strides[0] + first * strides[1] + t * STEP
    return at + channel * tl.cast(strides[1], tl.int64)


@triton.jit
def selective_scan_bwd_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, first_ptr, checkpoint_ptr,
    adjoint_ptr, owner_ptr, dlast_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dBC_ptr, dfirst_ptr,
    dy_strides, u_strides, delta_strides, A_strides, BC_strides, z_strides, first_strides,
    checkpoint_strides, adjoint_strides, dlast_strides, du_strides, ddelta_strides, dz_strides,
    dBC_strides, dfirst_strides,
    seqlen, piece, dim, group_dim, nothing,
    DY_STEP: tl.constexpr, U_STEP: tl.constexpr, DELTA_STEP: tl.constexpr, Z_STEP: tl.constexpr,
    DU_STEP: tl.constexpr, DDELTA_STEP: tl.constexpr, DZ_STEP: tl.constexpr,
    SOFTPLUS: tl.constexpr, RAGGED: tl.constexpr, DSTATE: tl.constexpr, PADDED: tl.constexpr,
    STATES: tl.constexpr, CHECKPOINT: tl.constexpr,
    TOKENS: tl.constexpr, GROUP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One warp, BLOCK_D channels, `piece` segments of CHECKPOINT tokens, from the last token to the first.

    Strides are (batch or row, group or segment if any, channel, state if any); those in time are constants. A reverse
    scan has the pointers of the last token, and negative strides.

    BC: (batch, ngroups, tokens, PADDED, 2), B and C of each state side by side in the order of the scan; zeros from
    DSTATE and from seqlen on. checkpoint: the states after every CHECKPOINT-th token. adjoint: what enters each piece
    from its right. owner: the number of the packed sequence that each token belongs to, and the row of first, dlast
    and dfirst.
    scratch: for each program rows of BLOCK_D: PADDED rates, adjoints g, and sums for dA; bias, D, and sums for their
    gradients; the steps of a segment; the slopes of the gates of a chunk; the states before each chunk.
    dBC: (blocks, batch, ngroups, seqlen, 2 PADDED), dB and dC of each state side by side.
    """
    GATED: tl.constexpr = z_ptr is not None
    WIDTH: tl.constexpr = LANES // GROUP
    pid_b, block, group, in_group, offs_d = place(dim, group_dim, BLOCK_D)
    pid_s = tl.program_id(1).to(tl.int64)
    program = pid_s * tl.num_programs(0) + tl.program_id(0)
    inside = in_group < group_dim
    mask_d = inside if RAGGED else None
    lane = tl.arange(0, LANES)

    BC_ptr += pid_b * BC_strides[0] + group * BC_strides[1]
    dBC_ptr += block * dBC_strides[0] + pid_b * dBC_strides[1] + group * dBC_strides[2]
    checkpoint_ptr += pid_b * checkpoint_strides[0]

    ROWS: tl.constexpr = 3 * PADDED + 4 + CHECKPOINT + TOKENS + CHECKPOINT // TOKENS * PADDED
    channel = tl.arange(0, BLOCK_D)
    origin = group * group_dim + block * BLOCK_D
    WEIGHTS: tl.constexpr = 3 * PADDED * BLOCK_D
    STEPS: tl.constexpr = WEIGHTS + 4 * BLOCK_D
    SLOPES: tl.constexpr = STEPS + CHECKPOINT * BLOCK_D
    CHUNKS: tl.constexpr = SLOPES + TOKENS * BLOCK_D
    own_ptr = scratch_ptr + program * (ROWS * BLOCK_D)
    if adjoint_ptr is not None:
        adjoint_ptr += pid_b * adjoint_strides[0] + pid_s * adjoint_strides[1]
    prepare(
        own_ptr + channel, A_ptr, A_strides, D_ptr, bias_ptr,
        adjoint_ptr, None if adjoint_ptr is None else adjoint_strides[2:], offs_d, inside, DSTATE, PADDED, BLOCK_D,
    )  # fmt: skip
    row = pid_b
    if owner_ptr is not None:
        row = tl.load(owner_ptr).to(tl.int64)
    zero = tl.zeros((BLOCK_D,), tl.float32)

    first_segment = pid_s * piece
    stop_segment = tl.minimum(first_segment + piece, tl.cdiv(seqlen, CHECKPOINT))
    for i_segment in tl.range(0, stop_segment - first_segment):
        segment = (stop_segment - 1 - i_segment) ^ nothing
        start = segment * CHECKPOINT
        end = tl.minimum(start + CHECKPOINT, seqlen)
        chunks = tl.cdiv(end - start, TOKENS)
        around = channel + segment * nothing
        table_ptr = own_ptr + around
        take_steps(
            table_ptr + STEPS, at_token(delta_ptr, delta_strides, pid_b, start, origin, around, DELTA_STEP),
            tl.load(table_ptr + WEIGHTS), end - start, chunks, inside,
            DELTA_STEP, SOFTPLUS, TOKENS, BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()
        run_to_chunks(
            table_ptr + CHUNKS, table_ptr, table_ptr + STEPS,
            at_token(u_ptr, u_strides, pid_b, start, origin, around, U_STEP), BC_ptr, segment, start, chunks, end,
            mask_d, inside, origin + around,
            checkpoint_ptr, checkpoint_strides[1:], first_ptr, first_strides, owner_ptr, row,
            U_STEP, DSTATE, PADDED, STATES, TOKENS, BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()

        for i_chunk in tl.range(0, chunks):
            c = (chunks - 1 - i_chunk) ^ nothing
            t0 = start + c * TOKENS
            left = (end - t0).to(tl.int32)
            near = channel + c * nothing
            here_ptr = own_ptr + near
            u_at = at_token(u_ptr, u_strides, pid_b, t0, origin, near, U_STEP)
            dy_at = at_token(dy_ptr, dy_strides, pid_b, t0, origin, near, DY_STEP)
            if GATED:
                z_at = at_token(z_ptr, z_strides, pid_b, t0, origin, near, Z_STEP)
            # tokens past the end have no input, no step, and no gradient
            d, du, dy, fresh, rows, rows_before = (), (), (), (), (), ()
            for k in tl.static_range(TOKENS):
                here = inside & (k < left) if RAGGED else k < left
                d = d + (tl.load(here_ptr + STEPS + (c * TOKENS + k) * BLOCK_D),)
                du = du + (d[k] * load(u_at + k * U_STEP, here),)
                dy_k = load(dy_at + k * DY_STEP, here)
                if GATED:
                    z = load(z_at + k * Z_STEP, here)
                    s = sigmoid(z)
                    tl.store(here_ptr + SLOPES + k * BLOCK_D, dy_k * tl.fma(z * s, 1.0 - s, s))
                    dy_k *= z * s
                dy = dy + (dy_k,)
                if owner_ptr is not None:
                    begin, row_here, row_before = begins(owner_ptr, t0 + k, end)
                    fresh = fresh + (begin,)
                    rows = rows + (row_here,)
                    rows_before = rows_before + (row_before,)
            tl.debug_barrier()

            # the state of a group that a lane, and its channels, begin with: lane i takes j ^ (i // WIDTH) at place j
            lane_first = (lane // WIDTH) ^ (left * nothing)
            first = (channel // (BLOCK_D // GROUP)) ^ (left * nothing)
            gB, gAh, hC = replicate(zero, TOKENS), replicate(zero, TOKENS), replicate(zero, TOKENS)
            for some in tl.range(0, PADDED, GROUP):
                stack = ()
                for j in tl.static_range(GROUP):
                    n = some + (j ^ first)
                    pair_at = BC_ptr + (t0 * PADDED + some + (j ^ lane_first)) * 2
                    table_at = here_ptr + n * BLOCK_D
                    state = tl.load(table_at + CHUNKS + c * (PADDED * BLOCK_D))
                    rate = tl.load(table_at)
                    a, kept, B, C, dC, new_hC = (), (), (), (), (), ()
                    for k in tl.static_range(TOKENS):
                        pair = tl.load((pair_at + k * PADDED * 2).to(tl.pointer_type(tl.int64)))
                        B_k = pair.to(tl.int32).to(tl.float32, bitcast=True)
                        C_k = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
                        B = B + (per_channel(B_k, BLOCK_D),)
                        C = C + (per_channel(C_k, BLOCK_D),)
                        if owner_ptr is not None:
                            state = restart(
                                state, fresh[k], first_ptr, first_strides, rows[k], offs_d, n,
                                inside & (n < DSTATE),
                            )  # fmt: skip
                        a = a + (tl.exp2(d[k] * rate),)
                        kept = kept + (a[k] * state,)
                        state = tl.fma(du[k], B[k], kept[k])
                        dC = dC + (per_lane(dy[k] * state),)
                        new_hC = new_hC + (tl.fma(state, C[k], hC[k]),)
                    if GATED:
                        hC = new_hC

                    g = tl.load(table_at + PADDED * BLOCK_D)
                    dA = tl.load(table_at + 2 * PADDED * BLOCK_D)
                    entry, new_gB, new_gAh = (), (), ()
                    for k in tl.static_range(TOKENS - 1, -1, -1):
                        g = tl.fma(dy[k], C[k], g)
                        entry = (per_lane(g * du[k]), dC[k]) + entry
                        new_gB = (tl.fma(g, B[k], gB[k]),) + new_gB
                        gah = g * kept[k]
                        new_gAh = (tl.fma(gah, rate, gAh[k]),) + new_gAh
                        dA = tl.fma(gah, d[k], dA)
                        g *= a[k]
                        if owner_ptr is not None:
                            there = inside & (n < DSTATE)
                            if dfirst_ptr is not None:
                                at = dfirst_ptr + rows[k].to(tl.int64) * dfirst_strides[0]
                                at += offs_d * dfirst_strides[1] + n * dfirst_strides[2]
                                tl.store(at, g, mask=there & fresh[k])
                            g = restart(
                                g, fresh[k], dlast_ptr, dlast_strides, rows_before[k], offs_d, n, there
                            )  # fmt: skip
                    gB, gAh = new_gB, new_gAh
                    tl.store(table_at + PADDED * BLOCK_D, g)
                    tl.store(table_at + 2 * PADDED * BLOCK_D, dA)
                    stack = merge(stack + (entry,), j, GROUP)

                sums = exchange_all(stack[0], WIDTH)
                for m in tl.static_range(len(sums)):
                    i = m * WIDTH + lane % WIDTH
                    at = dBC_ptr + (t0 + i // 2) * dBC_strides[3] + (some + lane_first) * 2 + i % 2
                    tl.store(at, sums[m], mask=(i < 2 * TOKENS) & (i // 2 < left))

            near = channel + left * nothing  # again, rather than kept across the loop
            here_ptr = own_ptr + near
            u_at = at_token(u_ptr, u_strides, pid_b, t0, origin, near, U_STEP)
            delta_at = at_token(delta_ptr, delta_strides, pid_b, t0, origin, near, DELTA_STEP)
            du_at = at_token(du_ptr, du_strides, pid_b, t0, origin, near, DU_STEP)
            ddelta_at = at_token(ddelta_ptr, ddelta_strides, pid_b, t0, origin, near, DDELTA_STEP)
            if GATED:
                dz_at = at_token(dz_ptr, dz_strides, pid_b, t0, origin, near, DZ_STEP)
            bias, D = tl.load(here_ptr + WEIGHTS), tl.load(here_ptr + WEIGHTS + BLOCK_D)
            dbias, dD = zero, zero
            for k in tl.static_range(TOKENS):
                here = inside & (k < left) if RAGGED else k < left
                u = load(u_at + k * U_STEP, here)
                tl.store(du_at + k * DU_STEP, tl.fma(d[k], gB[k], D * dy[k]), mask=here)
                ddelta = tl.fma(u, gB[k], gAh[k] * LN2)
                if SOFTPLUS:
                    x = load(delta_at + k * DELTA_STEP, here) + bias
                    ddelta *= tl.exp2((x - d[k]) * LOG2E)  # sigmoid(x)
                tl.store(ddelta_at + k * DDELTA_STEP, ddelta, mask=here)
                dD = tl.fma(dy[k], u, dD)
                dbias += tl.where(k < left, ddelta, 0.0)
                if GATED:
                    dz = tl.load(here_ptr + SLOPES + k * BLOCK_D) * tl.fma(D, u, hC[k])
                    tl.store(dz_at + k * DZ_STEP, dz, mask=here)
            for i in tl.static_range(2):
                at = here_ptr + WEIGHTS + (2 + i) * BLOCK_D
                tl.store(at, tl.load(at) + (dbias if i == 0 else dD))

    if dfirst_ptr is not None:
        # once more, since what is kept from the beginning does not find registers
        pid_b, _, _, in_group, offs_d = place(dim + nothing, group_dim + nothing, BLOCK_D)
        program = pid_s * tl.num_programs(0) + tl.program_id(0) + nothing
        here_ptr = scratch_ptr + program * (ROWS * BLOCK_D) + tl.arange(0, BLOCK_D)
        row = pid_b
        if owner_ptr is not None:
            row = tl.load(owner_ptr + nothing).to(tl.int64)
        at = dfirst_ptr + row * dfirst_strides[0] + offs_d * dfirst_strides[1]
        for n in tl.range(0, DSTATE):
            g = tl.load(here_ptr + (PADDED + n) * BLOCK_D)
            there = (in_group < group_dim) & (pid_s == 0)
            tl.store(at + n * tl.cast(dfirst_strides[2], tl.int64), g, mask=there)
