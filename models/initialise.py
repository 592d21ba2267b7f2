"""Seeded initial weights that depend on nothing but the seed, the parameter's name and its shape.

transformers' own initialisation changed between versions (5.17 draws Mamba's projections four times wider than the
reference does), so the lab has its own, after each architecture's source: `initial` in its file of
`models.architectures`.

Each parameter has a generator of its own, so that adding one leaves the others as they were. Values are drawn in
float64 and rounded to float32: torch's float32 normals differ in the last bit between CPUs with and without AVX2.
"""

import hashlib

import torch

from models.architectures import REGISTRY


def initial(name, shape, config, seed):
    """The initial value of a parameter: float32, on the CPU.

    Args:
        name: its full name in the transformers model, such as `backbone.layers.0.mixer.A_log`.
        shape: its shape.
        config: the model's transformers configuration.
        seed: the same seed, name and shape give the same numbers on every machine.
    """
    # 32 bits: torch's CPU generator uses no more of a seed
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    draw = next(a.initial for a in REGISTRY.values() if config.model_type in a.model_types)
    return draw(name, shape, config, generator).float()
