"""Packed sequences for attention that knows only whole sequences."""

import functools
import itertools

import torch

from kernels.layout import laid_out_like


def packed(plain):
    """Extend `plain(q, k, v, softmax_scale, return_lse)` by `cu_seqlens`: packed sequences run one after the other."""

    @functools.wraps(plain)
    def attention(q, k, v, softmax_scale=None, return_lse=True, cu_seqlens=None):
        if cu_seqlens is None:
            return plain(q, k, v, softmax_scale, return_lse)
        bounds = cu_seqlens.tolist()
        found = [
            plain(*(t[:, :, start:end] for t in (q, k, v)), softmax_scale, return_lse)
            for start, end in itertools.pairwise(bounds)
            if start < end
        ]
        o, lse = zip(*found, strict=True)
        lse = None if lse[0] is None else torch.cat(lse, dim=2)
        return laid_out_like(q, torch.cat(o, dim=2)), lse

    return attention
