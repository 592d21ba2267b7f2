"""`cpu`: a numba kernel. A thread carries a block of channels through the sequence, states in the first cache.

The innermost loop runs over channels, so that LLVM vectorises it (16 at once with AVX-512), exponentials
included: in float32 they are a polynomial between a rounding and an exponent shift, to about 1 ulp, where
libm's would be a call per element. Time goes in tiles of TOKENS, copied in and out of a small buffer: this
is where any layout is read in place, and where softplus and the gate are applied.
"""

import math

import numpy as np
import torch
from numba import njit, prange

from kernels.cpu_bridge import flat_array, use_torchs_threads
from kernels.cpu_math import exp, exp2, silu, softplus
from kernels.implementations import note
from kernels.layout import empty_like

TOKENS = 16  # a tile of 128 channels is 8 KiB
CHANNELS = 128  # 16 states of them are 8 KiB


def selective_scan_cpu(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens=None, reverse=False, return_states=0,
):  # fmt: skip
    """Arguments and returns as in `selective_scan_ref`; computes in float32, or in float64 if `u` is.

    Operands of the computing dtype are read in place, whatever their strides; others (all 16-bit ones) are
    converted first, O(seqlen * dim). Threads as `torch.set_num_threads` says.
    """
    note("selective_scan", "numba.selective_scan")
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    packed = cu_seqlens is not None
    dtype = torch.promote_types(u.dtype, torch.float32)
    to = lambda t: t.detach().to(dtype)
    weight = lambda t: torch.zeros(dim, dtype=dtype) if t is None else to(t).contiguous()
    first = u.new_zeros(len(cu_seqlens) - 1 if packed else batch, dim, dstate, dtype=dtype)
    if initial_state is not None:
        first = to(initial_state).contiguous()
    last_state = torch.empty_like(first)
    # channels inside, as the kernel holds them
    kept = seqlen // return_states if return_states else 0
    states = u.new_empty(batch, kept, dstate, dim, dtype=dtype)
    y = empty_like(u, dtype)
    streams = [to(t) for t in (u, delta, u if z is None else z)]
    rows = [to(t).flatten(1, 2) for t in (B, C)]  # (batch, ngroups * dstate, seqlen)
    rates = (to(A) * math.log2(math.e)).t().contiguous()
    bounds = cu_seqlens if packed else torch.tensor([0, seqlen], dtype=torch.int32)
    block = _block(1 if packed else batch, dim, use_torchs_threads())
    _scan(
        *(part for t in (*streams, *rows, y) for part in (flat_array(t), _strides(t, reverse))),
        rates.numpy(), weight(D).numpy(), weight(delta_bias).numpy(), first.numpy(),
        last_state.numpy(), states.numpy(), ngroups, delta_softplus, z is not None, block, seqlen,
        bounds.numpy(), packed, reverse, return_states,
    )  # fmt: skip
    return y.to(u.dtype), last_state, states.transpose(2, 3) if return_states else None


def _strides(t, reverse):
    """Strides of batch, channel and token in the order of the scan, and where its first token lies."""
    batch, channel, token = t.stride()
    return (batch, channel, -token, (t.shape[2] - 1) * token) if reverse else (*t.stride(), 0)


def _block(batch, dim, threads):
    """Channels a task: halved until every thread has two tasks, but at least one vector."""
    block = CHANNELS
    while block > 16 and batch * -(-dim // block) < 2 * threads:
        block //= 2
    return block


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _load(tile, memory, strides, b, d0, t0):
    """Copy tokens from t0 and channels from d0 of batch b into `tile` (tokens, channels)."""
    tokens, channels = tile.shape
    start = strides[3] + b * strides[0] + d0 * strides[1] + t0 * strides[2]
    if strides[1] == 1:
        for t in range(tokens):
            row = memory[start + t * strides[2] : start + t * strides[2] + channels]
            for j in range(channels):
                tile[t, j] = row[j]
    else:
        for j in range(channels):
            for t in range(tokens):
                tile[t, j] = memory[start + t * strides[2] + j * strides[1]]


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _store(tile, memory, strides, b, d0, t0):
    tokens, channels = tile.shape
    start = strides[3] + b * strides[0] + d0 * strides[1] + t0 * strides[2]
    if strides[1] == 1:
        for t in range(tokens):
            row = memory[start + t * strides[2] : start + t * strides[2] + channels]
            for j in range(channels):
                row[j] = tile[t, j]
    else:
        for j in range(channels):
            for t in range(tokens):
                memory[start + t * strides[2] + j * strides[1]] = tile[t, j]


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _prepare(u, d, y, bias, D, softplus_on):
    """Step sizes in place, y = D u, and u <- d u."""
    tokens, channels = u.shape
    for t in range(tokens):
        for j in range(channels):
            step = d[t, j] + bias[j]
            if softplus_on:
                step = softplus(step)
            d[t, j] = step
            y[t, j] = D[j] * u[t, j]
            u[t, j] *= step


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _advance(h, rates, d, du, B, C, y):
    """One token: h <- 2^(d rates) h + du B and y <- y + <h, C>."""
    dstate, channels = h.shape
    for n in range(dstate):
        b, c = B[n], C[n]
        for j in range(channels):
            state = exp2(d[j] * rates[n, j]) * h[n, j] + du[j] * b
            h[n, j] = state
            y[j] += state * c


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _gate(y, z):
    tokens, channels = y.shape
    for t in range(tokens):
        for j in range(channels):
            y[t, j] *= silu(z[t, j])


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _scan_block(
    u, u_strides, delta, delta_strides, z, z_strides, B, B_strides, C, C_strides, y, y_strides,
    rates, D, bias, first, last, states, ngroups, softplus_on, gated, block, seqlen,
    bounds, packed, reverse, every,
    sequence, group, in_group,
):  # fmt: skip
    """`block` channels of one sequence, from channel `in_group` of its group on."""
    _, dim, dstate = first.shape
    b, start, end = sequence, 0, seqlen
    if packed:
        b, start, end = 0, bounds[sequence], bounds[sequence + 1]
        if reverse:
            start, end = seqlen - end, seqlen - start
    group_dim = dim // ngroups
    d0 = group * group_dim + in_group
    channels = min(block, group_dim - in_group)
    h = np.empty((dstate, channels), first.dtype)
    rate = np.empty((dstate, channels), first.dtype)
    for n in range(dstate):
        for j in range(channels):
            h[n, j] = first[sequence, d0 + j, n]
            rate[n, j] = rates[n, d0 + j]
    tiles = np.empty((4, TOKENS, channels), first.dtype)
    rows = np.empty((2, TOKENS, dstate), first.dtype)

    for t0 in range(start, end, TOKENS):
        tokens = min(TOKENS, end - t0)
        x, d, out = tiles[0, :tokens], tiles[1, :tokens], tiles[2, :tokens]
        _load(x, u, u_strides, b, d0, t0)
        _load(d, delta, delta_strides, b, d0, t0)
        _load(rows[0, :tokens], B, B_strides, b, group * dstate, t0)
        _load(rows[1, :tokens], C, C_strides, b, group * dstate, t0)
        _prepare(x, d, out, bias[d0 : d0 + channels], D[d0 : d0 + channels], softplus_on)
        for t in range(tokens):
            _advance(h, rate, d[t], x[t], rows[0, t], rows[1, t], out[t])
            if every and (t0 + t + 1) % every == 0:
                place = (t0 + t + 1) // every - 1
                place = states.shape[1] - 1 - place if reverse else place
                states[b, place, :, d0 : d0 + channels] = h
        if gated:
            _load(tiles[3, :tokens], z, z_strides, b, d0, t0)
            _gate(out, tiles[3, :tokens])
        _store(out, y, y_strides, b, d0, t0)

    for n in range(dstate):
        for j in range(channels):
            last[sequence, d0 + j, n] = h[n, j]


@njit(parallel=True, cache=True)
def _scan(
    u, u_strides, delta, delta_strides, z, z_strides, B, B_strides, C, C_strides, y, y_strides,
    rates, D, bias, first, last, states, ngroups, softplus_on, gated, block, seqlen,
    bounds, packed, reverse, every,
):  # fmt: skip
    # sequences innermost: neighbouring tasks share a thread, and packed sequences differ in length
    sequences, dim, _ = first.shape
    blocks = (dim // ngroups + block - 1) // block
    for task in prange(sequences * ngroups * blocks):
        sequence, piece = task % sequences, task // sequences
        _scan_block(
            u, u_strides, delta, delta_strides, z, z_strides, B, B_strides, C, C_strides, y, y_strides,
            rates, D, bias, first, last, states, ngroups, softplus_on, gated, block, seqlen,
            bounds, packed, reverse, every,
            sequence, piece // blocks, piece % blocks * block,
        )  # fmt: skip


def selective_state_update_cpu(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """Arguments and returns as in `selective_state_update_ref`; computes in float32, or in float64 if `x` is.

    A state of the computing dtype is updated in place, whatever its strides; others are converted and back.
    """
    note("selective_state_update", "numba.selective_state_update")
    batch, dim = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    to = lambda t: t.detach().to(dtype).contiguous().numpy()
    weight = lambda t: torch.zeros(dim, dtype=dtype).numpy() if t is None else to(t)
    h = state.to(dtype)
    y = torch.empty(x.shape, dtype=dtype)
    block = _block(batch, dim, use_torchs_threads())
    _update(
        flat_array(h), h.stride(), to(x), to(dt), to(A), to(B), to(C), weight(D), to(x if z is None else z),
        weight(dt_bias), y.numpy(), dt_softplus, z is not None, block,
    )  # fmt: skip
    if h.dtype != state.dtype:
        state.copy_(h)
    return y.to(x.dtype)


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _update_channel(h, A, d, du, B, C, products):
    """One channel: h <- e^(d A) h + du B and products <- h C."""
    for n in range(len(h)):
        state = exp(d * A[n]) * h[n] + du * B[n]
        h[n] = state
        products[n] = state * C[n]


@njit(fastmath={"contract", "reassoc"}, error_model="numpy", cache=True)
def _total(products):
    """Their sum, in the order that suits vectors."""
    total = products[0] * 0
    for n in range(len(products)):
        total += products[n]
    return total


@njit(parallel=True, error_model="numpy", cache=True)
def _update(state, strides, x, dt, A, B, C, D, z, bias, y, softplus_on, gated, block):
    batch, dim = x.shape
    blocks = (dim + block - 1) // block
    for task in prange(batch * blocks):
        b, d0 = task // blocks, task % blocks * block
        _update_block(
            state, strides, x[b], dt[b], A, B[b], C[b], D, z[b], bias, y[b], softplus_on, gated,
            b, d0, min(block, dim - d0),
        )  # fmt: skip


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _update_block(
    state, strides, x, dt, A, B, C, D, z, bias, y, softplus_on, gated, b, d0, channels
):  # fmt: skip
    """The channels from d0 on of batch b."""
    dim, dstate = A.shape
    group_dim = dim // len(B)
    some = slice(d0, d0 + channels)
    tiles = np.empty((3, 1, channels), x.dtype)
    products, row = np.empty(dstate, x.dtype), np.empty(dstate, x.dtype)
    du, d, out = tiles[0], tiles[1], tiles[2]
    du[0] = x[some]
    d[0] = dt[some]
    _prepare(du, d, out, bias[some], D[some], softplus_on)
    for j in range(channels):
        at = b * strides[0] + (d0 + j) * strides[1]
        group = (d0 + j) // group_dim
        if strides[2] == 1:
            h = state[at : at + dstate]
            _update_channel(h, A[d0 + j], d[0, j], du[0, j], B[group], C[group], products)
        else:
            for n in range(dstate):
                row[n] = state[at + n * strides[2]]
            _update_channel(row, A[d0 + j], d[0, j], du[0, j], B[group], C[group], products)
            for n in range(dstate):
                state[at + n * strides[2]] = row[n]
        out[0, j] += _total(products)
    if gated:
        tiles[0, 0] = z[some]
        _gate(out, tiles[0])
    y[some] = out[0]
