"""The problem: its sizes, its inputs and its cost. Tests, benchmarks and profiles all start here."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SsdScanProblem:
    """One scan of Mamba-2; `str()` of it is its name in every table."""

    batch: int = 1
    seqlen: int = 2048
    nheads: int = 16
    headdim: int = 64
    dstate: int = 128
    ngroups: int = 1
    has_D: bool = True
    has_bias: bool = True
    dt_softplus: bool = True
    has_initial_state: bool = False

    def __post_init__(self):
        if self.nheads % self.ngroups:
            raise ValueError(f"ngroups={self.ngroups} must divide nheads={self.nheads}")

    def __str__(self):
        sizes = f"b{self.batch}-l{self.seqlen}-h{self.nheads}-p{self.headdim}-n{self.dstate}"
        flags = (
            (self.ngroups == 1, f"g{self.ngroups}"), (self.has_D, "no_D"), (self.has_bias, "no_bias"),
            (self.dt_softplus, "no_softplus"), (not self.has_initial_state, "state"),
        )  # fmt: skip
        return "-".join([sizes, *(label for usual, label in flags if not usual)])

    def inputs(self, dtype=torch.float32, device="cpu", seed=0):
        """Operands by name, for `ssd_scan(**inputs)`; the same numbers on every device.

        As in a freshly initialised Mamba-2: A lies between -1 and -16, and the step size mostly in 0.001 to 0.1. A,
        D, dt_bias and the state are float32 (float64 if `dtype` is), the rest `dtype`.
        """
        gen = torch.Generator().manual_seed(seed)
        randn = lambda *shape: torch.randn(shape, generator=gen)
        rand = lambda *shape: torch.rand(shape, generator=gen)
        wide = torch.promote_types(dtype, torch.float32)
        weight = lambda t: t.to(device, wide)
        steps = torch.exp(rand(self.nheads) * math.log(100) + math.log(1e-3))
        bias = torch.log(torch.expm1(steps)) if self.dt_softplus else steps
        dt = randn(self.batch, self.seqlen, self.nheads)
        if not self.has_bias:
            dt = dt + bias
        if not self.dt_softplus:
            dt = dt.abs() * steps
        tokens = (self.batch, self.seqlen)
        state = (self.batch, self.nheads, self.headdim, self.dstate)
        return {
            "x": randn(*tokens, self.nheads, self.headdim).to(device, dtype),
            "dt": dt.to(device, dtype),
            "A": weight(-1 - 15 * rand(self.nheads)),
            "B": randn(*tokens, self.ngroups, self.dstate).to(device, dtype),
            "C": randn(*tokens, self.ngroups, self.dstate).to(device, dtype),
            "D": weight(randn(self.nheads)) if self.has_D else None,
            "dt_bias": weight(bias) if self.has_bias else None,
            "dt_softplus": self.dt_softplus,
            "initial_state": weight(randn(*state)) if self.has_initial_state else None,
        }

    def flops(self):
        """Into the state and out of it, a multiplication and an addition each: what no form can do without."""
        return 4 * self.batch * self.seqlen * self.nheads * self.headdim * self.dstate

    def exps(self):
        """One a head and token, and two for softplus."""
        return self.batch * self.seqlen * self.nheads * (1 + 2 * self.dt_softplus)

    def bytes(self, dtype=torch.float32):
        """Every operand read once, y and the last state written once; no state in between."""
        wide = torch.promote_types(dtype, torch.float32).itemsize
        per_token = self.nheads * (2 * self.headdim + 1) + 2 * self.ngroups * self.dstate
        states = (1 + self.has_initial_state) * self.batch * self.nheads * self.headdim
        weights = self.nheads * (1 + self.has_D + self.has_bias)
        tokens = self.batch * self.seqlen * per_token * dtype.itemsize
        return tokens + (states * self.dstate + weights) * wide

    def backward_flops(self):
        """Three times the forward's: the states again, and two products for each of the two."""
        return 3 * self.flops()

    def backward_exps(self):
        """Those of the forward, recomputed once."""
        return self.exps()

    def backward_bytes(self, dtype=torch.float32):
        """x, dt, B, C and dy read once, the gradients of all operands written once; no state in between."""
        wide = torch.promote_types(dtype, torch.float32).itemsize
        per_token = self.nheads * (3 * self.headdim + 2) + 4 * self.ngroups * self.dstate
        weights = 2 * self.nheads * (1 + self.has_D + self.has_bias)
        states = 2 * self.has_initial_state * self.batch * self.nheads * self.headdim * self.dstate
        return self.batch * self.seqlen * per_token * dtype.itemsize + (states + weights) * wide
