"""The models that the lab compares, by name: every size and every setting that changes an output.

`paper-50m` is the pair of arXiv 2601.01237 exactly as written: called 50M both, yet 53.7 M and 29.9 M parameters,
because transformers ties Mamba's head to its embedding and not LLaMA's. `matched-50m` is the fair pair: both heads
untied, and as many Mamba layers as bring the sizes within 1.2 %. `isoflop-50m` is the pair of equal work: as many
Mamba layers as bring the FLOPs of a forward over 4,096 tokens (projections, attention, scan and convolution, without
embedding and head) within 1.4 % of LLaMA's; at other lengths they differ, because attention is quadratic: at 2,048
tokens Mamba does 1.30 times LLaMA's FLOPs, at 8,192 tokens 0.70 times. `tiny` is for tests and smoke runs.
"""

from dataclasses import dataclass

ARCHITECTURES = ("mamba", "llama")


@dataclass(frozen=True)
class Preset:
    """Keyword arguments of transformers' `MambaConfig` and `LlamaConfig` under one name."""

    name: str
    mamba: dict
    llama: dict


# No special tokens: the 32,000 ids are plain text, and generation must not stop at one of them.
_SHARED = {
    "vocab_size": 32_000,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _mamba(hidden_size, num_hidden_layers, tie_word_embeddings):
    return _SHARED | {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "tie_word_embeddings": tie_word_embeddings,
        "state_size": 16,
        "expand": 2,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": True,
    }


def _llama(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads):
    return _SHARED | {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("paper-50m", mamba=_mamba(512, 8, True), llama=_llama(512, 1024, 8, 8)),
        Preset("matched-50m", mamba=_mamba(512, 12, False), llama=_llama(512, 1024, 8, 8)),
        Preset("isoflop-50m", mamba=_mamba(512, 22, False), llama=_llama(512, 1024, 8, 8)),
        Preset("tiny", mamba=_mamba(64, 2, True), llama=_llama(64, 128, 2, 4)),
    )
}
