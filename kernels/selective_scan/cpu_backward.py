"""`cpu`: gradients of the scan, a numba kernel; the mathematics stand in `backward.py`.

As in the forward, a task is a block of channels of one sequence and the innermost loops run over channels. It takes
the segments between the states that the forward kept from the last to the first: it runs forward through a segment
and keeps all states and decays of it (which stay in the second-level cache), then walks back over them with the
adjoint and the sums for dA in the first. Exponentials are taken once: the way back only multiplies and adds.

Sums over channels (dB, dC) go to memory by block of channels, those over time (dA, dD, ddelta_bias) by sequence. They
are added up afterwards, always in the same order.
"""

import math
from functools import partial

import numpy as np
import torch
from numba import njit, prange

from kernels.cpu_bridge import flat_array, use_torchs_threads
from kernels.cpu_math import ONE, exp, exp2, softplus
from kernels.implementations import note
from kernels.layout import dense_like
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.cpu import _block, _load, _store, _strides
from kernels.selective_scan.workspace import workspace

CACHE = 1 << 19  # bytes of states and decays of a segment: half of a common second-level cache
PART = 16  # states whose sum is made before it is added to the others', which rounds less
ZERO = np.float32(0.0)


def selective_scan_backward_cpu(
    dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens, reverse, checkpoints,
):  # fmt: skip
    """Gradients of `selective_scan_cpu`; computes in float32, or in float64 if `u` is.

    Args:
        dy, dlast_state: gradients of y, and of the last state or None.
        u to reverse: as in `selective_scan_ref`.
        checkpoints: (batch, seqlen // CHECKPOINT, dim, dstate), its states with return_states=CHECKPOINT.

    Returns:
        du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state: each `dense_like` its operand, or None.

    Operands of the computing dtype are read in place, others converted first. The largest workspace is for partial
    sums of dB and dC: two numbers per token and state for every block of (mostly 128) channels.
    """
    note("selective_scan_backward", "numba.selective_scan_bwd")
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    packed = cu_seqlens is not None
    sequences = len(cu_seqlens) - 1 if packed else batch
    dtype = torch.promote_types(u.dtype, torch.float32)
    to = lambda t: t.detach().to(dtype)
    given = lambda t, *shape: torch.zeros(shape, dtype=dtype) if t is None else to(t).contiguous()
    new = lambda *shape: torch.empty(shape, dtype=dtype)
    space = partial(
        workspace,
        remedy="a smaller batch needs less",
        itemsize=dtype.itemsize,
        failure=RuntimeError,
    )

    block = _channels(1 if packed else batch, dim, dstate, dtype.itemsize)
    shape = -(-(dim // ngroups) // block), 2, batch, seqlen, ngroups * dstate
    with space("the sums of dB and dC", math.prod(shape)):
        dBC = new(*shape)
    with space("the sums of dA", sequences * dim * dstate):
        dA, dfirst = new(sequences, dstate, dim), new(sequences, dim, dstate)
    dD, dbias = new(sequences, dim), new(sequences, dim)
    streams = [to(t) for t in (u, delta, dy, u if z is None else z)]
    streams += [to(t).flatten(1, 2) for t in (B, C)]  # (batch, ngroups * dstate, seqlen)
    du, ddelta, dz = gradients = [None if t is None else dense_like(t) for t in (u, delta, z)]
    computed = [None if t is None else _as(t, dtype) for t in gradients]
    streams += [computed[0] if t is None else t for t in computed]  # dz is not written without z
    bounds = cu_seqlens if packed else torch.tensor([0, seqlen], dtype=torch.int32)
    A_rows = to(A).t().contiguous()
    _backward(
        tuple(flat_array(t) for t in streams), np.array([_strides(t, reverse) for t in streams]),
        A_rows.numpy(), (A_rows * math.log2(math.e)).numpy(), given(D, dim).numpy(), given(delta_bias, dim).numpy(),
        *(given(t, sequences, dim, dstate).numpy() for t in (initial_state, dlast_state)),
        to(checkpoints).transpose(2, 3).contiguous().numpy(),
        dfirst.numpy(), dA.numpy(), dD.numpy(), dbias.numpy(), dBC.numpy(),
        ngroups, delta_softplus, z is not None, block, bounds.numpy(), packed, reverse, CHECKPOINT,
    )  # fmt: skip

    for gradient, t in zip(gradients, computed, strict=True):
        if gradient is not t:
            gradient.copy_(t)
    fill = lambda t, sums: None if t is None else dense_like(t).copy_(sums)
    dB, dC = (rows.unflatten(2, (ngroups, dstate)).movedim(1, 3) for rows in dBC.sum(0))
    return (
        du, ddelta, fill(A, dA.sum(0).t()), fill(B, dB), fill(C, dC), fill(D, dD.sum(0)), dz,
        fill(delta_bias, dbias.sum(0)), fill(initial_state, dfirst),
    )  # fmt: skip


def _as(t, dtype):
    """`t`, or memory of its strides in another dtype."""
    return t if t.dtype == dtype else torch.empty_like(t, dtype=dtype)


def _channels(batch, dim, dstate, itemsize):
    """Channels a task: as in the forward, but no more than keep a segment in the cache."""
    block = _block(batch, dim, use_torchs_threads())
    while block > 16 and 2 * CHECKPOINT * dstate * block * itemsize > CACHE:
        block //= 2
    return block


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _prepare(u, d, slope, du, y, bias, D, softplus_on):
    """Step sizes in place and their slope (that of softplus), d u, and y = D u."""
    tokens, channels = u.shape
    for t in range(tokens):
        for j in range(channels):
            step = d[t, j] + bias[j]
            slope[t, j] = ONE
            if softplus_on:
                slope[t, j] = ONE / (ONE + exp(-step))
                step = softplus(step)
            d[t, j] = step
            du[t, j] = step * u[t, j]
            y[t, j] = D[j] * u[t, j]


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _advance(before, after, decay, rates, d, du, B, C, y):
    """One token: decay = 2^(d rates), after = decay before + du B, and y <- y + <after, C>."""
    dstate, channels = before.shape
    for n in range(dstate):
        b, c = B[n], C[n]
        for j in range(channels):
            a = exp2(d[j] * rates[n, j])
            state = a * before[n, j] + du[j] * b
            decay[n, j] = a
            after[n, j] = state
            y[j] += state * c


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _gate(y, z, dy, dz):
    """dz, and dy <- dy silu(z): the gradient of what the gate multiplies."""
    tokens, channels = y.shape
    for t in range(tokens):
        for j in range(channels):
            gate = ONE / (ONE + exp(-z[t, j]))
            dz[t, j] = dy[t, j] * y[t, j] * gate * (ONE + z[t, j] * (ONE - gate))
            dy[t, j] *= z[t, j] * gate


@njit(fastmath={"contract", "reassoc"}, error_model="numpy", cache=True)
def _walk_back(g, dA, A, decay, before, after, d, du, dy, B, C, sums, gB, dd, dB, dC):
    """One token: g, decayed already by the token after it, takes up C dy and passes through the decay.

    gB becomes <g, B> and dd <g, A decay before>. May reorder sums: there is no exponential in here.
    """
    dstate, channels = g.shape
    for j in range(channels):
        gB[j] = ZERO
        dd[j] = ZERO
    for first in range(0, dstate, PART):
        for j in range(channels):
            sums[0, j] = ZERO
            sums[1, j] = ZERO
        for n in range(first, min(first + PART, dstate)):
            b, c = B[n], C[n]
            sum_B, sum_C = ZERO, ZERO
            for j in range(channels):
                adjoint = g[n, j] + dy[j] * c
                decayed = adjoint * decay[n, j]
                product = decayed * before[n, j]
                sum_B += adjoint * du[j]
                sum_C += dy[j] * after[n, j]
                sums[0, j] += adjoint * b
                sums[1, j] += product * A[n, j]
                dA[n, j] += product * d[j]
                g[n, j] = decayed
            dB[n], dC[n] = sum_B, sum_C
        for j in range(channels):
            gB[j] += sums[0, j]
            dd[j] += sums[1, j]


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _finish(u, d, slope, dy, gB, dd, D, sums, dD, dbias):
    """gB <- du and dd <- ddelta, from sums over states; adds to dD and dbias by segment, which rounds less."""
    tokens, channels = u.shape
    sums[:] = ZERO
    for t in range(tokens):
        for j in range(channels):
            ddelta = (u[t, j] * gB[t, j] + dd[t, j]) * slope[t, j]
            gB[t, j] = d[t, j] * gB[t, j] + D[j] * dy[t, j]
            dd[t, j] = ddelta
            sums[0, j] += dy[t, j] * u[t, j]
            sums[1, j] += ddelta
    for j in range(channels):
        dD[j] += sums[0, j]
        dbias[j] += sums[1, j]


@njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _backward_block(
    streams, strides, A, rates, D, bias, first, dlast, checkpoints, dfirst, dA, dD, dbias, dBC,
    ngroups, softplus_on, gated, block, bounds, packed, reverse, every,
    sequence, group, piece,
):  # fmt: skip
    """`block` channels of one sequence: the block number `piece` of `group`."""
    _, dim, dstate = first.shape
    seqlen = dBC.shape[3]
    b, start, end = sequence, 0, seqlen
    if packed:
        b, start, end = 0, bounds[sequence], bounds[sequence + 1]
        if reverse:
            start, end = seqlen - end, seqlen - start
    group_dim = dim // ngroups
    d0, row = group * group_dim + piece * block, group * dstate
    channels = min(block, group_dim - piece * block)
    some = slice(d0, d0 + channels)
    states = np.empty((every + 1, dstate, channels), first.dtype)
    decays = np.empty((every, dstate, channels), first.dtype)
    weights = np.empty((4, dstate, channels), first.dtype)
    rate, a, g, sum_A = weights[0], weights[1], weights[2], weights[3]
    sums = np.empty((2, channels), first.dtype)
    tiles = np.empty((10, every, channels), first.dtype)
    rows = np.empty((2, every, dstate), first.dtype)
    for n in range(dstate):
        for j in range(channels):
            rate[n, j] = rates[n, d0 + j]
            a[n, j] = A[n, d0 + j]
            g[n, j] = dlast[sequence, d0 + j, n]
            sum_A[n, j] = ZERO
    for j in range(channels):
        dD[sequence, d0 + j] = ZERO
        dbias[sequence, d0 + j] = ZERO

    for segment in range((end + every - 1) // every - 1, start // every - 1, -1):
        t0 = max(start, segment * every)
        tokens = min(end, (segment + 1) * every) - t0
        if tokens <= 0:  # an empty sequence inside a segment
            continue
        for k in range(4 if gated else 3):
            _load(tiles[k, :tokens], streams[k], strides[k], b, d0, t0)
        for k in range(2):
            _load(rows[k, :tokens], streams[4 + k], strides[4 + k], b, row, t0)
        x, d, dy, z = tiles[0, :tokens], tiles[1, :tokens], tiles[2, :tokens], tiles[3, :tokens]
        gB, dd, dz = tiles[4, :tokens], tiles[5, :tokens], tiles[6, :tokens]
        slope, du, y = tiles[7, :tokens], tiles[8, :tokens], tiles[9, :tokens]
        place = checkpoints.shape[1] - segment if reverse else segment - 1
        for n in range(dstate):
            for j in range(channels):
                if t0 == start:
                    states[0, n, j] = first[sequence, d0 + j, n]
                else:
                    states[0, n, j] = checkpoints[b, place, n, d0 + j]

        _prepare(x, d, slope, du, y, bias[some], D[some], softplus_on)
        for t in range(tokens):
            _advance(
                states[t], states[t + 1], decays[t], rate, d[t], du[t], rows[0, t], rows[1, t], y[t]
            )
        if gated:
            _gate(y, z, dy, dz)
        for t in range(tokens - 1, -1, -1):
            place = seqlen - 1 - t0 - t if reverse else t0 + t
            _walk_back(
                g, sum_A, a, decays[t], states[t], states[t + 1], d[t], du[t], dy[t], rows[0, t], rows[1, t],
                sums, gB[t], dd[t], dBC[piece, 0, b, place, row : row + dstate],
                dBC[piece, 1, b, place, row : row + dstate],
            )  # fmt: skip
        _finish(x, d, slope, dy, gB, dd, D[some], sums, dD[sequence, some], dbias[sequence, some])
        for k in range(3 if gated else 2):
            _store(tiles[4 + k, :tokens], streams[6 + k], strides[6 + k], b, d0, t0)

    for n in range(dstate):
        for j in range(channels):
            dA[sequence, n, d0 + j] = sum_A[n, j]
            dfirst[sequence, d0 + j, n] = g[n, j]


@njit(parallel=True, cache=True)
def _backward(
    streams, strides, A, rates, D, bias, first, dlast, checkpoints, dfirst, dA, dD, dbias, dBC,
    ngroups, softplus_on, gated, block, bounds, packed, reverse, every,
):  # fmt: skip
    # sequences innermost: neighbouring tasks share a thread, and packed sequences differ in length
    sequences = first.shape[0]
    blocks = dBC.shape[0]
    for task in prange(sequences * ngroups * blocks):
        sequence, piece = task % sequences, task // sequences
        _backward_block(
            streams, strides, A, rates, D, bias, first, dlast, checkpoints, dfirst, dA, dD, dbias, dBC,
            ngroups, softplus_on, gated, block, bounds, packed, reverse, every,
            sequence, piece // blocks, piece % blocks,
        )  # fmt: skip
