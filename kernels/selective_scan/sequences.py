"""Packed sequences and the reverse direction for scans that know only whole sequences from left to right."""

import functools

import torch

from kernels.layout import laid_out_like


def any_sequences(plain):
    """Extend `plain(u, …, initial_state, return_states)` by `cu_seqlens` and `reverse`, as `selective_scan_ref` has them.

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
    bounds = cu_seqlens.tolist()
    for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        first = None if initial_state is None else initial_state[i : i + 1]
        if start == end:
            last_states.append(
                u.new_zeros(1, *A.shape, dtype=wide) if first is None else first.to(wide)
            )
            continue
        piece = {name: None if t is None else t[..., start:end] for name, t in tokens.items()}
        found = plain(
            **piece, **weights, initial_state=first, return_states=1 if return_states else 0
        )
        for kept, part in zip((ys, last_states, states), found, strict=True):
            kept.append(part)
    y = laid_out_like(u, torch.cat(ys, 2))
    if not return_states:
        return y, torch.cat(last_states), None
    return y, torch.cat(last_states), torch.cat(states, 1)[:, return_states - 1 :: return_states]


def _flip(t, axis):
    return None if t is None else t.flip(axis)
