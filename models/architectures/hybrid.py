"""Blocks of Mamba and of attention in turn, each followed by an MLP: transformers' Jamba (Lieber et al. 2024) without
experts.
"""

import torch

from models.architectures.base import PLAIN_TEXT, Architecture
from models.architectures.draws import normal
from models.architectures.llama import attention, mlp
from models.architectures.mamba import mixer, mixer_initial


def problems(config, batch, seqlen, decode):
    """The blocks: an MLP in each, attention in one of every `attn_layer_period`, a mixer of Mamba in the others."""
    layers, period = config["num_hidden_layers"], config["attn_layer_period"]
    attending = sum(i % period == config["attn_layer_offset"] for i in range(layers))
    hidden = config["hidden_size"]
    sizes = {
        "dim": config["mamba_expand"] * hidden,
        "dstate": config["mamba_d_state"],
        "width": config["mamba_d_conv"],
        "rank": config["mamba_dt_rank"],
    }
    counted = (
        (layers - attending, mixer(hidden, batch, seqlen, decode, **sizes)),
        (attending, attention(config, batch, seqlen, decode)),
        (layers, mlp(config, batch, seqlen, decode)),
    )
    return [(count, problem) for count, found in counted if count for problem in found]


def initial(name, shape, config, generator):
    """Mixers as Mamba's, every other matrix as LLaMA's: N(0, 0.02²); norms 1."""
    if "norm" in name:
        return torch.ones(shape)
    if ".mamba." in name:
        sizes = {"width": config.mamba_d_conv, "rank": config.mamba_dt_rank}
        return mixer_initial(name, shape, generator, config.num_hidden_layers, **sizes)
    return normal(shape, 0.02, generator)


def _sizes(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads):
    return PLAIN_TEXT | {
        "model_type": "jamba",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_attention_heads,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "use_mamba_kernels": False,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
    }


# the width, depth, heads and MLP of the preset's LLaMA; every other attention is a mixer of the preset's Mamba
PRESETS = {
    "paper-50m": _sizes(512, 1024, 8, 8),
    "matched-50m": _sizes(512, 1024, 8, 8),
    "isoflop-50m": _sizes(512, 1024, 8, 8),
    "tiny": _sizes(64, 128, 2, 4),
}

ARCHITECTURE = Architecture(
    name="hybrid",
    title="the hybrid",
    model_types=("jamba",),
    classes={"jamba": "Jamba"},
    operators=("causal_conv1d", "selective_scan", "causal_attention"),
    decode_operators=("causal_conv1d_update", "selective_state_update"),
    settings=(
        "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "attn_layer_period", "attn_layer_offset", "mamba_d_state", "mamba_d_conv",
        "mamba_expand", "mamba_dt_rank",
    ),
    problems=problems,
    initial=initial,
    presets=PRESETS,
)  # fmt: skip
