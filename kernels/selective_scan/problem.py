"""The problem: its sizes, its inputs and its cost. Tests, benchmarks and profiles all start here."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SelectiveScanProblem:
    """One selective scan; `str()` of it is its name in every table."""

    batch: int = 1
    seqlen: int = 2048
    dim: int = 1024
    dstate: int = 16
    ngroups: int = 1
    layout: str = "channel_last"  # or "time_last"
    has_z: bool = True
    has_D: bool = True
    has_bias: bool = True
    delta_softplus: bool = True
    has_initial_state: bool = False

    def __post_init__(self):
        if self.layout not in ("channel_last", "time_last"):
            raise ValueError(f"layout must be channel_last or time_last, got {self.layout!r}")
        if self.dim % self.ngroups:
            raise ValueError(f"ngroups={self.ngroups} must divide dim={self.dim}")

    def __str__(self):
        name = f"b{self.batch}-l{self.seqlen}-d{self.dim}-n{self.dstate}"
        parts = [name] + ([f"g{self.ngroups}"] if self.ngroups > 1 else [])
        parts += ["time_last"] if self.layout == "time_last" else []
        for flag, label in (
            (self.has_z, "z"),
            (self.has_D, "D"),
            (self.has_bias, "bias"),
            (self.delta_softplus, "softplus"),
        ):
            parts += [] if flag else [f"no_{label}"]
        return "-".join(parts + (["state"] if self.has_initial_state else []))

    def inputs(self, dtype=torch.float32, device="cpu", seed=0):
        """Operands by name, for `selective_scan(**inputs)`; the same numbers on every device.

        As in a freshly initialised Mamba: A is near -(1 .. dstate), and the step size lies mostly in
        0.001 to 0.1. A, D, delta_bias and the state are float32 (float64 if `dtype` is), the rest
        `dtype`. On the device `meta` there are only shapes and strides.
        """
        home = "meta" if str(device) == "meta" else "cpu"
        gen = None if home == "meta" else torch.Generator().manual_seed(seed)
        randn = lambda *shape: torch.randn(shape, generator=gen, device=home)
        wide = torch.promote_types(dtype, torch.float32)
        time = lambda *shape: self._in_layout(randn(*shape).to(device, dtype))
        weight = lambda t: t.to(device, wide)

        steps = torch.exp(
            torch.rand(self.dim, generator=gen, device=home) * math.log(100) + math.log(1e-3)
        )
        bias = torch.log(torch.expm1(steps)) if self.delta_softplus else steps
        delta = randn(self.batch, self.seqlen, self.dim) * (1.0 if self.delta_softplus else 0.2)
        if not self.has_bias:
            delta = delta + bias
        if not self.delta_softplus:
            delta = delta.abs() * steps
        A = -torch.arange(1, self.dstate + 1, device=home) * torch.exp(
            0.2 * randn(self.dim, self.dstate)
        )
        B, C = (
            randn(self.batch, self.ngroups, self.seqlen, self.dstate).to(device, dtype)
            for _ in range(2)
        )
        transposed = (
            (lambda t: t.transpose(2, 3))
            if self.layout == "channel_last"
            else (lambda t: t.transpose(2, 3).contiguous())
        )
        state = (self.batch, self.dim, self.dstate)
        return {
            "u": time(self.batch, self.seqlen, self.dim),
            "delta": self._in_layout(delta.to(device, dtype)),
            "A": weight(A),
            "B": transposed(B),
            "C": transposed(C),
            "D": weight(randn(self.dim)) if self.has_D else None,
            "z": time(self.batch, self.seqlen, self.dim) if self.has_z else None,
            "delta_bias": weight(bias) if self.has_bias else None,
            "delta_softplus": self.delta_softplus,
            "initial_state": weight(randn(*state)) if self.has_initial_state else None,
        }

    def _in_layout(self, t):
        """(batch, seqlen, dim) to the operator's (batch, dim, seqlen), in this problem's layout."""
        t = t.transpose(1, 2)
        return t if self.layout == "channel_last" else t.contiguous()

    def elements(self):
        """Tokens times channels."""
        return self.batch * self.seqlen * self.dim

    def flops(self):
        """Per state: d A, its exponential, (d u) B, a multiply-add into h, a multiply-add out of h.

        Per element besides: softplus (3 with its addition), d u, D u (2), the gate (4 with its product).
        """
        scalar = 1 + 2 * self.has_D + 4 * self.has_z + self.has_bias + 3 * self.delta_softplus
        return self.elements() * (7 * self.dstate + scalar)

    def exps(self):
        """Results asked of the exponential unit: one a state, two for softplus, two for the gate."""
        return self.elements() * (self.dstate + 2 * self.delta_softplus + 2 * self.has_z)

    def bytes(self, dtype=torch.float32):
        """Every operand read once, y and the last state written once; no state in between."""
        wide = torch.promote_types(dtype, torch.float32).itemsize
        per_token = (3 + self.has_z) * self.dim + 2 * self.ngroups * self.dstate
        states = (1 + self.has_initial_state) * self.batch * self.dim * self.dstate
        weights = self.dim * (self.dstate + self.has_D + self.has_bias)
        return self.batch * self.seqlen * per_token * dtype.itemsize + (states + weights) * wide

    def backward_flops(self):
        """Per state: h again (5), its gradient (3), dC, dB, d(d u) (2 each), dd and dA (5), y for dz (2).

        Per element besides: softplus and its slope (5), u and d of d u (4), D (4), the gate and its slope (8).
        """
        scalar = 4 + 4 * self.has_D + 8 * self.has_z + 2 * self.has_bias + 5 * self.delta_softplus
        return self.elements() * ((19 + 2 * self.has_z) * self.dstate + scalar)

    def backward_exps(self):
        """Those of the forward, recomputed once; the slopes of softplus and gate come from the same results."""
        return self.exps()

    def backward_bytes(self, dtype=torch.float32):
        """u, delta, z, B, C and dy read once, the gradients of all operands written once; no state in between."""
        wide = torch.promote_types(dtype, torch.float32).itemsize
        per_token = (5 + 2 * self.has_z) * self.dim + 4 * self.ngroups * self.dstate
        states = 2 * self.has_initial_state * self.batch * self.dim * self.dstate
        weights = 2 * self.dim * (self.dstate + self.has_D + self.has_bias)
        return self.batch * self.seqlen * per_token * dtype.itemsize + (states + weights) * wide


@dataclass(frozen=True)
class StateUpdateProblem:
    """One token for every sequence of a batch, as in decoding; `str()` of it is its name in every table."""

    batch: int = 1
    dim: int = 1024
    dstate: int = 16
    ngroups: int = 1
    has_z: bool = True
    has_D: bool = True
    has_bias: bool = True
    dt_softplus: bool = True

    def __str__(self):
        return str(self._scan()).replace("-l1-", "-").removesuffix("-state")

    def _scan(self):
        """The scan of the token."""
        return SelectiveScanProblem(
            self.batch, 1, self.dim, self.dstate, self.ngroups, has_z=self.has_z, has_D=self.has_D,
            has_bias=self.has_bias, delta_softplus=self.dt_softplus, has_initial_state=True,
        )  # fmt: skip

    def inputs(self, dtype=torch.float32, device="cpu", seed=0):
        """Operands by name, for `selective_state_update(**inputs)`, which overwrites `state`.

        The state is float32 (float64 if `dtype` is), as in a cache that is exact; else as in the scan.
        """
        scan = self._scan().inputs(dtype, device, seed)
        token = lambda t: None if t is None else t[..., 0].contiguous()
        return {
            "state": scan["initial_state"],
            "x": token(scan["u"]),
            "dt": token(scan["delta"]),
            "A": scan["A"],
            "B": token(scan["B"]),
            "C": token(scan["C"]),
            "D": scan["D"],
            "z": token(scan["z"]),
            "dt_bias": scan["delta_bias"],
            "dt_softplus": self.dt_softplus,
        }

    def flops(self):
        """As one token of the scan."""
        return self._scan().flops()

    def exps(self):
        """As one token of the scan."""
        return self._scan().exps()

    def bytes(self, dtype=torch.float32):
        """The state read and written once; every other operand read once, y written once."""
        return self._scan().bytes(dtype)
