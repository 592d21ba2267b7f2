"""`cpu`: numba kernels that walk one cache-sized tile per thread, with the unit-stride dimension innermost.

A tile is written once per tap while it stays in the first-level cache, so memory sees one read of x and one write
of y, and every inner loop is a multiply-add over neighbours that LLVM vectorises for any width.
"""

import itertools

import numpy as np
import torch
from numba import njit, prange

from kernels.causal_conv1d.sequences import any_sequences
from kernels.causal_conv1d.state import last_inputs
from kernels.cpu_bridge import flat_array, use_torchs_threads
from kernels.cpu_math import exp, silu
from kernels.implementations import note
from kernels.layout import dense_like, empty_like, is_token_major

BLOCK_CHANNELS = 1024  # channel-last: a row of y and width rows of x stay in 32 KiB
BLOCK_TOKENS = 32
BLOCK_TIME = 2048  # time-last
BACKWARD_CHANNELS, BACKWARD_TOKENS = 256, 128  # one sum of the filters' gradients a tile


@any_sequences
def causal_conv1d_cpu(x, weight, bias, initial_state, activation):
    """Operands and results as `causal_conv1d_ref`; float16 and bfloat16 are computed on a float32 copy."""
    _check_dtype("causal_conv1d", x)
    note("causal_conv1d", "numba.causal_conv1d")
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    inputs = x.float()
    channel_last = is_token_major(inputs)
    if inputs.stride(1 if channel_last else 2) != 1:
        inputs = empty_like(inputs).copy_(inputs)
    y = empty_like(inputs)
    before = x.new_zeros(batch, dim, width - 1) if initial_state is None else initial_state
    bias = weight.new_zeros(dim) if bias is None else bias
    filters = weight.detach().float().t().contiguous()  # (width, dim): rows are read along channels
    use_torchs_threads()
    walk = _channel_last if channel_last else _time_last
    walk(
        flat_array(inputs), inputs.stride(), flat_array(y), y.stride(), filters.numpy(),
        bias.detach().float().contiguous().numpy(), before.detach().float().contiguous().numpy(),
        (batch, dim, seqlen), activation == "silu",
    )  # fmt: skip
    return y.to(x.dtype), last_inputs(x, initial_state, width)


def causal_conv1d_update_cpu(x, conv_state, weight, bias, activation):
    """Operands and result as `causal_conv1d_update_ref`; what is not contiguous float32 is computed on a copy."""
    _check_dtype("causal_conv1d_update", x)
    note("causal_conv1d_update", "numba.causal_conv1d_update")
    plain = lambda t: t.detach().float().contiguous()
    state, y = plain(conv_state), torch.empty(x.shape)
    bias = weight.new_zeros(x.shape[1]) if bias is None else bias
    use_torchs_threads()
    _update(
        plain(x).numpy(), state.numpy(), plain(weight).numpy(), plain(bias).numpy(), y.numpy(), activation == "silu"
    )  # fmt: skip
    if state.data_ptr() != conv_state.data_ptr():
        conv_state.copy_(state)
    return y.to(x.dtype)


def causal_conv1d_backward_cpu(
    dy, dfinal_state, x, weight, bias, initial_state, activation, cu_seqlens
):
    """Gradients of x, weight, bias and initial_state (None for an absent one), each `dense_like` its operand.

    x and dy that are not channel-last float32 are computed on a copy.
    """
    _check_dtype("causal_conv1d", x)
    note("causal_conv1d_backward", "numba.causal_conv1d_backward")
    (batch, dim, seqlen), width = x.shape, weight.shape[1]
    rows = lambda t: t.detach().float().transpose(1, 2).contiguous()  # (batch, seqlen, dim)
    tiles, sequences = _tiles(batch, seqlen, cu_seqlens)
    zeros = x.new_zeros(sequences, dim, width - 1)
    states = [rows(zeros if t is None else t) for t in (initial_state, dfinal_state)]
    dx, dinitial = torch.empty(batch, seqlen, dim), torch.empty(sequences, width - 1, dim)
    sums = torch.zeros(len(tiles), width + 1, dim)
    filters = weight.detach().float().t().contiguous()
    bias_row = weight.new_zeros(dim) if bias is None else bias
    use_torchs_threads()
    _backward(
        rows(dy).numpy(), rows(x).numpy(), filters.numpy(), bias_row.detach().float().contiguous().numpy(),
        *(t.numpy() for t in states), dx.numpy(), dinitial.numpy(), sums.numpy(), tiles, activation == "silu",
    )  # fmt: skip
    sums = sums.sum(0)
    like = lambda operand, value: None if operand is None else dense_like(operand).copy_(value)
    return (
        like(x, dx.transpose(1, 2)),
        like(weight, sums[:-1].t()),
        like(bias, sums[-1]),
        like(initial_state, dinitial.transpose(1, 2)),
    )


def _check_dtype(operator, x):
    if x.dtype == torch.float64:
        raise NotImplementedError(
            f"{operator}: impl 'cpu' computes in float32, got x in float64; use impl='torch'"
        )


def _tiles(batch, seqlen, cu_seqlens):
    """Rows (b, sequence, first token, one past the last, start and end of the sequence), and how many sequences."""
    if cu_seqlens is None:
        sequences = [(b, 0, seqlen) for b in range(batch)]
    else:
        bounds = cu_seqlens.tolist()
        sequences = [(0, *pair) for pair in itertools.pairwise(bounds)]
    tiles = [
        (b, i, first, min(first + BACKWARD_TOKENS, end), start, end)
        for i, (b, start, end) in enumerate(sequences)
        for first in range(start, max(end, start + 1), BACKWARD_TOKENS)
    ]
    return np.array(tiles), len(sequences)


@njit(parallel=True, cache=True, fastmath={"contract"})
def _channel_last(x, x_strides, y, y_strides, weight, bias, before, shape, activated):
    batch, dim, seqlen = shape
    width = weight.shape[0]
    tiles_d = (dim + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    tiles_t = (seqlen + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    for tile in prange(batch * tiles_t * tiles_d):
        b = tile // (tiles_t * tiles_d)
        first = tile // tiles_d % tiles_t * BLOCK_TOKENS
        d = tile % tiles_d * BLOCK_CHANNELS
        count = min(BLOCK_CHANNELS, dim - d)
        for t in range(first, min(first + BLOCK_TOKENS, seqlen)):
            start = b * y_strides[0] + t * y_strides[2] + d
            out = y[start : start + count]
            out[:] = bias[d : d + count]
            for k in range(width):
                source = t - width + 1 + k
                if source >= 0:
                    start = b * x_strides[0] + source * x_strides[2] + d
                    _add_products(out, weight[k, d : d + count], x[start : start + count])
                else:
                    _add_products(out, weight[k, d : d + count], before[b, d : d + count, t + k])
            if activated:
                _apply_silu(out)


@njit(parallel=True, cache=True, fastmath={"contract"})
def _time_last(x, x_strides, y, y_strides, weight, bias, before, shape, activated):
    batch, dim, seqlen = shape
    width = weight.shape[0]
    tiles_t = (seqlen + BLOCK_TIME - 1) // BLOCK_TIME
    for tile in prange(batch * dim * tiles_t):
        b = tile // (dim * tiles_t)
        d = tile // tiles_t % dim
        first = tile % tiles_t * BLOCK_TIME
        last = min(first + BLOCK_TIME, seqlen)
        start = b * y_strides[0] + d * y_strides[1]
        out = y[start + first : start + last]
        start = b * x_strides[0] + d * x_strides[1]
        out[:] = bias[d]
        for k in range(width):
            shift = width - 1 - k
            # this many tokens of the tile look before the first of the sequence
            reach = min(max(shift - first, 0), last - first)
            for t in range(reach):
                out[t] += weight[k, d] * before[b, d, first + t + k]
            _add_scaled(
                out[reach:], weight[k, d], x[start + first + reach - shift : start + last - shift]
            )
        if activated:
            _apply_silu(out)


@njit(fastmath={"contract"}, error_model="numpy")
def _add_products(out, a, b):
    for i in range(out.size):
        out[i] += a[i] * b[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _add_scaled(out, scale, a):
    for i in range(out.size):
        out[i] += scale * a[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _apply_silu(out):
    for i in range(out.size):
        out[i] = silu(out[i])


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _update(x, state, weight, bias, y, activated):
    batch, dim, length = state.shape
    width = weight.shape[1]
    for row in prange(batch * dim):
        b, d = row // dim, row % dim
        acc = bias[d] + weight[d, width - 1] * x[b, d]
        for k in range(width - 1):
            acc += weight[d, k] * state[b, d, length - width + 1 + k]
        for k in range(length - 1):
            state[b, d, k] = state[b, d, k + 1]
        state[b, d, length - 1] = x[b, d]
        y[b, d] = silu(acc) if activated else acc


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _backward(dy, x, weight, bias, initial, dfinal, dx, dinitial, sums, tiles, activated):
    """A tile walks forward in time: from the token t come dp_t, and dx of t - width + 1, which is complete then."""
    dim = x.shape[2]
    width = weight.shape[0]
    halo = width - 1
    tiles_d = (dim + BACKWARD_CHANNELS - 1) // BACKWARD_CHANNELS
    for tile in prange(len(tiles) * tiles_d):
        part = tile // tiles_d
        b, i, first, last, start, end = tiles[part]
        d = tile % tiles_d * BACKWARD_CHANNELS
        stop = min(d + BACKWARD_CHANNELS, dim)
        dps = np.zeros((width, stop - d), np.float32)  # of the token t in row t % width
        for t in range(first, last + halo):
            dp = dps[t % width]
            dp[:] = 0
            if t < end:
                if activated:
                    dp[:] = bias[d:stop]
                    for k in range(width):
                        _add_products(
                            dp,
                            weight[k, d:stop],
                            _input(x, initial, b, i, t - halo + k, start)[d:stop],
                        )
                    _times_silu_gradient(dp, dy[b, t, d:stop])
                else:
                    dp[:] = dy[b, t, d:stop]
                if t < last:
                    for k in range(width):
                        _add_products(
                            sums[part, k, d:stop],
                            dp,
                            _input(x, initial, b, i, t - halo + k, start)[d:stop],
                        )
                    _add_scaled(sums[part, width, d:stop], np.float32(1), dp)
            s = t - halo
            if s < first and first > start:
                continue  # of the tile before
            out = dinitial[i, s - start + halo, d:stop] if s < start else dx[b, s, d:stop]
            out[:] = 0
            for k in range(width):
                _add_products(out, weight[k, d:stop], dps[(t - k) % width])
            if s >= end - halo:
                _add_scaled(out, np.float32(1), dfinal[i, s - end + halo, d:stop])


@njit
def _input(x, initial, b, i, s, start):
    """The inputs of the token s of the sequence i, which begins at `start`."""
    return x[b, s] if s >= start else initial[i, s - start + initial.shape[1]]


@njit(fastmath={"contract"}, error_model="numpy")
def _times_silu_gradient(p, dy):
    for i in range(p.size):
        e = exp(-p[i])
        s = np.float32(1) / (np.float32(1) + e)
        slope = np.float32(0) if e > np.float32(1e30) else s + p[i] * s * (e * s)
        p[i] = dy[i] * slope
