"""Device code of `triton`: the scan of a segment in matrix form, and the chaining of segments. Design: `forward.py`."""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

from kernels.causal_attention.blocks import add_product
from kernels.selective_scan.exponentials import LOG2E, softplus

# What enters a state in half precision comes in so many parts, 24 bits in all, so that a state errs like float32; in
# float16, whose smallest numbers are 2^-24, states are this many times as large.
PARTS, FLOAT16_SCALE = tl.constexpr(3), tl.constexpr(256.0)
# Nothing of a state is left in float32 after a decay of 2^-160: larger exponents would only cost the sums their digits.
LOWEST = tl.constexpr(-160.0)


@triton.jit
def add_pairs(high, low, more_high, more_low):
    """The sum of two numbers in two parts each, of which the second is what rounding took from the first."""
    total = high + more_high
    part = total - high
    lost = (high - (total - part)) + (more_high - part)
    return total, lost + (low + more_low)


@triton.jit(do_not_specialize=["seqlen", "nheads"])
def ssd_steps_kernel(
    dt_ptr, A_ptr, bias_ptr, steps_ptr, total_ptr,
    dt_strides,
    seqlen, nheads,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """What the scan needs of dt and A, for a chunk of tokens and BLOCK_H heads.

    With c_i = high_i + low_i the base-2 logarithm of the decay from the start of the chunk to after token i, and d_i
    the step size (0 beyond the sequence):

    steps: (batch, nheads, chunks, 4, CHUNK) float32: d_i / 2^low_i, d_i 2^(c_last - c_i), high_i, low_i.
    total: (batch, nheads, chunks) float32: c_last.
    """
    chunks = tl.cdiv(seqlen, CHUNK)
    pid_l = tl.program_id(0) % chunks
    pid_b = (tl.program_id(0) // chunks).to(tl.int64)
    token = pid_l * CHUNK + tl.arange(0, CHUNK)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    within = head < nheads
    inside = (token < seqlen)[:, None] & within[None, :]
    at = dt_ptr + pid_b * dt_strides[0] + token.to(tl.int64)[:, None] * dt_strides[1]
    d = tl.load(at + head[None, :] * dt_strides[2], mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        d += tl.load(bias_ptr + head, mask=within, other=0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        d = softplus(d)
    d = tl.where(inside, d, 0.0)

    rate = tl.load(A_ptr + head, mask=within, other=0.0).to(tl.float32) * LOG2E
    exponent = tl.maximum(d * rate[None, :], LOWEST)
    high, low = tl.associative_scan((exponent, tl.zeros_like(exponent)), 0, add_pairs)

    last = (tl.arange(0, CHUNK) == CHUNK - 1)[:, None]
    last_high = tl.sum(tl.where(last, high, 0.0), 0)
    last_low = tl.sum(tl.where(last, low, 0.0), 0)
    to_end = tl.exp2((last_high[None, :] - high) + (last_low[None, :] - low))

    row = (pid_b * nheads + head) * chunks + pid_l
    at = steps_ptr + row[None, :] * 4 * CHUNK + tl.arange(0, CHUNK)[:, None]
    mask = within[None, :]
    tl.store(at, d * tl.exp2(-low), mask=mask)
    tl.store(at + CHUNK, d * to_end, mask=mask)
    tl.store(at + 2 * CHUNK, high, mask=mask)
    tl.store(at + 3 * CHUNK, low, mask=mask)
    tl.store(total_ptr + row, last_high + last_low, mask=within)


@triton.jit
def load_tile(ptr, rows, columns, stride, inside, TOKEN: tl.constexpr, WIDTH: tl.constexpr):
    """Rows (tokens) of x, B or C, TOKEN apart; zero where they are not `inside`, and beyond WIDTH columns."""
    ptrs = ptr + rows[:, None] * TOKEN + columns[None, :] * stride
    return tl.load(ptrs, mask=inside[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def leading(weights, dtype: tl.constexpr):
    """What `dtype` can hold of float32 numbers, in float32."""
    if dtype == tl.bfloat16:
        # the upper half of the bits: cut, not rounded, since the rest is a product of its own
        return (weights.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    else:
        return weights.to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["seqlen", "segments", "segment", "chunks", "nheads", "ngroups"])
def ssd_scan_fwd_kernel(
    x_ptr, steps_ptr, total_ptr, B_ptr, C_ptr, D_ptr, first_ptr, y_ptr, last_ptr, exponent_ptr,
    x_strides, B_strides, C_strides, y_strides,
    seqlen, segments, segment, chunks, nheads, ngroups,
    X_TOKEN: tl.constexpr, B_TOKEN: tl.constexpr, C_TOKEN: tl.constexpr, Y_TOKEN: tl.constexpr,
    HEADDIM: tl.constexpr, DSTATE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, PIECE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One segment of BLOCK_P channels of a head. Without y_ptr only what carrying needs.

    Strides are (batch, head or group, channel or state), and those between tokens constants, so that an address costs
    nothing. steps and total: of `ssd_steps_kernel`. States are (batch, segments, nheads, HEADDIM, DSTATE):
    first those before each segment, or None for zeros; last those after each, with y_ptr only that after the last one,
    without the axis. exponent: (batch, segments - 1, nheads), the base-2 logarithm of the decay over each segment.
    Of the weights of a chunk, those of PIECE tokens are in registers at a time.
    """
    blocks: tl.constexpr = (HEADDIM + BLOCK_P - 1) // BLOCK_P
    pid_p = tl.program_id(0) % blocks
    pid_h = (tl.program_id(0) // blocks % nheads).to(tl.int64)
    pid_b = (tl.program_id(0) // blocks // nheads).to(tl.int64)
    pid_s = tl.program_id(1).to(tl.int64)
    group = pid_h // (nheads // ngroups)
    start = tl.program_id(1) * segment
    end = tl.minimum(start + segment, seqlen)
    token = start.to(tl.int64)
    x_ptr += pid_b * x_strides[0] + token * X_TOKEN + pid_h * x_strides[1]
    total_ptr += (pid_b * nheads + pid_h) * chunks + start // CHUNK
    steps_ptr += ((pid_b * nheads + pid_h) * chunks + start // CHUNK) * 4 * CHUNK
    B_ptr += pid_b * B_strides[0] + token * B_TOKEN + group * B_strides[1]
    if y_ptr is not None:
        C_ptr += pid_b * C_strides[0] + token * C_TOKEN + group * C_strides[1]
        y_ptr += pid_b * y_strides[0] + token * Y_TOKEN + pid_h * y_strides[1]
    if D_ptr is not None:
        D = tl.load(D_ptr + pid_h).to(tl.float32)

    offs_l, offs_k, offs_n = tl.arange(0, CHUNK), tl.arange(0, PIECE), tl.arange(0, BLOCK_N)
    offs_p = pid_p * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_state = offs_p[None, :] * DSTATE + offs_n[:, None]
    mask_state = (offs_n < DSTATE)[:, None] & (offs_p < HEADDIM)[None, :]
    SCALE: tl.constexpr = FLOAT16_SCALE if x_ptr.dtype.element_ty == tl.float16 else 1.0
    state = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    if first_ptr is not None:
        first_ptr += ((pid_b * segments + pid_s) * nheads + pid_h) * HEADDIM * DSTATE
        state = tl.load(first_ptr + offs_state, mask=mask_state, other=0.0).to(tl.float32) * SCALE
    exponent = 0.0

    for t in tl.range(start, end, CHUNK):
        inside = offs_l < end - t
        total = tl.load(total_ptr)
        if y_ptr is not None:
            C = load_tile(C_ptr, offs_l, offs_n, C_strides[2], inside, C_TOKEN, DSTATE)
            high = tl.load(steps_ptr + 2 * CHUNK + offs_l)
            before = (state * (1 / SCALE)).to(C.dtype)
            y = tl.dot(C, before, input_precision=PRECISION) * tl.exp2(high)[:, None]
        state *= tl.exp2(total)
        for k in tl.static_range(0, CHUNK, PIECE):
            here = k + offs_k < end - t
            x = load_tile(x_ptr + k * X_TOKEN, offs_k, offs_p, x_strides[2], here, X_TOKEN, HEADDIM)
            B = load_tile(B_ptr + k * B_TOKEN, offs_k, offs_n, B_strides[2], here, B_TOKEN, DSTATE)
            at = steps_ptr + k + offs_k
            inputs = x.to(tl.float32) * (tl.load(at + CHUNK) * SCALE)[:, None]
            if x.dtype == tl.float32:
                state = add_product(state, 1.0, B.T, inputs, PRECISION)
            else:
                for _ in tl.static_range(PARTS):
                    upper = leading(inputs, x.dtype)
                    state = tl.dot(B.T, upper.to(x.dtype), state)
                    inputs -= upper
            if y_ptr is not None:
                weights = tl.dot(C, B.T, input_precision=PRECISION) * tl.load(at)[None, :]
                seen = offs_l[:, None] >= k + offs_k[None, :]
                exponents = high[:, None] - tl.load(at + 2 * CHUNK)[None, :]
                weights *= tl.exp2(tl.where(seen, exponents, float("-inf")))
                if D_ptr is not None:  # D x enters on the diagonal
                    skip = D
                    if x.dtype == tl.float32:
                        skip = D * tl.exp2(-tl.load(at + 3 * CHUNK))[None, :]
                    weights += tl.where(offs_l[:, None] == k + offs_k[None, :], skip, 0.0)
                if x.dtype != tl.float32:
                    upper = leading(weights, x.dtype)
                    y = tl.dot((weights - upper).to(x.dtype), x, y)
                    weights = upper
                y = add_product(y, 1.0, weights, x, PRECISION)
        exponent += total
        if y_ptr is not None:
            if x_ptr.dtype.element_ty == tl.float32:  # else it is far below what a weight errs by
                y *= tl.exp2(tl.load(steps_ptr + 3 * CHUNK + offs_l))[:, None]
            ptrs = y_ptr + offs_l[:, None] * Y_TOKEN + offs_p[None, :] * y_strides[2]
            mask = inside[:, None] & (offs_p < HEADDIM)[None, :]
            tl.store(ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)
            C_ptr += CHUNK * C_TOKEN
            y_ptr += CHUNK * Y_TOKEN
        x_ptr += CHUNK * X_TOKEN
        B_ptr += CHUNK * B_TOKEN
        steps_ptr += 4 * CHUNK
        total_ptr += 1

    if y_ptr is None or end == seqlen:
        row = pid_b if y_ptr is not None else pid_b * segments + pid_s
        last_ptr += (row * nheads + pid_h) * HEADDIM * DSTATE
        tl.store(last_ptr + offs_state, state * (1 / SCALE), mask=mask_state)
    if y_ptr is None:
        row = (pid_b * (segments - 1) + pid_s) * nheads + pid_h
        tl.store(exponent_ptr + row, exponent, mask=pid_p == 0)


@triton.jit(do_not_specialize=["segments", "nheads"])
def ssd_carry_kernel(
    first_ptr, exponent_ptr, states_ptr,
    segments, nheads,
    HEADDIM: tl.constexpr, DSTATE: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Turn the state that each segment ends in, run from zero, into the state before each segment.

    states: (batch, segments, nheads, HEADDIM, DSTATE), in place; the last segment has none before, and its place is
    filled. exponent: (batch, segments - 1, nheads), of the decay over each. first: the one before all, or None.
    """
    pid_b = (tl.program_id(0) // nheads).to(tl.int64)
    pid_h = (tl.program_id(0) % nheads).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < HEADDIM * DSTATE
    h = tl.zeros((BLOCK,), tl.float32)
    if first_ptr is not None:
        at = first_ptr + tl.program_id(0).to(tl.int64) * HEADDIM * DSTATE
        h = tl.load(at + place, mask=mask).to(tl.float32)
    size = tl.cast(nheads, tl.int64) * HEADDIM * DSTATE  # from one segment to the next
    states_ptr += pid_b * segments * size + pid_h * HEADDIM * DSTATE + place
    exponent_ptr += pid_b * (segments - 1) * nheads + pid_h

    for s in range(0, segments, AHEAD):
        ends, decays = (), ()
        # all loads first: each costs a trip to the second-level cache
        for i in tl.static_range(AHEAD):
            more = s + i < segments - 1
            ends = ends + (tl.load(states_ptr + (s + i) * size, mask=mask & more, other=0.0),)
            decays = decays + (tl.load(exponent_ptr + (s + i) * nheads, mask=more, other=0.0),)
        for i in tl.static_range(AHEAD):
            tl.store(states_ptr + (s + i) * size, h, mask=mask & (s + i < segments))
            h = tl.fma(h, tl.exp2(decays[i]), ends[i])
