"""Mamba-2 (Dao and Gu 2024): one decay a head, so that a chunk of tokens is two matrix products."""

import math

import torch

from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.roofline import LinearProblem
from kernels.selective_scan.problem import StateUpdateProblem
from kernels.ssd_scan.problem import SsdScanProblem
from models.architectures.base import PLAIN_TEXT, Architecture
from models.architectures.draws import normal, step_bias, uniform


def problems(config, batch, seqlen, decode):
    """The blocks: projections, convolution over inputs, B and C, and the scan."""
    tokens = batch if decode else batch * seqlen
    hidden, dstate, width = config["hidden_size"], config["state_size"], config["conv_kernel"]
    nheads, headdim, ngroups = config["num_heads"], config["head_dim"], config["n_groups"]
    dim = nheads * headdim
    mixed = dim + 2 * ngroups * dstate
    if decode:
        conv = ConvUpdateProblem(batch, mixed, width)
        scan = StateUpdateProblem(batch, dim, dstate, ngroups)
    else:
        conv = CausalConv1dProblem(batch, mixed, seqlen, width=width)
        scan = SsdScanProblem(batch, seqlen, nheads, headdim, dstate, ngroups)
    block = [
        LinearProblem(tokens, hidden, dim + mixed + nheads),
        conv,
        scan,
        LinearProblem(tokens, dim, hidden),
    ]
    return [(config["num_hidden_layers"], problem) for problem in block]


def initial(name, shape, config, generator):
    """As in mamba_ssm (modules/mamba2.py and models/mixer_seq_simple.py).

    As Mamba's but for: A_log = log(A) with A ~ U(1, 16); D = 1; dt_bias = softplus⁻¹(dt) with log(dt) ~ U(log 0.001,
    log 0.1); convolution weights and biases U(-1/√width, 1/√width), torch's default.
    """
    match name.split(".")[-2:]:
        case ["embeddings", "weight"]:
            return normal(shape, 0.02, generator)
        case ["norm" | "norm_f", "weight"] | [_, "D"]:
            return torch.ones(shape)
        case [_, "A_log"]:
            return uniform(shape, 7.5, generator).add(8.5).log()
        case [_, "dt_bias"]:
            return step_bias(shape, generator)
        case ["conv1d", _]:
            return uniform(shape, config.conv_kernel**-0.5, generator)
        case ["out_proj", "weight"]:
            return uniform(shape, (shape[1] * config.num_hidden_layers) ** -0.5, generator)
        case ["in_proj" | "lm_head", "weight"]:
            return uniform(shape, shape[1] ** -0.5, generator)
    raise ValueError(f"no initialisation is defined for the Mamba-2 parameter {name}")


def _sizes(hidden_size, num_hidden_layers, head_dim, state_size, tie_word_embeddings):
    return PLAIN_TEXT | {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "tie_word_embeddings": tie_word_embeddings,
        "expand": 2,
        "head_dim": head_dim,
        "num_heads": 2 * hidden_size // head_dim,
        "state_size": state_size,
        "n_groups": 1,
        "conv_kernel": 4,
        "use_bias": False,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": True,
        "time_step_limit": (0.0, math.inf),
    }


# dstate 128 and heads of 64, as published; with the width and the depth of the preset's Mamba
PRESETS = {
    "paper-50m": _sizes(512, 8, 64, 128, True),
    "matched-50m": _sizes(512, 12, 64, 128, False),
    "isoflop-50m": _sizes(512, 22, 64, 128, False),
    "tiny": _sizes(64, 2, 16, 32, True),
}

ARCHITECTURE = Architecture(
    name="mamba2",
    title="Mamba-2",
    model_types=("mamba2",),
    classes={"mamba2": "Mamba2"},
    operators=("causal_conv1d", "ssd_scan"),
    decode_operators=("causal_conv1d_update", "selective_state_update"),
    settings=(
        "hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel", "num_heads", "head_dim",
        "n_groups",
    ),
    problems=problems,
    initial=initial,
    presets=PRESETS,
)  # fmt: skip
