"""`cpu`: a numba kernel. A thread carries a block of channels through the sequence, states in the first cache.

The innermost loop runs over channels, so that LLVM vectorises it (16 at once with AVX-512), exponentials
included: in float32 they are a polynomial between a rounding and an exponent shift, to about 1 ulp, where
libm's would be a call per element. Time goes in tiles of TOKENS, copied in and out of a small buffer: this
is where any layout is read in place, and where softplus and the gate are applied.
"""

import math

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload

from kernels.checks import check_no_gradient
from kernels.implementations import note
from kernels.selective_scan.layout import empty_like

TOKENS = 16  # a tile of 128 channels is 8 KiB
CHANNELS = 128  # 16 states of them are 8 KiB

F32 = np.float32
ONE = F32(1.0)
LOG2E = F32(math.log2(math.e))
LN2_HIGH = F32(0.693359375)  # few bits, so that its product with an integer is exact
LN2_LOW = F32(-2.12194440e-4)
ROUND = F32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
ROUND_BITS = np.int32(0x4B400000 - 127)
# 2^f on -0.5 .. 0.5, minimax, relative error 2e-9
E1, E2, E3 = F32(0.6931472057352278), F32(0.24022646890156518), F32(0.05550328779939607)
E4, E5, E6 = F32(0.009618489010915476), F32(0.0013399930431994625), F32(0.00015345798438186307)
# log1p(e) / e on 0 .. 1, minimax, relative error 3e-8
L0, L1, L2 = F32(0.9999999700104023), F32(-0.49999494283250223), F32(0.3331911332122851)
L3, L4, L5 = F32(-0.24843071230572322), F32(0.1910622860210183), F32(-0.13663505598797418)
L6, L7, L8 = F32(0.07822699377928641), F32(-0.029504854178905443), F32(0.0052323836292632615)


def selective_scan_cpu(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
    """Arguments and returns as in `selective_scan_ref`; computes in float32, or in float64 if `u` is.

    Operands of the computing dtype are read in place, whatever their strides; others (all 16-bit ones) are
    converted first, O(seqlen * dim). Threads as `torch.set_num_threads` says.
    """
    check_no_gradient(
        "selective_scan", "cpu", u, delta, A, B, C, D, z, delta_bias, initial_state
    )  # fmt: skip
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
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    _scan(
        *(part for t in (*streams, *rows, y) for part in (_memory(t), t.stride())),
        rates.numpy(), weight(D).numpy(), weight(delta_bias).numpy(), first.numpy(),
        last_state.numpy(), ngroups, delta_softplus, z is not None, _block(batch, dim, threads), seqlen,
    )  # fmt: skip
    return y.to(u.dtype), last_state


def _memory(t):
    """A flat array over all that `t` spans: numba then knows that neighbours in it are adjacent."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.as_strided((extent,), (1,)).numpy()


def _block(batch, dim, threads):
    """Channels a task: halved until every thread has two tasks, but at least one vector."""
    block = CHANNELS
    while block > 16 and batch * -(-dim // block) < 2 * threads:
        block //= 2
    return block


def exp2(x):
    """2^x in the dtype of `x`; results below 2^-126 become 0, NaN stays."""


def exp(x):
    """e^x, likewise."""


def softplus(x):
    """log(1 + e^x), accurate however small."""


def silu(x):
    """x / (1 + e^-x)."""


@overload(exp2, inline="always")
def _exp2(x):
    if x == types.float64:
        return lambda x: np.exp2(x)

    def exp2_f32(x):
        top = F32(128.0) if x > F32(128.0) else x  # from 127.5 on the result is infinity
        rounded = F32(top + ROUND)
        f = top - (rounded - ROUND)
        p = ((((((E6 * f + E5) * f + E4) * f + E3) * f + E2) * f) + E1) * f + ONE
        bits = np.int32((rounded.view(np.int32) - ROUND_BITS) << np.int32(23))
        return F32(0.0) if x < F32(-126.0) else p * bits.view(np.float32)

    return exp2_f32


@overload(exp, inline="always")
def _exp(x):
    if x == types.float64:
        return lambda x: np.exp(x)

    def exp_f32(x):
        n = (x * LOG2E + ROUND) - ROUND
        n = F32(128.0) if n > F32(128.0) else (F32(-127.0) if n < F32(-127.0) else n)
        f = ((x - n * LN2_HIGH) - n * LN2_LOW) * LOG2E
        p = ((((((E6 * f + E5) * f + E4) * f + E3) * f + E2) * f) + E1) * f + ONE
        return F32(0.0) if n < F32(-126.0) else p * exp2(n)

    return exp_f32


@overload(softplus, inline="always")
def _softplus(x):
    if x == types.float64:
        return lambda x: max(x, 0.0) + np.log1p(np.exp(-abs(x)))

    def softplus_f32(x):
        e = exp(-abs(x))
        p = (((L8 * e + L7) * e + L6) * e + L5) * e + L4
        p = (((p * e + L3) * e + L2) * e + L1) * e + L0
        return (x if x > F32(0.0) else F32(0.0)) + p * e

    return softplus_f32


@overload(silu, inline="always")
def _silu(x):
    if x == types.float64:
        return lambda x: x / (1.0 + np.exp(-x))
    return lambda x: x / (ONE + exp(-x))


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
