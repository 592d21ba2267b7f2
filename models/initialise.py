"""Seeded initial weights that depend on nothing but the seed, the parameter's name and its shape.

transformers' own initialisation changed between versions (5.17 draws Mamba's projections four times wider than the
reference does), so the lab has its own, after each architecture's source:

LLaMA (Touvron et al. 2023, as in transformers' LlamaPreTrainedModel): every matrix N(0, 0.02²), norms 1.

Mamba (Gu & Dao 2023, as in mamba_ssm: modules/mamba_simple.py and models/mixer_seq_simple.py):
    embedding        N(0, 0.02²)
    Linear           U(-1/√fan_in, 1/√fan_in), torch's default: kaiming_uniform with a = √5; biases 0
    out_proj         the same, divided by √n_layers
    conv1d           weight and bias U(-1/√width, 1/√width), torch's default for a depthwise convolution
    A_log, D         log(1..dstate) for every channel (S4D-real), 1
    dt_proj          weight U(-r, r) with r = 1/√dt_rank; bias softplus⁻¹(dt), where log(dt) ~ U(log 0.001, log 0.1)
                     and dt ≥ 0.0001
    norms            1

Each parameter has a generator of its own, so that adding one leaves the others as they were. Values are drawn in
float64 and rounded to float32: torch's float32 normals differ in the last bit between CPUs with and without AVX2.
"""

import hashlib
import math

import torch


def initial(name, shape, config, seed):
    """The initial value of a parameter: float32, on the CPU.

    Args:
        name: its full name in the transformers model, such as `backbone.layers.0.mixer.A_log`.
        shape: its shape.
        config: the model's MambaConfig or LlamaConfig.
        seed: the same seed, name and shape give the same numbers on every machine.
    """
    # 32 bits: torch's CPU generator uses no more of a seed
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    draw = _llama if config.model_type == "llama" else _mamba
    return draw(name, shape, config, generator).float()


def _llama(name, shape, config, generator):
    if "norm" in name:
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return _normal(shape, 0.02, generator)


def _mamba(name, shape, config, generator):
    match name.split(".")[-2:]:
        case ["embeddings", "weight"]:
            return _normal(shape, 0.02, generator)
        case ["norm" | "norm_f", "weight"] | [_, "D"]:
            return torch.ones(shape)
        case [_, "A_log"]:
            dim, dstate = shape
            return torch.arange(1, dstate + 1, dtype=torch.float64).log().expand(dim, dstate)
        case ["conv1d", _]:
            return _uniform(shape, config.conv_kernel**-0.5, generator)
        case ["dt_proj", "weight"]:
            return _uniform(shape, config.time_step_rank**-0.5, generator)
        case ["dt_proj", "bias"]:
            low, high = math.log(0.001), math.log(0.1)
            dt = torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)
            dt = dt.exp().clamp(min=0.0001)
            return dt + torch.log(-torch.expm1(-dt))
        case ["out_proj", "weight"]:
            bound = (shape[1] * config.num_hidden_layers) ** -0.5
            return _uniform(shape, bound, generator)
        case ["in_proj" | "x_proj" | "lm_head", "weight"]:
            return _uniform(shape, shape[1] ** -0.5, generator)
        case ["in_proj" | "out_proj", "bias"]:
            return torch.zeros(shape)
    raise ValueError(f"no initialisation is defined for the Mamba parameter {name}")


def _normal(shape, std, generator):
    return torch.empty(shape, dtype=torch.float64).normal_(0.0, std, generator=generator)


def _uniform(shape, bound, generator):
    return torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
