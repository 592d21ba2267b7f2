"""The memory layout of operands, which outputs take over, so that no transpose copy follows.

(batch, dim, seqlen) and (batch, nheads, seqlen, headdim) are token-major when all of a token lies together: the
transposed view that a model's projection leaves.
"""

import torch


def is_token_major(t):
    """Whether dimension 1 (channels or heads) lies inside dimension 2 (tokens) in memory."""
    return t.stride(1) < t.stride(2)


def empty_like(t, dtype=None):
    """An uninitialised dense tensor with the shape, device and layout of `t`.

    `torch.empty_like` forgets the layout of a view that is not dense, such as half of a projection.
    """
    shape = list(t.shape)
    if not is_token_major(t):
        return torch.empty(shape, dtype=dtype or t.dtype, device=t.device)
    shape[1], shape[2] = shape[2], shape[1]
    return torch.empty(shape, dtype=dtype or t.dtype, device=t.device).transpose(1, 2)


def dense_like(t):
    """Uninitialised memory for a gradient of `t`: its shape, dtype and order of dimensions, without gaps."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    place = sorted(range(t.dim()), key=order.__getitem__)
    return torch.empty([t.shape[d] for d in order], dtype=t.dtype, device=t.device).permute(place)


def laid_out_like(t, output):
    """`output` itself, or a token-major copy of it where `t` is token-major."""
    return output.transpose(1, 2).contiguous().transpose(1, 2) if is_token_major(t) else output
