"""Memory layout of a (batch, dim, seqlen) operand: channel-last (a transposed view) or time-last."""

import torch


def is_channel_last(t):
    """Whether channels lie closer together than tokens in `t` (batch, dim, seqlen)."""
    return t.stride(1) < t.stride(2)


def empty_like(u, dtype=None):
    """An uninitialised dense tensor with the shape, dtype and device of `u`, in the layout of `u`.

    `torch.empty_like` forgets the layout of a view that is not dense, such as half of a projection.
    """
    batch, dim, seqlen = u.shape
    dtype = dtype or u.dtype
    if is_channel_last(u):
        return torch.empty(batch, seqlen, dim, dtype=dtype, device=u.device).transpose(1, 2)
    return torch.empty(batch, dim, seqlen, dtype=dtype, device=u.device)
