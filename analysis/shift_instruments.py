"""The instruments of shift detection on tensors: how much a sequence of vectors changes at given tokens."""

import torch
import torch.nn.functional as F

from kernels import selective_scan
from kernels.observation import observing_operators

COLUMNS = 512  # of hidden states that are held in float64 at once
STATES = 1 << 24  # recurrent states that are held at once


def window_change(values, at, window):
    """1 - cos of the means over [t - window, t) and [t, t + window), for every t of `at`: (n,) float64.

    Args:
        values: (seqlen, width), any float dtype. O(seqlen * width) whatever the window.
        at: (n,) int64, each from `window` to seqlen - `window`.
    """
    parts = (part.double() for part in values.split(COLUMNS, 1))
    return one_minus_cosine(sum(_products(part, at, window) for part in parts))


def state_change(operands, at, window, impl="torch"):
    """`window_change` of the recurrent states (dim, dstate) after every token, some channels at a time.

    The scan runs again over the recorded operands. Sums are float32 (float64 if u is) over the few tokens between two
    bounds of windows, as the states are, and float64 from there on.
    """
    u, delta, A, B, C = (operands[name] for name in ("u", "delta", "A", "B", "C"))
    bias = operands.get("delta_bias")
    dim, seqlen = u.shape[1:]
    of_group = dim // B.shape[1]
    size = max(1, min(of_group, STATES // (seqlen * A.shape[1])))
    total = 0
    # whoever watches the operators of the model is not to see this scan
    with observing_operators(None):
        for group in range(B.shape[1]):
            for part in torch.arange(group * of_group, (group + 1) * of_group).split(size):
                rows = slice(int(part[0]), int(part[-1]) + 1)
                _, states = selective_scan(
                    u[:, rows], delta[:, rows], A[rows], B[:, group], C[:, group],
                    delta_bias=None if bias is None else bias[rows],
                    delta_softplus=operands.get("delta_softplus", False), return_states=1, impl=impl,
                )  # fmt: skip
                total = total + _products(states[0].flatten(1), at, window)
    return one_minus_cosine(total)


def _products(values, at, window):
    """(3, n) of the sums over both windows: their product, and either's with itself."""
    bounds, where = torch.stack([at - window, at, at + window]).unique(return_inverse=True)
    lengths = bounds.diff()
    sums = torch.segment_reduce(
        values[bounds[0] : bounds[-1]].contiguous(), "sum", lengths=lengths, axis=0
    )
    until = F.pad(sums.double().cumsum(0), (0, 0, 1, 0))
    before, middle, after = (until[i] for i in where)
    left, right = middle - before, after - middle
    return torch.stack([(left * right).sum(1), (left * left).sum(1), (right * right).sum(1)])


def one_minus_cosine(products):
    """From (3, n): the product of two vectors, and either's with itself. Two zero vectors are alike, one is not."""
    both, left, right = products
    size = (left * right).sqrt()
    alike = torch.where(left == right, 1.0, 0.0)
    return 1 - torch.where(size > 0, both / size.where(size > 0, 1.0), alike)


def velocity(hidden, first):
    """(n,) float64 mean of |h_t - h_(t-1)| over the tokens `first` (n, FIRST), -1 where there is none."""
    there = first >= 0
    tokens = first.where(there, first[:, :1])
    steps = torch.stack([(hidden[t] - hidden[t - 1]).double().norm(dim=-1) for t in tokens.mT], 1)
    return (steps * there).sum(1) / there.sum(1)


def step_size(operands, first):
    """(n,) float64, the largest mean over channels of the step size among the tokens `first`."""
    tokens = first.where(first >= 0, first[:, :1])
    steps = operands["delta"][0][:, tokens].double()
    if operands.get("delta_bias") is not None:
        steps = steps + operands["delta_bias"].double()[:, None, None]
    if operands.get("delta_softplus", False):
        steps = F.softplus(steps)
    return steps.mean(0).amax(1)
