"""Packed sequences for convolutions that know only whole sequences."""

import functools
import itertools

import torch

from kernels.layout import laid_out_like


def any_sequences(plain):
    """Extend `plain(x, weight, bias, initial_state, activation)` by `cu_seqlens`: one sequence after the other."""

    @functools.wraps(plain)
    def conv(x, weight, bias=None, initial_state=None, activation=None, cu_seqlens=None):
        if cu_seqlens is None:
            return plain(x, weight, bias, initial_state, activation)
        ys, final_states = [], []
        bounds = cu_seqlens.tolist()
        for i, (start, end) in enumerate(itertools.pairwise(bounds)):
            first = None if initial_state is None else initial_state[i : i + 1]
            if start == end:
                zeros = x.new_zeros(1, x.shape[1], weight.shape[1] - 1)
                final_states.append(zeros if first is None else first.to(x.dtype))
                continue
            y, final_state = plain(x[..., start:end], weight, bias, first, activation)
            ys.append(y)
            final_states.append(final_state)
        return laid_out_like(x, torch.cat(ys, 2)), torch.cat(final_states)

    return conv
