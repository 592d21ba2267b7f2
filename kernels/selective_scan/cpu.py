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
from kernels.cpu_math import exp2, silu, softplus
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
    if cu_seqlens is not None or reverse or return_states:
        raise NotImplementedError(
            "selective_scan: impl 'cpu' lacks cu_seqlens, reverse and return_states yet"
        )
    note("selective_scan", "numba.selective_scan")
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    dtype = torch.promote_types(u.dtype, torch.float32)
    to = lambda t: t.detach().to(dtype)
    weight = lambda t: torch.zeros(dim, dtype=dtype) if t is None else to(t).contiguous()
    first = u.new_zeros(batch, dim, dstate, dtype=dtype)
    if initial_state is not None:
        first = to(initial_state).contiguous()
    last_state = torch.empty_like(first)
    y = empty_like(u, dtype)
    streams = [to(t) for t in (u, delta, u if z is None else z)]
    rows = [to(t).flatten(1, 2) for t in (B, C)]  # (batch, ngroups * dstate, seqlen)
    rates = (to(A) * math.log2(math.e)).t().contiguous()
    threads = use_torchs_threads()
    _scan(
        *(part for t in (*streams, *rows, y) for part in (flat_array(t), t.stride())),
        rates.numpy(), weight(D).numpy(), weight(delta_bias).numpy(), first.numpy(),
        last_state.numpy(), ngroups, delta_softplus, z is not None, _block(batch, dim, threads), seqlen,
    )  # fmt: skip
    return y.to(u.dtype), last_state, None


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
    start = b * strides[0] + d0 * strides[1] + t0 * strides[2]
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
    start = b * strides[0] + d0 * strides[1] + t0 * strides[2]
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
    rates, D, bias, first, last, ngroups, softplus_on, gated, block, seqlen,
    b, group, in_group,
):  # fmt: skip
    """`block` channels of one sequence, from channel `in_group` of its group on."""
    _, dim, dstate = first.shape
    group_dim = dim // ngroups
    d0 = group * group_dim + in_group
    channels = min(block, group_dim - in_group)
    h = np.empty((dstate, channels), first.dtype)
    rate = np.empty((dstate, channels), first.dtype)
    for n in range(dstate):
        for j in range(channels):
            h[n, j] = first[b, d0 + j, n]
            rate[n, j] = rates[n, d0 + j]
    tiles = np.empty((4, TOKENS, channels), first.dtype)
    rows = np.empty((2, TOKENS, dstate), first.dtype)

    for t0 in range(0, seqlen, TOKENS):
        tokens = min(TOKENS, seqlen - t0)
        x, d, out = tiles[0, :tokens], tiles[1, :tokens], tiles[2, :tokens]
        _load(x, u, u_strides, b, d0, t0)
        _load(d, delta, delta_strides, b, d0, t0)
        _load(rows[0, :tokens], B, B_strides, b, group * dstate, t0)
        _load(rows[1, :tokens], C, C_strides, b, group * dstate, t0)
        _prepare(x, d, out, bias[d0 : d0 + channels], D[d0 : d0 + channels], softplus_on)
        for t in range(tokens):
            _advance(h, rate, d[t], x[t], rows[0, t], rows[1, t], out[t])
        if gated:
            _load(tiles[3, :tokens], z, z_strides, b, d0, t0)
            _gate(out, tiles[3, :tokens])
        _store(out, y, y_strides, b, d0, t0)

    for n in range(dstate):
        for j in range(channels):
            last[b, d0 + j, n] = h[n, j]


@njit(parallel=True, cache=True)
def _scan(
    u, u_strides, delta, delta_strides, z, z_strides, B, B_strides, C, C_strides, y, y_strides,
    rates, D, bias, first, last, ngroups, softplus_on, gated, block, seqlen,
):  # fmt: skip
    batch, dim, _ = first.shape
    blocks = (dim // ngroups + block - 1) // block
    for task in prange(batch * ngroups * blocks):
        b, group = task // (ngroups * blocks), task // blocks % ngroups
        _scan_block(
            u, u_strides, delta, delta_strides, z, z_strides, B, B_strides, C, C_strides, y, y_strides,
            rates, D, bias, first, last, ngroups, softplus_on, gated, block, seqlen,
            b, group, task % blocks * block,
        )  # fmt: skip
