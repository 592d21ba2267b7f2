"""`cpu`: a numba kernel for level "state". A task carries a block of channels, the innermost loops run over them.

Recurrences as in `portable.py`, in the dtype of the results. LLVM vectorises them, exponential and logarithm included.
ln Z, entropy, distance and top mass are sums of many small terms, so each carries what its last rounding lost (Kahan):
the result stays as accurate as its terms, however many tokens there are.

The span needs the first key above the threshold, and a key is out for good once it is below. It can only be reached
if all later keys that are larger have not come yet: the candidates form a queue in which both place and weight
increase. A new weight enters at the back if it exceeds the largest; keys below the threshold leave at the front. Of a
candidate the queue stores its ratio to the one before it, which time does not change, so only the weights at both
ends are carried along. A queue holds at most 1 / span_threshold keys: a ring.

Time goes in segments, which are converted one by one: memory beside the results does not grow with it.
"""

import numpy as np
import torch
from numba import njit, prange

from kernels.cpu_bridge import use_torchs_threads
from kernels.cpu_math import exp, softplus
from kernels.implementations import note
from kernels.scan_statistics.reference import ScanStatistics, means

TOKENS = 512  # of a segment
CHANNELS = 64  # of a task: the state of 16 states takes 64 KiB

ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
NOTHING = np.float32(-1e30)  # the logarithm of a weight of zero
EMPTY = np.float32(-4e30)  # that of Z before the first token
UNDEFINED = np.float32(-5e29)  # below which no weight has come yet
LOG_Z, ENTROPY, DISTANCE, MASS = 0, 2, 4, 6  # rows of a state, each followed by what rounding lost
FRONT, BACK, TOP = 8, 9, 10  # weights at the ends of the queue, and the largest
FIRST, HEAD, TAIL = 0, 1, 2  # rows of the queue's integers


def scan_statistics_cpu(
    delta, A, B, C, delta_bias, delta_softplus, top_k, span_threshold, level, rows, channels
):
    """Arguments and returns as in `scan_statistics_ref`, for level "state"; float64 if `delta` is, else float32.

    Threads as `torch.set_num_threads` says; results do not depend on them.
    """
    if level != "state":
        raise NotImplementedError(
            f"scan_statistics: impl 'cpu' has no level {level!r}; it is computed by impl='torch'"
        )
    note("scan_statistics", "numba.scan_statistics")
    use_torchs_threads()
    batch, dim, seqlen = delta.shape
    ngroups, dstate = B.shape[1:3]
    dtype = torch.promote_types(delta.dtype, torch.float32)
    new = lambda *shape, dtype=dtype: torch.zeros(*shape, dtype=dtype)
    block = min(CHANNELS, dim // ngroups)
    tasks = batch * ngroups * -(-(dim // ngroups) // block)
    kept = min(int(1.001 / span_threshold) + 2, seqlen)
    state = new(tasks, dstate, TOP + top_k, block)
    state[:, :, LOG_Z] = float(EMPTY)
    queue = new(tasks, dstate, 3, block, dtype=torch.int32)
    ratios, places = new(tasks, dstate, kept, block), new(tasks, dstate, kept, block, dtype=torch.int32)  # fmt: skip
    rates = A.detach().to(dtype).t().contiguous()
    bias = new(dim) if delta_bias is None else delta_bias.detach().to(dtype).contiguous()
    threshold = torch.tensor(span_threshold, dtype=dtype)
    found = new(4, batch, dstate, seqlen)
    for start in range(0, seqlen, TOKENS):
        time = slice(start, min(start + TOKENS, seqlen))
        d, b = (t.detach()[..., time].to(dtype).mT.contiguous() for t in (delta, B))
        sums = new(tasks, 5, dstate, d.shape[1])
        _walk(
            d.numpy(), b.numpy(), bias.numpy(), rates.numpy(), state.numpy(), queue.numpy(), ratios.numpy(),
            places.numpy(), sums.numpy(), delta_softplus, start, threshold.numpy()[()],
        )  # fmt: skip
        sums = sums.unflatten(0, (batch, -1)).sum(1, dtype=torch.float64).transpose(0, 1)
        found[..., time] = torch.stack(means(sums[:4], sums[4])).to(dtype)
    return ScanStatistics(*found)


@njit(parallel=True, cache=True)
def _walk(
    delta, B, bias, rates, state, queue, ratios, places, sums, softplus_on, start, threshold
):  # fmt: skip
    """Every task over the segment: delta (batch, tokens, dim), B (batch, ngroups, tokens, dstate)."""
    tasks = len(state)
    ngroups, dim = B.shape[1], delta.shape[2]
    group_dim = dim // ngroups
    blocks = tasks // (len(delta) * ngroups)
    for task in prange(tasks):
        b, group = task // (ngroups * blocks), task // blocks % ngroups
        inside = task % blocks * state.shape[3]
        channels = min(state.shape[3], group_dim - inside)
        _walk_block(
            delta[b], B[b, group], bias, rates, state[task], queue[task], ratios[task], places[task], sums[task],
            softplus_on, start, threshold, group * group_dim + inside, channels,
        )  # fmt: skip


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _walk_block(
    delta, B, bias, rates, state, queue, ratios, places, sums, softplus_on, start, threshold, first, channels
):  # fmt: skip
    # rows are cut from whole ones where they are used: numba then knows that neighbours are adjacent, and vectorises
    some = slice(first, first + channels)
    steps = np.empty((2, channels), delta.dtype)
    shares = np.empty((2, channels), delta.dtype)
    found = np.empty((5, channels), delta.dtype)
    for t in range(len(delta)):
        _step(delta[t][some], bias[some], softplus_on, steps)
        for n in range(len(rates)):
            _divide(state[n], shares, steps, _log(B[t, n]), rates[n][some], found)
            _insert(state[n], shares, found[2])
            _find_spans(
                state[n], queue[n], ratios[n], places[n], shares, start + t, threshold, found[3]
            )
            for i in range(5):
                sums[i, n, t] = _total(found[i], found[4])


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _log(x):
    """ln |x|, of zero NOTHING; NaN stays."""
    y = np.log(abs(x))
    return x * ZERO + NOTHING if y < NOTHING else y


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _step(delta, bias, softplus_on, steps):
    """Step sizes and their logarithms."""
    for j in range(len(delta)):
        d = delta[j] + bias[j]
        if softplus_on:
            d = softplus(d)
        steps[0, j] = d
        steps[1, j] = _log(d)


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _divide(state, shares, steps, log_b, rates, found):
    """One token: its share r and the share s of the past; entropy, distance, and 1 where there is a distribution."""
    for j in range(len(rates)):
        log_w = steps[1, j] + log_b
        step = steps[0, j] * rates[j] + state[LOG_Z + 1, j]
        log_Z = state[LOG_Z, j]
        x = log_w - (log_Z + step)
        e = exp(-abs(x))
        log1p = softplus(-abs(x))
        major = ONE / (ONE + e)
        minor = e * major
        gained = log1p + abs(x) * minor  # -r ln r - s ln s
        fresh = x > ZERO
        r = major if fresh else minor
        s = minor if fresh else major
        shares[0, j] = r
        shares[1, j] = s

        base = log_w if fresh else log_Z
        more = log1p if fresh else step + log1p
        new = base + more
        state[LOG_Z, j] = new
        state[LOG_Z + 1, j] = more - (new - base)
        found[4, j] = ZERO if new < UNDEFINED else ONE

        # s H, or where that is most of H: H - r H
        old, lost = state[ENTROPY, j], state[ENTROPY + 1, j]
        base = ZERO if fresh else old
        more = (s * old if fresh else lost - r * old) + gained
        new = base + more
        state[ENTROPY, j] = new
        state[ENTROPY + 1, j] = more - (new - base)
        found[0, j] = new

        old, lost = state[DISTANCE, j], state[DISTANCE + 1, j]
        base = ZERO if fresh else old
        more = s * (old + ONE) if fresh else lost + (ONE - r * (old + ONE))
        new = base + more
        state[DISTANCE, j] = new
        state[DISTANCE + 1, j] = more - (new - base)
        found[1, j] = new


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _insert(state, shares, mass):
    """The largest weights, in descending order, and their sum: what enters less what drops out."""
    share, kept = shares[0], shares[1]
    new = share.copy()
    for m in range(TOP, len(state)):
        for j in range(len(new)):
            old, here = state[m, j] * kept[j], new[j]
            state[m, j] = old if old > here else here
            new[j] = here if old > here else old
    for j in range(len(new)):
        gained = share[j] - new[j]
        old, lost = state[MASS, j], state[MASS + 1, j]
        fresh = share[j] > HALF
        base = ZERO if fresh else old
        more = (kept[j] * old if fresh else lost - share[j] * old) + gained
        total = base + more
        state[MASS, j] = total
        state[MASS + 1, j] = more - (total - base)
        mass[j] = total


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _find_spans(state, queue, ratios, places, shares, token, threshold, spans):
    front, back, share, kept = state[FRONT], state[BACK], shares[0], shares[1]
    size = len(ratios)
    for j in range(len(share)):
        front[j] *= kept[j]
        back[j] *= kept[j]
    for j in range(len(share)):
        head, tail = queue[HEAD, j], queue[TAIL, j]
        if back[j] <= threshold:  # the largest, so all of them
            head = tail
        while tail - head > 1 and front[j] <= threshold:
            head += 1
            at = head % size
            queue[FIRST, j] = places[at, j]
            front[j] = back[j] if tail - head == 1 else front[j] * ratios[at, j]
        if share[j] > threshold and (head == tail or share[j] > back[j]):
            at = tail % size
            places[at, j] = token
            ratios[at, j] = share[j] / back[j]
            back[j] = share[j]
            if head == tail:
                queue[FIRST, j] = token
                front[j] = share[j]
            tail += 1
        queue[HEAD, j], queue[TAIL, j] = head, tail
        spans[j] = token - queue[FIRST, j] if tail > head else 0


@njit(fastmath={"contract", "reassoc"}, error_model="numpy", cache=True)
def _total(values, defined):
    """Their sum where they are defined, in the order that suits vectors."""
    total = ZERO * values[0]
    for j in range(len(values)):
        total += values[j] if defined[j] > ZERO else ZERO
    return total
