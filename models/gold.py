"""The gold value of a model's outputs: the same weights, computed in float64 by the definitions."""

import copy

import torch

from models.bind import use
from models.build import assemble
from models.float64 import widen


def gold(model):
    """A float64 twin of `model` on its device, bound to `reference`.

    The twin has the weights of `model` as they are, rounded to its dtype, so that only arithmetic errors are
    measured against it. It is a model of its own: `model` and its binding are not touched.
    """
    weights = dict(model.named_parameters())
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    device = next(model.parameters()).device
    twin = assemble(config, lambda name, shape: weights[name].detach(), torch.float64, device)
    widen(twin)
    use(twin, "reference")
    return twin.eval()
