"""Device code of `triton`: the statistics of some tokens. Design: `forward.py`."""
# ruff: noqa: RUF005 (Triton has no starred expressions)

import triton
import triton.language as tl

from kernels.selective_scan.exponentials import LN2, LOG2E, softplus

NOTHING = tl.constexpr(-1e30)  # the logarithm of a weight of zero
UNDEFINED = tl.constexpr(-5e29)  # ln Z below which no weight has come yet
CARRIED = tl.constexpr(10)  # rows of a state before the largest weights


@triton.jit
def load_rows(ptr, plane, mask, ROWS: tl.constexpr):
    """The first `ROWS` of (rows, ...), which are `plane` numbers apart."""
    rows = ()
    for m in tl.static_range(ROWS):
        rows = rows + (tl.load(ptr + m * plane, mask=mask, other=0),)
    return rows


@triton.jit
def store_rows(ptr, plane, mask, rows):
    """The inverse of `load_rows`."""
    for m in tl.static_range(len(rows)):
        tl.store(ptr + m * plane, rows[m], mask=mask)


@triton.jit
def log(x):
    """ln |x|, of zero NOTHING."""
    return tl.where(x == 0.0, NOTHING, tl.log(tl.abs(tl.where(x == 0.0, 1.0, x))))


@triton.jit
def divide(x):
    """Shares sigmoid(x) and sigmoid(-x), their entropy, and log1p(exp(-|x|))."""
    t = tl.abs(x) * -LOG2E
    e = tl.exp2(t)
    e = tl.fma(e, tl.fma(tl.abs(x), LOG2E, t) * -LN2, e)  # what rounding t lost
    log1p = softplus(-tl.abs(x))
    major = 1.0 / (1.0 + e)
    minor = e * major
    fresh = x > 0.0
    entropy = log1p + tl.abs(x) * minor
    return tl.where(fresh, major, minor), tl.where(fresh, minor, major), entropy, log1p


@triton.jit
def compensated(base, more):
    """base + more, and what rounding it lost."""
    new = base + more
    return new, more - (new - base)


@triton.jit
def insert(top, r, s):
    """The largest of the weights s `top`, which descend, and r; and that which drops out."""
    new = ()
    for m in tl.static_range(len(top)):
        old = top[m] * s
        new = new + (tl.maximum(old, r),)
        r = tl.minimum(old, r)
    return new, r


@triton.jit
def drop(
    front, back, first, head, count, ratios_ptr, places_ptr, lane, plane, kept, mask,
    THRESHOLD: tl.constexpr,
):  # fmt: skip
    """Take keys that are not above the threshold out of the queue."""
    count = tl.where(back <= THRESHOLD, 0, count)  # the largest, so all of them
    dead = mask & (count > 1) & (front <= THRESHOLD)
    while tl.max(dead.to(tl.int32)) > 0:
        head = tl.where(dead, tl.where(head + 1 == kept, 0, head + 1), head)
        count = tl.where(dead, count - 1, count)
        at = head * plane + lane
        ratio = tl.load(ratios_ptr + at, mask=dead, other=1.0)
        first = tl.where(dead, tl.load(places_ptr + at, mask=dead, other=0), first)
        front = tl.where(dead, tl.where(count == 1, back, front * ratio), front)
        dead = mask & (count > 1) & (front <= THRESHOLD)
    return front, first, head, count


@triton.jit
def scan_statistics_kernel(
    delta_ptr, A_ptr, B_ptr, bias_ptr,
    state_ptr, queue_ptr, ratios_ptr, places_ptr, sums_ptr,
    delta_strides, A_strides, B_strides,
    start, tokens, dim, dstate, ngroups, kept,
    THRESHOLD: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Take the state of some channels and states over `tokens` tokens from `start` on.

    state: (10 + TOP_K, batch, dstate, dim), zeros before the first token but for ln Z, -4e30. queue: (3, ...), ratios
    and places: (kept, ...) likewise. sums: (batch, blocks, 5, dstate, tokens), of entropy, distance, top mass
    and span over the channels of a block, and how many of them have a distribution.
    """
    pid_b = tl.program_id(2).to(tl.int64)
    blocks = tl.num_programs(0)
    group_dim = dim // ngroups
    per_group = blocks // ngroups
    group = tl.program_id(0) // per_group
    inside = tl.program_id(0) % per_group * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = inside < group_dim
    offs_d = (group * group_dim + inside).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < dstate
    mask = mask_n[:, None] & mask_d[None, :]

    rates_ptr = A_ptr + offs_n[:, None] * A_strides[1] + offs_d[None, :] * A_strides[0]
    rates = tl.load(rates_ptr, mask=mask, other=0.0).to(tl.float32)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    plane = tl.num_programs(2) * tl.cast(dstate, tl.int64) * dim
    lane = (pid_b * dstate + offs_n[:, None]) * dim + offs_d[None, :]
    state_ptr += lane
    queue_ptr += lane
    rows = load_rows(state_ptr, plane, mask, CARRIED + TOP_K)
    log_Z, log_Z_lost, entropy, entropy_lost, distance, distance_lost = rows[:6]
    mass, mass_lost, front, back = rows[6:10]
    top = rows[10:]
    first, head, count = load_rows(queue_ptr, plane, mask, 3)

    delta_ptr += pid_b * delta_strides[0] + offs_d * delta_strides[1]
    delta_ptr += tl.cast(start, tl.int64) * delta_strides[2]
    offs_n = offs_n.to(tl.int64)
    B_ptr += pid_b * B_strides[0] + group.to(tl.int64) * B_strides[1] + offs_n * B_strides[2]
    B_ptr += tl.cast(start, tl.int64) * B_strides[3]
    sums_ptr += (pid_b * blocks + tl.program_id(0)) * 5 * dstate * tokens + offs_n * tokens
    step_ahead = tl.load(delta_ptr, mask=mask_d, other=0.0)
    B_ahead = tl.load(B_ptr, mask=mask_n, other=0.0)

    for t in range(tokens):
        d = step_ahead.to(tl.float32) + bias
        b = B_ahead.to(tl.float32)
        delta_ptr += delta_strides[2]
        B_ptr += B_strides[3]
        more = t + 1 < tokens
        step_ahead = tl.load(delta_ptr, mask=mask_d & more, other=0.0)
        B_ahead = tl.load(B_ptr, mask=mask_n & more, other=0.0)
        if SOFTPLUS:
            d = softplus(d)

        log_w = log(d)[None, :] + log(b)[:, None]
        step = d[None, :] * rates + log_Z_lost
        x = log_w - (log_Z + step)
        r, s, gained, log1p = divide(x)
        fresh = x > 0.0
        log_Z, log_Z_lost = compensated(
            tl.where(fresh, log_w, log_Z), tl.where(fresh, 0.0, step) + log1p
        )
        # s H, or where that is most of H: H - r H
        change = tl.where(fresh, s * entropy, entropy_lost - r * entropy) + gained
        entropy, entropy_lost = compensated(tl.where(fresh, 0.0, entropy), change)
        further = distance + 1.0
        change = tl.where(fresh, s * further, distance_lost + (1.0 - r * further))
        distance, distance_lost = compensated(tl.where(fresh, 0.0, distance), change)
        top, dropped = insert(top, r, s)
        change = tl.where(fresh, s * mass, mass_lost - r * mass) + (r - dropped)
        mass, mass_lost = compensated(tl.where(fresh, 0.0, mass), change)

        front *= s
        back *= s
        front, first, head, count = drop(
            front, back, first, head, count, ratios_ptr, places_ptr, lane, plane, kept, mask, THRESHOLD
        )  # fmt: skip
        empty = count == 0
        push = (r > THRESHOLD) & (empty | (r > back))
        tail = head + count
        at = tl.where(tail >= kept, tail - kept, tail) * plane + lane
        tl.store(ratios_ptr + at, r / tl.where(empty, 1.0, back), mask=push & mask)
        tl.store(places_ptr + at, start + t, mask=push & mask)
        first = tl.where(push & empty, start + t, first)
        front = tl.where(push & empty, r, front)
        back = tl.where(push, r, back)
        count = tl.where(push, count + 1, count)
        tl.debug_barrier()  # what is stored here is loaded by a later token, maybe in another lane

        defined = mask & ((log_Z < UNDEFINED) == 0)
        span = tl.where(count > 0, start + t - first, 0).to(tl.float32)
        values = (entropy, distance, mass, span, tl.full(x.shape, 1.0, tl.float32))
        sums = ()
        for m in tl.static_range(5):
            sums = sums + (tl.sum(tl.where(defined, values[m], 0.0), 1),)
        store_rows(sums_ptr + t, dstate * tl.cast(tokens, tl.int64), mask_n, sums)

    rows = (log_Z, log_Z_lost, entropy, entropy_lost, distance, distance_lost, mass, mass_lost)
    store_rows(state_ptr, plane, mask, rows + (front, back) + top)
    store_rows(queue_ptr, plane, mask, (first, head, count))
