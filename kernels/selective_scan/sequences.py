"""Packed sequences and the reverse direction for scans that know only whole sequences from left to right."""

import functools
import itertools

import torch

from kernels.layout import laid_out_like


def any_sequences(plain):
    """Extend `plain(u, …, initial_state, return_states)` by `cu_seqlens` and `reverse` of `selective_scan_ref`.

    Packed sequences run one after the other; a reverse scan runs on flipped copies.
    """

    @functools.wraps(plain)
    def scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
        cu_seqlens=None, reverse=False, return_states=0,
    ):  # fmt: skip
        weights = {"A": A, "D": D, "delta_bias": delta_bias, "delta_softplus": delta_softplus}
        tokens = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
        if reverse:
            tokens = {name: _flip(t, -1) for name, t in tokens.items()}
            if cu_seqlens is not None:
                cu_seqlens, initial_state = (
                    u.shape[2] - cu_seqlens.flip(0),
                    _flip(initial_state, 0),
                )
            y, last_state, states = scan(
                **tokens, **weights, initial_state=initial_state, cu_seqlens=cu_seqlens, return_states=return_states
            )  # fmt: skip
            last_state = last_state if cu_seqlens is None else last_state.flip(0)
            return laid_out_like(u, y.flip(2)), last_state, _flip(states, 1)
        if cu_seqlens is None:
            return plain(
                **tokens, **weights, initial_state=initial_state, return_states=return_states
            )
        return _one_by_one(plain, tokens, weights, initial_state, cu_seqlens, return_states)

    return scan


def _one_by_one(plain, tokens, weights, initial_state, cu_seqlens, return_states):
    """Run `plain` on every sequence; every k-th state is counted along the packed axis."""
    u, A = tokens["u"], weights["A"]
    wide = torch.promote_types(u.dtype, torch.float32)
    ys, last_states, states = [], [], [u.new_empty(1, 0, *A.shape, dtype=wide)]
    for i, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        state = None if initial_state is None else initial_state[i : i + 1]
        for first, stop in _cut(start, end, return_states):
            piece = {name: None if t is None else t[..., first:stop] for name, t in tokens.items()}
            y, state, kept = plain(
                **piece, **weights, initial_state=state, return_states=return_states
            )
            ys.append(y)
            if return_states:
                short = stop - first < return_states
                states.append(state[:, None] if short and stop % return_states == 0 else kept)
        last_states.append(u.new_zeros(1, *A.shape) if state is None else state)
    y = laid_out_like(u, torch.cat(ys, 2))
    last_state = torch.cat([state.to(wide) for state in last_states])
    return y, last_state, torch.cat(states, 1) if return_states else None


def _cut(start, end, every):
    """The pieces of a sequence from `start` to `end`: where states are kept, the second starts at a multiple."""
    cut = min(end, start + -start % every) if every else start
    return [(first, stop) for first, stop in ((start, cut), (cut, end)) if first < stop]


def _flip(t, axis):
    return None if t is None else t.flip(axis)
