"""Writes a model as llama.cpp's converter does, so that reading GGUF is tested without a large file."""

import numpy as np
import pytest

from models.build import build
from models.presets import PRESETS, Preset

SMALL = {
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "time_step_rank": 2},
    "llama": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
              "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip


def small(arch, seed=0):
    """A model of two layers, in LLaMA with two heads for each of keys and values, and untied."""
    tiny = PRESETS["tiny"]
    preset = Preset("small", mamba=tiny.mamba | SMALL["mamba"], llama=tiny.llama | SMALL["llama"])
    return build(arch, preset, seed=seed)


def write_gguf(model, path, quantised=(), **fields):
    """Write `model` to `path` in float32; 2-D weights whose name holds one of `quantised` as Q8_0."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    if arch == "llama":
        writer.add_context_length(config.max_position_embeddings)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    for key, value in fields.items():
        writer.add_string(f"{arch}.{key.replace('_', '.')}", value)
    names = gguf.get_tensor_name_map(_arch(gguf, arch), config.num_hidden_layers)
    for name, weight in model.named_parameters():
        base, _, suffix = name.rpartition(".")
        if suffix in ("A_log", "D"):
            base, suffix = name, ""
        stored = _stored(name, weight.detach().numpy(), config)
        target = names.get_name(base) + (f".{suffix}" if suffix else "")
        if any(part in name for part in quantised):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _arch(gguf, name):
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _stored(name, weight, config):
    """A weight in llama.cpp's layout: rotary pairs side by side, A itself, the convolution without its middle axis."""
    for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if part in name:
            pairs = weight.reshape(getattr(config, heads), 2, -1, weight.shape[1])
            return pairs.swapaxes(1, 2).reshape(weight.shape)
    if name.endswith("A_log"):
        return -np.exp(weight)
    if name.endswith("conv1d.weight"):
        return weight.squeeze(1)
    return weight
