"""Device code of `triton`: the scan of one segment, and the chaining of segments. Design: `forward.py`."""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

from kernels.selective_scan.exponentials import LOG2E, exp2_product, softplus


@triton.jit
def load_states(ptr, strides, offs_d, mask_d, scale, DSTATE: tl.constexpr):
    """`scale` times DSTATE vectors over the channels `offs_d` of a (dim, dstate) matrix."""
    states = ()
    for n in tl.static_range(DSTATE):
        at = ptr + offs_d * strides[0] + n * tl.cast(strides[1], tl.int64)
        states = states + (tl.load(at, mask=mask_d).to(tl.float32) * scale,)
    return states


@triton.jit
def store_states(ptr, strides, offs_d, mask_d, states):
    """The inverse of `load_states`."""
    for n in tl.static_range(len(states)):
        at = ptr + offs_d * strides[0] + n * tl.cast(strides[1], tl.int64)
        tl.store(at, states[n], mask=mask_d)


@triton.jit
def restart(h, fresh, ptr, strides, row, offs_d, mask_d):
    """`h`, or where a sequence is `fresh` its initial state: that of `row`, or zero without `ptr`."""
    new = ()
    for n in tl.static_range(len(h)):
        state = 0.0
        if ptr is not None:
            at = ptr + tl.cast(row, tl.int64) * strides[0]
            at += offs_d * strides[1] + n * tl.cast(strides[2], tl.int64)
            state = tl.load(at, mask=mask_d & fresh).to(tl.float32)
        new = new + (tl.where(fresh, state, h[n]),)
    return new


@triton.jit
def load_words(ptr, stride, mask, DSTATE: tl.constexpr, PACK: tl.constexpr):
    """The DSTATE numbers of a row of B or C, PACK neighbours of them in one load of 32 to 128 bits.

    Words of 32 or 64 bits: two of them for 128.
    """
    bits: tl.constexpr = PACK * ptr.dtype.element_ty.primitive_bitwidth
    words = ()
    for i in tl.static_range(DSTATE // PACK):
        at = ptr + i * PACK * stride
        if bits == 128:
            pair = tl.load(at.to(tl.pointer_type(tl.int64)) + tl.arange(0, 2), mask=mask)
            words = words + pair.split()
        else:
            if PACK > 1:
                at = at.to(tl.pointer_type(tl.int64 if bits == 64 else tl.int32))
            words = words + (tl.load(at, mask=mask),)
    return words


@triton.jit
def unpack(words, n: tl.constexpr, dtype: tl.constexpr, PACK: tl.constexpr):
    """Number `n` of a row of `dtype` that `load_words` loaded, as float32."""
    bits: tl.constexpr = dtype.primitive_bitwidth
    word = words[n * bits // 64 if bits * PACK == 128 else n // PACK]
    if PACK > 1:
        if bits * PACK >= 64:
            word = (word >> (bits * n % 64 // 32 * 32)).to(tl.int32)
        if dtype == tl.float32:
            word = word.to(tl.float32, bitcast=True)
        elif dtype == tl.bfloat16:
            # a bfloat16 is the upper half of the float32 of the same value
            word = (word << 16 if n % 2 == 0 else word & -65536).to(tl.float32, bitcast=True)
        else:
            word = (word >> (16 * (n % 2))).to(tl.int16).to(dtype, bitcast=True)
    return word.to(tl.float32)


@triton.jit
def widen(x):
    """`x` as float32; a bfloat16 by its bits, which takes half of the instructions of a conversion."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def load_token(streams, mask):
    """One token of every stream, as stored."""
    token = ()
    for i in tl.static_range(len(streams)):
        token = token + (tl.load(streams[i], mask=mask),)
    return token


@triton.jit
def later(streams, tokens, TIME_STRIDES: tl.constexpr):
    """The streams, `tokens` further in time."""
    moved = ()
    for i in tl.static_range(len(streams)):
        moved = moved + (streams[i] + tokens * TIME_STRIDES[i],)
    return moved


@triton.jit
def advance(
    h, steps, rates, limits, token, B, bias,
    dtype: tl.constexpr, SOFTPLUS: tl.constexpr, DSTATE: tl.constexpr, PACK: tl.constexpr,
    POLY: tl.constexpr,
):  # fmt: skip
    """h <- exp(d A) h + (d u) B for every state, with rates = A log2(e); steps <- steps + d.

    POLY exponentials are polynomials: that of softplus, then those of the first states, for |d| up to their `limits`.
    """
    u = widen(token[0])
    d = widen(token[1]) + bias
    if SOFTPLUS:
        d = softplus(d, POLY > 0)
    du = d * u
    new = ()
    for n in tl.static_range(DSTATE):
        if n < len(limits):
            decay = exp2_product(tl.clamp(d, -limits[n], limits[n]), rates[n])
        else:
            decay = tl.exp2(d * rates[n])
        new = new + (tl.fma(decay, h[n], du * unpack(B, n, dtype, PACK)),)
    return new, steps + d


@triton.jit
def read_out(
    h, token, C, D,
    dtype: tl.constexpr, GATED: tl.constexpr, PARTIAL: tl.constexpr, DSTATE: tl.constexpr,
    PACK: tl.constexpr,
):  # fmt: skip
    """y = (<h, C> + D u + partial) silu(z); D may be None."""
    y = h[0] * unpack(C, 0, dtype, PACK)
    for n in tl.static_range(1, DSTATE):
        y = tl.fma(h[n], unpack(C, n, dtype, PACK), y)
    if D is not None:
        y = tl.fma(D, widen(token[0]), y)
    if PARTIAL:
        y += token[3 if GATED else 2]
    if GATED:
        z = widen(token[2])
        root = tl.rsqrt(1.0 + tl.exp2(z * -LOG2E))  # its square is cheaper than a division
        y *= z * (root * root)
    return y


@triton.jit
def selective_scan_fwd_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, first_ptr, partial_ptr,
    cu_ptr, sequence_ptr, initial_ptr,
    y_ptr, last_ptr, steps_ptr, states_ptr,
    u_strides, delta_strides, A_strides, B_strides, C_strides, z_strides, first_strides,
    initial_strides, y_strides, last_strides, states_strides,
    seqlen, segment, dim, ngroups, sequences,
    TIME_STRIDES: tl.constexpr,
    Y_STEP: tl.constexpr,
    B_STEP: tl.constexpr,
    C_STEP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    RAGGED: tl.constexpr,
    DSTATE: tl.constexpr,
    PACK: tl.constexpr,
    EVERY: tl.constexpr,
    POLY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AHEAD: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """One warp, BLOCK_D channels, one segment. Without y_ptr only its last state and sum of steps.

    Strides are (batch, group or segment if any, channel, state if any). Those in time are constants:
    TIME_STRIDES of u, delta, and of z and partial if there; Y_STEP, B_STEP, C_STEP. `partial` lies like y.
    A reverse scan has the pointers of the last token, and negative strides.

    first: the state before each segment. With cu_ptr, the bounds of packed sequences in the order of the scan:
    sequence is the first bound at or after the start of each segment, and initial and last are by sequence.
    states: after every EVERY-th token.
    """
    B_TYPE: tl.constexpr = B_ptr.dtype.element_ty
    C_TYPE: tl.constexpr = B_TYPE if C_ptr is None else C_ptr.dtype.element_ty
    GATED: tl.constexpr = z_ptr is not None
    PARTIAL: tl.constexpr = partial_ptr is not None
    group_dim = dim // ngroups
    blocks = tl.cdiv(group_dim, BLOCK_D)
    pid_d = tl.program_id(0) % (blocks * ngroups)
    pid_b = (tl.program_id(0) // (blocks * ngroups)).to(tl.int64)
    pid_s = tl.program_id(1).to(tl.int64)
    group = (pid_d // blocks).to(tl.int64)
    in_group = (pid_d % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = in_group < group_dim
    mask_d = inside if RAGGED else None
    offs_d = group * group_dim + in_group
    start = pid_s * segment
    end = tl.minimum(start + segment, seqlen)
    sequence, stop = 0, 1
    if cu_ptr is not None:
        # bounds come from the user: whatever they are, indices and times stay inside
        sequence = tl.minimum(tl.load(sequence_ptr + pid_s), sequences - 1)
        sequence = tl.maximum(sequence - (tl.load(cu_ptr + sequence) > start).to(tl.int32), 0)
        stop = tl.load(sequence_ptr + pid_s + 1, mask=end < seqlen, other=sequences)
        stop = tl.maximum(tl.minimum(stop, sequences), sequence + 1)
        if y_ptr is None:  # earlier sequences do not reach the end
            sequence = stop - 1
            bound = tl.load(cu_ptr + sequence).to(tl.int64)
            start = tl.minimum(tl.maximum(bound, start), end - 1)

    rates = load_states(A_ptr, A_strides, offs_d, mask_d, LOG2E, DSTATE)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_d, mask=mask_d).to(tl.float32)
    DECAYS: tl.constexpr = POLY - 1 if SOFTPLUS and POLY > 0 else POLY  # that are polynomials
    finite, limits = (), ()
    for n in tl.static_range(DECAYS):
        bias = tl.where(rates[n] == rates[n], bias, rates[n])  # a polynomial would hide the NaN
        finite = finite + (tl.clamp(rates[n], -1e30, 1e30),)
        limits = limits + (126.9999 / tl.maximum(tl.abs(finite[n]), 1e-30),)
    rates = finite + rates[DECAYS:]
    D = None
    if D_ptr is not None:
        D = tl.load(D_ptr + offs_d, mask=mask_d).to(tl.float32)
    h = ()
    if first_ptr is not None:
        first_ptr += pid_b * first_strides[0] + pid_s * first_strides[1]
        h = load_states(first_ptr, first_strides[2:], offs_d, mask_d, 1.0, DSTATE)
    else:
        for _ in tl.static_range(DSTATE):
            h = h + (tl.zeros((BLOCK_D,), tl.float32),)
    steps = tl.zeros((BLOCK_D,), tl.float32)

    u_ptr += pid_b * u_strides[0] + offs_d * u_strides[1]
    delta_ptr += pid_b * delta_strides[0] + offs_d * delta_strides[1]
    B_ptr += pid_b * B_strides[0] + group * B_strides[1]
    streams = (u_ptr, delta_ptr)
    if y_ptr is not None:
        C_ptr += pid_b * C_strides[0] + group * C_strides[1]
        y_offset = pid_b * y_strides[0] + offs_d * y_strides[1]
        y_ptr += y_offset
        if z_ptr is not None:
            z_ptr += pid_b * z_strides[0] + offs_d * z_strides[1]
            streams = streams + (z_ptr,)
        if partial_ptr is not None:
            streams = streams + (partial_ptr + y_offset,)

    ahead = ()
    for i in tl.static_range(AHEAD):
        token = later(streams, start + i, TIME_STRIDES)
        ahead = ahead + (load_token(token, inside & (start + i < end)),)
    B = load_words(B_ptr + start * B_STEP, B_strides[2], None, DSTATE, PACK)

    # The segment is cut where a sequence ends and after every EVERY-th token: loops that run once, and vanish, without
    # either. Loads ahead go on over the cuts; tensors of pointers do not, for which Triton would change layouts inside.
    now = start
    for j in tl.range(sequence, stop):
        until = end
        if cu_ptr is not None:
            until = tl.minimum(tl.maximum(tl.load(cu_ptr + j + 1), now), end)
            fresh = tl.load(cu_ptr + j) >= pid_s * segment
            h = restart(h, fresh, initial_ptr, initial_strides, j, offs_d, inside)
        piece, pieces = 0, 1
        if EVERY:
            piece, pieces = now // EVERY, tl.cdiv(until, EVERY)
        for k in tl.range(piece, pieces):
            cut = until
            if EVERY:
                cut = tl.minimum((k + 1) * EVERY, until)

            # whole trips of UNROLL tokens, whose loads ahead stay inside; then what is left, one by one
            trips = tl.maximum(tl.minimum(cut, seqlen - AHEAD) - now, 0) // UNROLL
            for phase in tl.static_range(2):
                coming = later(streams, now + AHEAD, TIME_STRIDES)
                B_at = B_ptr + now * B_STEP
                if y_ptr is not None:
                    C_at = C_ptr + now * C_STEP
                    y_at = y_ptr + now * Y_STEP
                for trip in tl.range((trips if phase == 0 else cut - now).to(tl.int32)):
                    mask = mask_d if phase == 0 else inside & (now + trip + AHEAD < end)
                    more = None if phase == 0 else now + trip + 1 < end
                    for _ in tl.static_range(UNROLL if phase == 0 else 1):
                        ahead = ahead + (load_token(coming, mask),)
                        coming = later(coming, 1, TIME_STRIDES)
                        B_at += B_STEP
                        next_B = load_words(B_at, B_strides[2], more, DSTATE, PACK)
                        if y_ptr is not None:
                            C = load_words(C_at, C_strides[2], None, DSTATE, PACK)
                            C_at += C_STEP
                        h, steps = advance(
                            h,
                            steps,
                            rates,
                            limits,
                            ahead[0],
                            B,
                            bias,
                            B_TYPE,
                            SOFTPLUS,
                            DSTATE,
                            PACK,
                            POLY,
                        )
                        if y_ptr is not None:
                            y = read_out(h, ahead[0], C, D, C_TYPE, GATED, PARTIAL, DSTATE, PACK)
                            tl.store(y_at, y, mask=mask_d)
                            y_at += Y_STEP
                        ahead = ahead[1:]
                        B = next_B
                now = now + trips * UNROLL if phase == 0 else cut

            if EVERY:
                at = (
                    states_ptr
                    + pid_b * states_strides[0]
                    + tl.cast(k, tl.int64) * states_strides[1]
                )
                kept = inside & (cut == (k + 1) * EVERY)
                store_states(at, states_strides[2:], offs_d, kept, h)
        if cu_ptr is not None and y_ptr is not None:
            at = last_ptr + tl.cast(j, tl.int64) * last_strides[0]
            ends = inside & (tl.load(cu_ptr + j + 1) <= end)
            store_states(at, last_strides[2:], offs_d, ends, h)

    last_ptr += pid_b * last_strides[0]
    if y_ptr is None:
        last_ptr += pid_s * last_strides[1]
        steps_at = (pid_b * tl.num_programs(1) + pid_s) * dim + offs_d
        tl.store(steps_ptr + steps_at, steps, mask=mask_d)
    if y_ptr is None or (cu_ptr is None and end == seqlen):
        store_states(last_ptr, last_strides[2:], offs_d, mask_d, h)


@triton.jit
def carry_kernel(
    A_ptr, first_ptr, steps_ptr, states_ptr, sequence_ptr,
    A_strides, first_strides,
    segments, dim, dstate,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Turn the state at the end of each segment, run from zero, into the state before each segment.

    states: (batch, segments, dstate, dim), in place; the last segment has none before, and its place is
    filled. steps: (batch, segments - 1, dim), the sum of step sizes in each segment. sequence: as in
    `selective_scan_fwd_kernel`; where a sequence starts in a segment, nothing is carried over it.
    """
    pid_b = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.cast(dim, tl.int64) * dstate
    mask = place < size
    n, offs_d = place // dim, place % dim
    rate = tl.load(A_ptr + offs_d * A_strides[0] + n * A_strides[1], mask=mask)
    rate = rate.to(tl.float32) * LOG2E
    h = tl.zeros((BLOCK,), tl.float32)
    if first_ptr is not None:
        at = first_ptr + pid_b * first_strides[0] + offs_d * first_strides[2] + n * first_strides[3]
        h = tl.load(at, mask=mask).to(tl.float32)
    states_ptr += pid_b * segments * size + place
    steps_ptr += pid_b * (segments - 1) * dim + offs_d

    for s in range(0, segments, AHEAD):
        ends, decays, starts = (), (), ()
        # all loads first: each costs a trip to the second-level cache
        for i in tl.static_range(AHEAD):
            more = s + i < segments - 1
            ends = ends + (tl.load(states_ptr + (s + i) * size, mask=mask & more, other=0.0),)
            steps_at = steps_ptr + tl.cast(s + i, tl.int64) * dim
            decays = decays + (tl.load(steps_at, mask=mask & more, other=0.0),)
            if sequence_ptr is not None:
                here = tl.load(sequence_ptr + s + i, mask=more, other=0)
                starts = starts + (tl.load(sequence_ptr + s + i + 1, mask=more, other=0) > here,)
        for i in tl.static_range(AHEAD):
            tl.store(states_ptr + (s + i) * size, h, mask=mask & (s + i < segments))
            carried = tl.fma(tl.exp2(decays[i] * rate), h, ends[i])
            if sequence_ptr is not None:
                carried = tl.where(starts[i], ends[i], carried)
            h = carried
