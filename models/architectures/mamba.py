"""Mamba (Gu and Dao 2023), and Falcon-Mamba, which adds norms of dt, B and C."""

import math

import torch

from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.roofline import LinearProblem
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem
from models.architectures.base import Architecture
from models.architectures.draws import normal, state_rates, step_bias, uniform


def problems(config, batch, seqlen, decode):
    """The blocks: one mixer each."""
    hidden = config["hidden_size"]
    sizes = {
        "dim": config["expand"] * hidden,
        "dstate": config["state_size"],
        "width": config["conv_kernel"],
        "rank": config.get("time_step_rank") or math.ceil(hidden / 16),
    }
    block = mixer(hidden, batch, seqlen, decode, **sizes)
    return [(config["num_hidden_layers"], problem) for problem in block]


def mixer(hidden, batch, seqlen, decode, *, dim, dstate, width, rank):
    """[problem] of one mixer: its projections, the convolution and the scan."""
    tokens = batch if decode else batch * seqlen
    if decode:
        conv, scan = ConvUpdateProblem(batch, dim, width), StateUpdateProblem(batch, dim, dstate)
    else:
        conv = CausalConv1dProblem(batch, dim, seqlen, width=width)
        scan = SelectiveScanProblem(batch, seqlen, dim, dstate)
    return [
        LinearProblem(tokens, hidden, 2 * dim),
        conv,
        LinearProblem(tokens, dim, rank + 2 * dstate),
        LinearProblem(tokens, rank, dim),
        scan,
        LinearProblem(tokens, dim, hidden),
    ]


def initial(name, shape, config, generator):
    """As in mamba_ssm (modules/mamba_simple.py and models/mixer_seq_simple.py).

    embedding        N(0, 0.02²)
    Linear           U(-1/√fan_in, 1/√fan_in), torch's default: kaiming_uniform with a = √5; biases 0
    out_proj         the same, divided by √n_layers
    conv1d           weight and bias U(-1/√width, 1/√width), torch's default for a depthwise convolution
    A_log, D         log(1..dstate) for every channel (S4D-real), 1
    dt_proj          weight U(-r, r) with r = 1/√dt_rank; bias softplus⁻¹(dt), where log(dt) ~ U(log 0.001, log 0.1)
                     and dt ≥ 0.0001
    norms            1
    """
    match name.split(".")[-2:]:
        case ["embeddings", "weight"]:
            return normal(shape, 0.02, generator)
        case ["norm" | "norm_f", "weight"]:
            return torch.ones(shape)
        case ["lm_head", "weight"]:
            return uniform(shape, shape[1] ** -0.5, generator)
    sizes = {"width": config.conv_kernel, "rank": config.time_step_rank}
    return mixer_initial(name, shape, generator, config.num_hidden_layers, **sizes)


def mixer_initial(name, shape, generator, layers, *, width, rank):
    """The parameters of a mixer, in a model of `layers` blocks."""
    match name.split(".")[-2:]:
        case [_, "D"]:
            return torch.ones(shape)
        case [_, "A_log"]:
            return state_rates(shape)
        case ["conv1d", _]:
            return uniform(shape, width**-0.5, generator)
        case ["dt_proj", "weight"]:
            return uniform(shape, rank**-0.5, generator)
        case ["dt_proj", "bias"]:
            return step_bias(shape, generator)
        case ["out_proj", "weight"]:
            return uniform(shape, (shape[1] * layers) ** -0.5, generator)
        case ["in_proj" | "x_proj", "weight"]:
            return uniform(shape, shape[1] ** -0.5, generator)
        case ["in_proj" | "out_proj", "bias"]:
            return torch.zeros(shape)
    raise ValueError(f"no initialisation is defined for the Mamba parameter {name}")


ARCHITECTURE = Architecture(
    name="mamba",
    title="Mamba",
    model_types=("mamba", "falcon_mamba"),
    classes={"mamba": "Mamba", "falcon_mamba": "FalconMamba"},
    operators=("causal_conv1d", "selective_scan"),
    decode_operators=("causal_conv1d_update", "selective_state_update"),
    settings=(
        "hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel", "expand", "time_step_rank",
    ),
    problems=problems,
    initial=initial,
)  # fmt: skip
