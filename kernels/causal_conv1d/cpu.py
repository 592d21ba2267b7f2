"""`cpu`: numba kernels that walk one cache-sized tile per thread, with the unit-stride dimension innermost.

A tile is written once per tap while it stays in the first-level cache, so memory sees one read of x and one write
of y, and every inner loop is a multiply-add over neighbours that LLVM vectorises for any width.
"""

import torch
from numba import njit, prange

from kernels import checks
from kernels.causal_conv1d.state import last_inputs
from kernels.cpu_bridge import flat_array, use_torchs_threads
from kernels.cpu_math import silu
from kernels.implementations import note
from kernels.layout import empty_like, is_token_major

BLOCK_CHANNELS = 1024  # channel-last: a row of y and width rows of x stay in 32 KiB
BLOCK_TOKENS = 32
BLOCK_TIME = 2048  # time-last


def causal_conv1d_cpu(x, weight, bias, initial_state, activation):
    """Operands and results as `causal_conv1d_ref`; float16 and bfloat16 are computed on a float32 copy."""
    checks.check_no_gradient("causal_conv1d", "cpu", x, weight, bias, initial_state)
    if x.dtype == torch.float64:
        raise NotImplementedError(
            "causal_conv1d: impl 'cpu' computes in float32, got x in float64; use impl='torch'"
        )
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
