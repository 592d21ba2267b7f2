"""A metric as it was measured: a number for every position, from which table, profile and parity are all made.

Metric code turns tensors into `Series` and knows neither models nor implementations.
"""

from dataclasses import dataclass

import torch

SUMMARIES = ("mean", "last", "sum", "max", "cov")


class NotFinite(ValueError):
    """A tensor that holds NaN or infinity; the message says which, and from which token on."""


@dataclass(frozen=True)
class Series:
    """One metric of one layer.

    Attributes:
        instrument: what was looked at, such as `residual stream`, `ssm state`, `softmax`, `contribution`.
        metric: its name, such as `velocity` or `entropy`.
        values: (..., positions) float64 on the CPU; leading axes are heads, states or probes.
        positions: (positions,) int64, the token that each value belongs to.
        summary: how one number is made of it: mean, last (position), sum (over positions, then the mean), max, or cov
            (coefficient of variation, standard deviation over mean).
        sampled: whether the positions are a sample of the tokens, so that the mean has an interval.
        exact: whether rounding moves it by rounding alone: False for counts over a threshold, which jump.
    """

    instrument: str
    metric: str
    values: torch.Tensor
    positions: torch.Tensor
    summary: str = "mean"
    sampled: bool = False
    exact: bool = True

    def __post_init__(self):
        if self.summary not in SUMMARIES:
            raise ValueError(f"summary must be one of {', '.join(SUMMARIES)}, got {self.summary!r}")
        if self.values.shape[-1] != len(self.positions):
            raise ValueError(
                f"{self.metric}: {self.values.shape[-1]} values for {len(self.positions)} positions"
            )

    def value(self):
        """The one number; nan where there is no position (a sequence of one token has no velocity)."""
        if self.values.numel() == 0:
            return float("nan")
        made = {
            "mean": lambda v: v.mean(),
            "last": lambda v: v[..., -1].mean(),
            "sum": lambda v: v.sum(-1).mean(),
            "max": lambda v: v.max(),
            "cov": lambda v: v.std(correction=0) / v.mean(),
        }
        return made[self.summary](self.values).item()

    def by_position(self):
        """(positions,) the mean over heads, states or probes."""
        return self.values.mean(tuple(range(self.values.dim() - 1)))


def series(instrument, metric, values, positions=None, **options):
    """A `Series` of a tensor of any dtype and device; positions are 0, 1, ... if not given."""
    values = values.detach().to("cpu", torch.float64)
    if positions is None:
        positions = torch.arange(values.shape[-1])
    return Series(instrument, metric, values, positions.to("cpu", torch.int64), **options)


def check_finite(name, tensor, axis):
    """Raise NotFinite if `tensor` holds NaN or infinity, naming the first token (along `axis`) that does."""
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    wrong = ~finite.movedim(axis, -1).flatten(0, -2).all(0)
    what = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
    first = int(wrong.nonzero()[0, 0])
    raise NotFinite(
        f"{name} holds {what} from token {first} on ({int(wrong.sum())} of {len(wrong)} tokens)"
    )
