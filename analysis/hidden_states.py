"""The path that a layer's hidden state takes from token to token: how fast, how far, how variable.

With h_t the hidden state (the residual stream) at token t, 0-based, and ||.|| the Euclidean norm, arXiv 2601.01237
defines a velocity ||h_t - h_{t-1}|| (its equation 6), a drift ||h_t - h_0|| (equation 7), a stability over windows of
50 tokens and a norm. What it leaves open is decided so:

    velocity        raw, neither per dimension nor relative; velocity_relative divides by ||h_{t-1}||
    drift           from the first token's vector, not from zero; it is a displacement, and the sum of all velocities,
                    the length of the path, stands beside it; drift_relative divides by ||h_0||
    variance        in the trailing window that ends at a token, around the window's mean, divided by its length
                    (not by one less); the mean over dimensions; full windows only
    stability       1 / (1 + variance), window by window, so that high is stable and 1 does not move
    norm            of the last token; norm_mean over all tokens

A relative value whose denominator is zero is not defined: its token is left out, and `positions` shows that. A
sequence shorter than the window has no variance, one of a single token no velocity: such series are empty.
"""

import torch

from analysis.measured import series

BLOCK = 64  # tokens; a window's worth is about the cheapest


def hidden_series(hidden, window=50):
    """All metrics of the hidden states of one layer, instrument `residual stream`, in O(seqlen) memory.

    Args:
        hidden: (..., seqlen, width), any float dtype and device; computed in float64.
        window: tokens of the trailing window of variance and stability, at least 2.

    Returns:
        list of `Series`: velocity, velocity_max, velocity_relative, drift, drift_relative, path_length, variance,
        stability, norm, norm_mean; values (..., positions).

    Raises:
        ValueError: `hidden` has no token or no width, or `window` is not a whole number of at least 2.
    """
    if hidden.dim() < 2 or hidden.numel() == 0:
        raise ValueError(
            f"hidden must be (..., seqlen, width) and not empty, got {tuple(hidden.shape)}"
        )
    path = Path(window)
    for block in hidden.detach().split(BLOCK, dim=-2):
        path.extend(block)
    instrument = "residual stream"
    velocity, norm = path["velocity"], path["norm"]
    moved = torch.arange(1, norm.shape[-1])
    return [
        *path_series(instrument, path),
        series(instrument, "velocity_max", velocity, moved, summary="max"),
        series(instrument, "path_length", velocity, moved, summary="sum"),
        series(instrument, "norm_mean", norm),
    ]


def path_series(instrument, path):
    """What is told of every `Path`: velocity, drift, variance, stability and norm, as in the head of this file."""
    velocity, drift, norm, variance = (
        path[name] for name in ("velocity", "drift", "norm", "variance")
    )
    tokens = torch.arange(norm.shape[-1])
    full = tokens[path.window - 1 :]
    before, first = norm[..., :-1], norm[..., :1].expand_as(norm)
    return [
        series(instrument, "velocity", velocity, tokens[1:]),
        quotient(instrument, "velocity_relative", velocity, before, tokens[1:]),
        series(instrument, "drift", drift, summary="last"),
        quotient(instrument, "drift_relative", drift, first, tokens, summary="last"),
        series(instrument, "variance", variance, full),
        series(instrument, "stability", 1 / (1 + variance), full),
        series(instrument, "norm", norm, summary="last"),
    ]


def quotient(instrument, metric, above, below, positions, **options):
    """The series above / below, both (..., positions), without the positions where any `below` is zero."""
    kept = (below != 0)[None].flatten(0, -2).all(0)
    values = above[..., kept] / below[..., kept]
    return series(instrument, metric, values, positions[kept.cpu()], **options)


class Path:
    """Points of a vector space, fed in blocks of tokens; keeps numbers per token, and the points of one window.

    path[name] is then a float64 tensor on the device of the points:
        velocity (..., tokens - 1): ||x_t - x_{t-1}||, t from 1;        dot: <x_t, x_{t-1}> likewise
        norm (..., tokens): ||x_t||;        drift: ||x_t - x_0|| likewise
        variance (..., windows): the mean over dimensions, in the window that ends at token window - 1, window, ...

    Everything is computed in float64. The variance comes from the inner products of the points in reach, with the
    points measured from their own mean: no large numbers cancel, however far from zero the path runs.
    """

    def __init__(self, window):
        if not isinstance(window, int) or window < 2:
            raise ValueError(f"window must be a whole number of at least 2 tokens, got {window!r}")
        self.window = window
        self._first = None
        self._reach = self._work = (
            None  # the last window - 1 points and a block after them; as much to work in
        )
        self._old = 0  # points of earlier blocks in `_reach`
        self._found = {name: [] for name in ("velocity", "dot", "norm", "drift", "variance")}

    def __getitem__(self, name):
        return torch.cat(self._found[name], -1)

    def extend(self, points):
        """Append points (..., tokens, width), of any float dtype."""
        old, total = self._old, self._old + points.shape[-2]
        self._reserve(points, total)
        reach, work = self._reach[..., :total, :], self._work[..., :total, :]
        new = reach[..., old:, :].copy_(points)
        if self._first is None:
            self._first = new[..., :1, :].clone()
        later, earlier = reach[..., max(old, 1) :, :], reach[..., max(old, 1) - 1 : -1, :]
        steps, moves = work[..., max(old, 1) :, :], work[..., old:, :]
        norm = torch.linalg.vector_norm
        found = {
            "velocity": norm(torch.sub(later, earlier, out=steps), dim=-1),
            "dot": torch.mul(later, earlier, out=steps).sum(-1),
            "norm": norm(new, dim=-1),
            "drift": norm(torch.sub(new, self._first, out=moves), dim=-1),
            "variance": self._variance(reach, work),
        }
        for name, values in found.items():
            self._found[name].append(values)
        self._old = min(total, self.window - 1)
        tail = work[..., : self._old, :].copy_(reach[..., total - self._old :, :])
        reach[..., : self._old, :].copy_(tail)

    def _reserve(self, points, total):
        """Buffers that live as long as the path: fresh ones for every block would cost more than the arithmetic."""
        if self._reach is None or total > self._reach.shape[-2]:
            *batch, tokens, width = points.shape
            shape = (*batch, self.window - 1 + tokens, width)
            reach = points.new_empty(shape, dtype=torch.float64)
            if self._old:
                reach[..., : self._old, :] = self._reach[..., : self._old, :]
            self._reach, self._work = reach, torch.empty_like(reach)

    def _variance(self, reach, work):
        """(..., windows) of the full windows of `reach` (..., tokens, width)."""
        tokens, width = reach.shape[-2:]
        if tokens < self.window:
            return reach.new_empty(*reach.shape[:-2], 0)
        centred = torch.sub(reach, reach.mean(-2, keepdim=True), out=work)
        products = centred @ centred.mT
        # a row for every window: which tokens are in it
        inside = reach.new_ones(tokens - self.window + 1, tokens).triu().tril(self.window - 1)
        square = products.diagonal(dim1=-2, dim2=-1) @ inside.T / self.window
        mean = ((inside @ products) * inside).sum(-1) / self.window**2
        return ((square - mean) / width).clamp(min=0)
