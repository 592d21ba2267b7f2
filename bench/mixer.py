"""A whole Mamba mixer as one more operator of `bench.kernels`: projections, convolution, scan and gate.

Ours is the mixer that `models.bind` puts under a model, in the model's layout; mamba-ssm's is its fused function, with
the transpositions that its kernels ask for. Both compute from the parameters of one transformers `MambaMixer`.
"""

import math
from dataclasses import dataclass

import torch

import kernels
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.roofline import Floor, LinearProblem, floor
from kernels.selective_scan.problem import SelectiveScanProblem

NAME = "mamba_mixer"


def public(operator):
    """The function that computes an operator of `bench.kernels`, with its argument `impl`."""
    return mamba_mixer if operator == NAME else getattr(kernels, operator)


def mamba_mixer(hidden_states, mixer, impl="triton"):
    """(batch, seqlen, hidden) of the same shape by the parameters of a `MambaMixer`, under an implementation."""
    from models.mamba_mixer import OperatorMixer, TransformersMixer  # transformers takes seconds

    bound = TransformersMixer(mixer) if impl == "hf" else OperatorMixer(mixer, impl)
    return bound(hidden_states)


def mamba_ssm_mixer(hidden_states, mixer):
    """The same by mamba-ssm, as its class `Mamba` does it."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    batch, seqlen, hidden = hidden_states.shape
    # (2 dim, batch seqlen): the projection writes the layout that its kernels take
    xz = mixer.in_proj.weight @ hidden_states.reshape(-1, hidden).T
    return mamba_inner_fn(
        xz.view(-1, batch, seqlen).transpose(0, 1),
        mixer.conv1d.weight,
        mixer.conv1d.bias,
        mixer.x_proj.weight,
        mixer.dt_proj.weight,
        mixer.out_proj.weight,
        mixer.out_proj.bias,
        -torch.exp(mixer.A_log.float()),
        None,
        None,
        mixer.D.float(),
        delta_bias=mixer.dt_proj.bias.float(),
        delta_softplus=True,
    )


@dataclass(frozen=True)
class MixerProblem:
    """One mixer; `str()` of it is its name in every table."""

    batch: int = 1
    seqlen: int = 2048
    hidden: int = 1024
    dstate: int = 16
    width: int = 4

    def __str__(self):
        return f"b{self.batch}-l{self.seqlen}-h{self.hidden}-n{self.dstate}"

    @property
    def dim(self):
        return 2 * self.hidden

    @property
    def rank(self):
        return math.ceil(self.hidden / 16)

    def inputs(self, dtype=torch.float32, device="cpu", seed=0):
        """{"hidden_states": (batch, seqlen, hidden) of `dtype`, "mixer": a MambaMixer; its A_log and D are float32}."""
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        config = MambaConfig(
            hidden_size=self.hidden, state_size=self.dstate, conv_kernel=self.width, time_step_rank=self.rank
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            mixer = MambaMixer(config, layer_idx=0)
            steps = torch.exp(torch.rand(self.dim) * math.log(100) + math.log(1e-3))
            mixer.dt_proj.bias.copy_(torch.log(torch.expm1(steps)))
            hidden_states = torch.randn(self.batch, self.seqlen, self.hidden)
        exact = {name: getattr(mixer, name).detach().to(device) for name in ("A_log", "D")}
        mixer = mixer.to(device, dtype).requires_grad_(False)
        for name, t in exact.items():
            getattr(mixer, name).data = t.to(torch.promote_types(dtype, torch.float32))
        return {"hidden_states": hidden_states.to(device, dtype), "mixer": mixer}

    def parts(self):
        """The problems that it consists of."""
        tokens = self.batch * self.seqlen
        return (
            LinearProblem(tokens, self.hidden, 2 * self.dim),
            CausalConv1dProblem(self.batch, self.dim, self.seqlen, self.width),
            LinearProblem(tokens, self.dim, self.rank + 2 * self.dstate),
            LinearProblem(tokens, self.rank, self.dim),
            SelectiveScanProblem(self.batch, self.seqlen, self.dim, self.dstate),
            LinearProblem(tokens, self.dim, self.hidden),
        )

    def flops(self):
        return sum(part.flops() for part in self.parts())

    def bytes(self, dtype=torch.float32):
        return sum(part.bytes(dtype) for part in self.parts())

    def exps(self):
        return sum(part.exps() for part in self.parts())


def floor_of(problem, dtype, peaks, direction):
    """The floor of a problem; of a mixer the sum over its parts, bound by what bounds the longest."""
    if not isinstance(problem, MixerProblem):
        return floor(problem, dtype, peaks, direction)
    floors = [floor(part, dtype, peaks, direction) for part in problem.parts()]
    longest = max(floors, key=lambda found: found.seconds)
    missing = tuple(dict.fromkeys(term for found in floors for term in found.missing))
    return Floor(sum(found.seconds for found in floors), longest.bound, {}, missing)


MIXERS = (
    MixerProblem(1, 8192, 1024),
    MixerProblem(8, 2048, 2560),
    MixerProblem(1, 2048, 512),
    MixerProblem(1, 32_768, 1024),
)
