"""A model whose every step is float64, for use as the gold value of the accuracy rule.

transformers keeps some steps in float32 whatever the dtype of the model: the norms, Mamba's residual stream and the
rotary table. `widen` lifts the first two. The rotary table stays, because it is part of the model: all
implementations are given the same one.
"""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight in the dtype of the weight."""

    def __init__(self, norm):
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon = norm.variance_epsilon

    def forward(self, hidden_states):
        """hidden_states: (..., hidden); returns the same shape and dtype."""
        mean_square = hidden_states.square().mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(mean_square + self.variance_epsilon)


class GatedRMSNorm(RMSNorm):
    """The same of hidden states times silu(gate), as Mamba-2 has it behind its scan."""

    def forward(self, hidden_states, gate):
        """hidden_states, gate: (..., dim); returns the same shape and dtype."""
        return super().forward(hidden_states * F.silu(gate))


def widen(model):
    """Take the float32 steps out of a float64 transformers model, in place.

    Two are left: `MambaForCausalLM` returns its logits rounded to float32, and the mixers and attention of
    transformers themselves (`hf`) compute in float32; bind the model to `reference`.
    """
    for module in list(model.modules()):
        if hasattr(module, "residual_in_fp32"):
            module.residual_in_fp32 = False
        for name, child in module.named_children():
            kind = type(child).__name__
            if kind.endswith("RMSNormGated"):
                setattr(module, name, GatedRMSNorm(child))
            elif kind.endswith("RMSNorm"):
                setattr(module, name, RMSNorm(child))
