"""The problem: its sizes, its inputs and its cost. Tests, benchmarks and profiles all start here."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CausalConv1dProblem:
    batch: int = 1
    dim: int = 1024
    seqlen: int = 2048
    width: int = 4
    channel_last: bool = True  # as a model's projection leaves it
    silu: bool = True
    initial_state: bool = False

    def __str__(self):
        options = ("-cl" if self.channel_last else "") + ("-init" if self.initial_state else "")
        return f"b{self.batch}-d{self.dim}-l{self.seqlen}-w{self.width}{options}"

    def inputs(self, dtype, device, seed=0):
        """Operands of `causal_conv1d` by name."""
        generator = torch.Generator(device).manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        if self.channel_last:
            x = randn(self.batch, self.seqlen, self.dim).transpose(1, 2)
        else:
            x = randn(self.batch, self.dim, self.seqlen)
        weight, bias = randn(self.dim, self.width) / self.width**0.5, randn(self.dim)
        state = randn(self.batch, self.width - 1, self.dim).transpose(1, 2)
        return {
            "x": x,
            "weight": weight,
            "bias": bias,
            "initial_state": state if self.initial_state else None,
            "activation": "silu" if self.silu else None,
        }

    def flops(self):
        """A multiply and an addition per tap; silu counts as an addition, a division and a multiplication."""
        return self.batch * self.dim * self.seqlen * (2 * self.width + 3 * self.silu)

    def bytes(self, dtype):
        """x read once, y written once, the filters read once; the two states when there is an initial one."""
        elements = 2 * self.batch * self.dim * self.seqlen + self.dim * (self.width + 1)
        states = (1 + self.initial_state) * self.batch * self.dim * (self.width - 1)
        return (elements + states) * dtype.itemsize

    def exps(self):
        """Results of the exponential unit: an exponential and a reciprocal per silu."""
        return 2 * self.batch * self.dim * self.seqlen if self.silu else 0

    def backward_flops(self):
        """The activation's argument again, a multiply-add per tap for dx and for dweight, and dbias.

        The derivative of silu counts as an addition, a division and five more.
        """
        per_element = 2 * self.width * (2 + self.silu) + 1 + 8 * self.silu
        return self.batch * self.dim * self.seqlen * per_element

    def backward_bytes(self, dtype):
        """x and dy read once, dx written once, the filters read and their gradients written once, and the states."""
        elements = 3 * self.batch * self.dim * self.seqlen + 2 * self.dim * (self.width + 1)
        states = 2 * self.initial_state * self.batch * self.dim * (self.width - 1)
        return (elements + states) * dtype.itemsize

    def backward_exps(self):
        """As in the forward: the activation is computed again."""
        return self.exps()


@dataclass(frozen=True)
class ConvUpdateProblem:
    """One token of the convolution, as in decoding."""

    batch: int = 1
    dim: int = 1024
    width: int = 4
    state_len: int | None = None  # width if None, as transformers' cache has it
    silu: bool = True

    def __str__(self):
        longer = f"-s{self.state_len}" if self.state_len else ""
        return f"b{self.batch}-d{self.dim}-w{self.width}{longer}"

    def inputs(self, dtype, device, seed=0):
        """Operands of `causal_conv1d_update` by name."""
        generator = torch.Generator(device).manual_seed(seed)
        randn = lambda *shape: torch.randn(shape, generator=generator, device=device).to(dtype)
        return {
            "x": randn(self.batch, self.dim),
            "conv_state": randn(self.batch, self.dim, self.state_len or self.width),
            "weight": randn(self.dim, self.width) / self.width**0.5,
            "bias": randn(self.dim),
            "activation": "silu" if self.silu else None,
        }

    def flops(self):
        """A multiply and an addition per tap; silu counts as an addition, a division and a multiplication."""
        return self.batch * self.dim * (2 * self.width + 3 * self.silu)

    def bytes(self, dtype):
        """x read and y written once, the state read and written once, the filters read once."""
        per_channel = 2 + 2 * (self.state_len or self.width)
        return (self.batch * per_channel + self.width + 1) * self.dim * dtype.itemsize

    def exps(self):
        """Results of the exponential unit: an exponential and a reciprocal per silu."""
        return 2 * self.batch * self.dim if self.silu else 0
