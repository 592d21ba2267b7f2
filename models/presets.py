"""The models that the lab compares, by name: every size and every setting that changes an output.

Small pairs of one width:
    paper-50m    the pair of arXiv 2601.01237 exactly as written: called 50M both, yet 53.7 M and 29.9 M parameters,
                 because transformers ties Mamba's head to its embedding and not LLaMA's
    matched-50m  the fair pair: both heads untied, and as many Mamba layers as bring the sizes within 1.2 %
    isoflop-50m  the pair of equal work: as many Mamba layers as bring the FLOPs of a forward over 4,096 tokens
                 (projections, attention, scan and convolution, without embedding and head) within 1.4 % of LLaMA's;
                 at other lengths they differ, because attention is quadratic: at 2,048 tokens Mamba does 1.30 times
                 LLaMA's FLOPs, at 8,192 tokens 0.70 times
    tiny         for tests and smoke runs

Published models, of one architecture each, with the shapes of their config.json and random weights:
    mamba-130m, -370m, -790m, -1.4b, -2.8b   Gu & Dao 2023, table of scaling laws; state-spaces/mamba-*
    falcon-mamba-7b                          Zuo et al. 2024; tiiuae/falcon-mamba-7b (transformers' FalconMamba)
    llama-2-7b, llama-2-70b                  Touvron et al. 2023; meta-llama/Llama-2-*
    llama-3-8b                               Dubey et al. 2024; meta-llama/Meta-Llama-3-8B

Pairs around them:
    7b, 8b                      falcon-mamba-7b with llama-2-7b and with llama-3-8b: two published models each
    130m, 370m, 790m, 1.4b, 2.8b  the published Mamba, and a LLaMA of its width (inner width 8/3 of it, heads of 64
                 or 128 numbers, the same vocabulary and tied head) with as many layers as come nearest to equal FLOPs
                 at 4,096 tokens, counted as for isoflop-50m (within 1.8 %)
    70b          llama-2-70b, and a Mamba of its width, found in the same way
The companions of the last two lines are ours: no such models were published.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from models.architectures import REGISTRY
from models.architectures.base import PLAIN_TEXT

ARCHITECTURES = tuple(REGISTRY)
PAIR = ("mamba", "llama")  # what the lab compares unless it is told otherwise


@dataclass(frozen=True)
class Preset:
    """Keyword arguments of transformers' configurations under one name; None for an architecture that it lacks.

    A `model_type` among them names another of the architecture's types than its first. `others` has the settings of
    further architectures by name, as their files in `models.architectures` give them.
    """

    name: str
    mamba: dict | None
    llama: dict | None
    others: dict = field(default_factory=dict)

    @property
    def archs(self):
        """The architectures that it has."""
        return tuple(arch for arch in ARCHITECTURES if self.of(arch) is not None)

    def of(self, arch):
        """The settings of an architecture, or None."""
        return getattr(self, arch) if arch in PAIR else self.others.get(arch)

    def changed(self, change: Callable):
        """The same with `change(settings)` for the settings of every architecture."""
        found = {arch: change(self.of(arch)) for arch in self.archs}
        pair = {arch: found.pop(arch) for arch in PAIR if arch in found}
        return replace(self, **pair, others=found)

    def with_positions(self, longest):
        """The same with at least `longest` positions wherever they are counted: a rotary table has no end."""
        name = "max_position_embeddings"
        longer = lambda settings: (
            settings | ({name: max(longest, settings[name])} if name in settings else {})
        )
        return self.changed(longer)


def _mamba(hidden_size, num_hidden_layers, tie_word_embeddings):
    return PLAIN_TEXT | {
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
    return PLAIN_TEXT | {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }


# 4,096 and 8,192 positions were trained on (Llama 2 and 3); random weights know none, and rotary angles have no table
_ANY_LENGTH = {"max_position_embeddings": 1 << 20}


def _published_mamba(hidden_size, num_hidden_layers):
    """As the config.json of state-spaces/mamba-*: 50,277 GPT-NeoX ids, padded to a multiple of 8."""
    return _mamba(hidden_size, num_hidden_layers, True) | {"vocab_size": 50_280}


def _companion(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads):
    """A LLaMA beside a published Mamba: of its vocabulary, the head tied as well."""
    sizes = _llama(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads)
    return sizes | _ANY_LENGTH | {"vocab_size": 50_280, "tie_word_embeddings": True}


# published with `expand` 16 beside intermediate_size 8192, which is what counts: twice the width
_FALCON_MAMBA_7B = _mamba(4096, 64, False) | {
    "model_type": "falcon_mamba",
    "vocab_size": 65_024,
    "time_step_rank": 256,
    "mixer_rms_eps": 1e-6,
}
_LLAMA_2_7B = (
    _llama(4096, 11_008, 32, 32)
    | _ANY_LENGTH
    | {
        "rms_norm_eps": 1e-5,
    }
)
_LLAMA_3_8B = (
    _llama(4096, 14_336, 32, 32)
    | _ANY_LENGTH
    | {
        "vocab_size": 128_256,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    }
)
_LLAMA_2_70B = (
    _llama(8192, 28_672, 80, 64)
    | _ANY_LENGTH
    | {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    }
)
_MAMBAS = {
    "130m": _published_mamba(768, 24),
    "370m": _published_mamba(1024, 48),
    "790m": _published_mamba(1536, 48),
    "1.4b": _published_mamba(2048, 48),
    "2.8b": _published_mamba(2560, 64),
}
_COMPANIONS = {
    "130m": _companion(768, 2048, 9, 12),
    "370m": _companion(1024, 2816, 19, 16),
    "790m": _companion(1536, 4096, 21, 24),
    "1.4b": _companion(2048, 5632, 21, 32),
    "2.8b": _companion(2560, 6912, 30, 20),
}


def _others(name):
    found = {arch: architecture.presets.get(name) for arch, architecture in REGISTRY.items()}
    return {arch: settings for arch, settings in found.items() if settings is not None}


PRESETS = {
    preset.name: replace(preset, others=_others(preset.name))
    for preset in (
        Preset("paper-50m", mamba=_mamba(512, 8, True), llama=_llama(512, 1024, 8, 8)),
        Preset("matched-50m", mamba=_mamba(512, 12, False), llama=_llama(512, 1024, 8, 8)),
        Preset("isoflop-50m", mamba=_mamba(512, 22, False), llama=_llama(512, 1024, 8, 8)),
        Preset("tiny", mamba=_mamba(64, 2, True), llama=_llama(64, 128, 2, 4)),
        *(Preset(name, mamba=_MAMBAS[name], llama=_COMPANIONS[name]) for name in _MAMBAS),
        Preset("7b", mamba=_FALCON_MAMBA_7B, llama=_LLAMA_2_7B),
        Preset("8b", mamba=_FALCON_MAMBA_7B, llama=_LLAMA_3_8B),
        Preset("70b", mamba=_mamba(8192, 169, False), llama=_LLAMA_2_70B),
        *(Preset(f"mamba-{name}", mamba=_MAMBAS[name], llama=None) for name in _MAMBAS),
        Preset("falcon-mamba-7b", mamba=_FALCON_MAMBA_7B, llama=None),
        Preset("llama-2-7b", mamba=None, llama=_LLAMA_2_7B),
        Preset("llama-3-8b", mamba=None, llama=_LLAMA_3_8B),
        Preset("llama-2-70b", mamba=None, llama=_LLAMA_2_70B),
    )
}
