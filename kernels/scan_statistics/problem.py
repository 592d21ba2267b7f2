"""The problem: its sizes, its inputs and its cost. Tests, benchmarks and profiles all start here."""

from dataclasses import dataclass

import torch

from kernels.selective_scan.problem import SelectiveScanProblem


@dataclass(frozen=True)
class ScanStatisticsProblem:
    """The statistics of one scan, for every state; `str()` of it is its name in every table."""

    batch: int = 1
    seqlen: int = 2048
    dim: int = 1024
    dstate: int = 16
    ngroups: int = 1
    layout: str = "channel_last"  # or "time_last"
    has_bias: bool = True
    delta_softplus: bool = True

    def __str__(self):
        return str(self._scan()).replace("-no_z", "").replace("-no_D", "")

    def inputs(self, dtype=torch.float32, device="cpu", seed=0):
        """Operands of `scan_statistics` by name: those of the scan that it describes."""
        operands = self._scan().inputs(dtype, device, seed)
        names = ("delta", "A", "B", "C", "delta_bias", "delta_softplus")
        return {name: operands[name] for name in names}

    def flops(self):
        """Per state: its step (1), ln w and its distance to ln Z (3), ln Z (3), shares (3), entropy (5), distance (2).

        Top mass and span are comparisons but for the decay of their weights (7) and a sum (5). Per channel besides:
        softplus with its addition.
        """
        scalar = self.has_bias + 3 * self.delta_softplus
        return self._scan().elements() * (29 * self.dstate + scalar)

    def exps(self):
        """Per state an exponential, a logarithm and a reciprocal; per channel a logarithm, and two for softplus."""
        return self._scan().elements() * (3 * self.dstate + 1 + 2 * self.delta_softplus)

    def bytes(self, dtype=torch.float32):
        """delta and B read once, four float32 numbers a state and token written once; C is not looked at."""
        wide = torch.promote_types(dtype, torch.float32).itemsize
        per_token = (self.dim + self.ngroups * self.dstate) * dtype.itemsize + 16 * self.dstate
        return (
            self.batch * self.seqlen * per_token + self.dim * (self.dstate + self.has_bias) * wide
        )

    def _scan(self):
        return SelectiveScanProblem(**vars(self), has_z=False, has_D=False)
