"""Put an implementation under a transformers model, and take it off again. No global is patched.

with use(model, "triton"), recording() as manifest:
    model(ids)                        # manifest: {"causal_conv1d": "triton...", "selective_scan": "triton..."}
"""

import copy

from kernels.implementations import find
from models import attention
from models.architectures import REGISTRY
from models.mamba2_mixer import Mamba2OperatorMixer
from models.mamba_mixer import OperatorMixer, TransformersMixer
from profiles.ranges import annotate_layers

OPERATORS = {name: found.operators for name, found in REGISTRY.items()}
FAMILIES = {name: found.model_types for name, found in REGISTRY.items()}
MIXERS = ("mixer", "mamba")  # what a block of these models calls its mixer  # fmt: skip


def use(model, impl):
    """Compute the token mixing of `model` with `impl`, until the returned `Binding` is restored.

    The model keeps its parameters: the same objects under the same names. A model that is bound already is restored
    first, and its old Binding has nothing left to do.

    Args:
        model: a transformers model of the Mamba or the LLaMA family (FAMILIES); only this instance is changed.
        impl: `triton`, `cuda`, `torch`, `cpu`, `hf` (transformers' own PyTorch path) or `reference`.

    Raises:
        Unavailable: `impl` cannot compute an operator of this architecture on the model's device.
        ValueError: an unknown `impl`, or a model of neither family.
        In each case the model is left as it was.
    """
    arch = architecture(model)
    device = next(model.parameters()).device
    for operator in OPERATORS[arch]:
        find(operator, impl, device)
    if arch != "llama" and model.config.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"the convolution takes the activation silu, got {model.config.hidden_act!r}"
        )
    if bound := vars(model).get("_crossover_binding"):
        bound.restore()
    return Binding(model, impl, arch)


class Binding:
    """An implementation under a model: `.model`, `.impl`, `.restore()`, and a context manager that restores."""

    def __init__(self, model, impl, arch):
        self.model = model
        self.impl = impl
        # plain data and no closures, so that a deep copy of a bound model can be restored on its own
        self._mixers = []
        self._config = None
        self._exchange_mixers()  # first: it may refuse
        self._handles = annotate_layers(layers(model))
        if "causal_attention" in OPERATORS[arch]:
            self._name_attention()
        model._crossover_binding = self

    def _exchange_mixers(self):
        exchanged = [(*seat, _mixer(getattr(*seat), self.impl)) for seat in _seats(self.model)]
        for layer, name, ours in exchanged:  # all or none: one that cannot be had raises before
            self._mixers.append(getattr(layer, name))
            setattr(layer, name, ours)

    def _name_attention(self):
        # models may share a config: this one gets a copy
        self._config = self.model.config
        config = copy.copy(self._config)
        config._attn_implementation = attention.register(self.impl)
        _set_config(self.model, self._config, config)

    def restore(self):
        """Give the model back its own mixers or attention; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        for (layer, name), mixer in zip(_seats(self.model), self._mixers, strict=False):
            mixer.train(getattr(layer, name).training)
            setattr(layer, name, mixer)
        if self._config is not None:
            _set_config(self.model, self.model.config, self._config)
        self._handles, self._mixers, self._config = [], [], None
        if vars(self.model).get("_crossover_binding") is self:
            del self.model._crossover_binding

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.restore()

    def __repr__(self):
        return f"Binding({type(self.model).__name__}, {self.impl!r})"


def _seats(model):
    """(block, attribute) of every mixer of Mamba or Mamba-2, first to last."""
    return [(b, name) for b in layers(model) for name in MIXERS if name in b._modules]


def _mixer(mixer, impl):
    if impl == "hf":
        return TransformersMixer(mixer)
    return (Mamba2OperatorMixer if hasattr(mixer, "n_groups") else OperatorMixer)(mixer, impl)


def architecture(model):
    """`mamba`, `llama`, `mamba2` or `hybrid`, by the family of a transformers model; ValueError for none of them."""
    found = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for arch, family in FAMILIES.items():
        if found in family:
            return arch
    known = ", ".join(name for family in FAMILIES.values() for name in family)
    raise ValueError(
        f"model must be a transformers Mamba or LLaMA model ({known}), got {found}; other models with causal attention "
        "take attn_implementation='crossover' after `import kernels.huggingface`"
    )


def layers(model):
    """The blocks of a Mamba or LLaMA model, first to last."""
    return list(model.base_model.layers)


def token_mixer(block):
    """The module of a block that mixes its tokens: a mixer, or attention."""
    return next(block._modules[name] for name in (*MIXERS, "self_attn") if name in block._modules)


def final_norm(model):
    """The norm between the last block and the head."""
    names = ("norm_f", "norm", "final_layernorm")
    return next(
        getattr(model.base_model, name) for name in names if hasattr(model.base_model, name)
    )


def _set_config(model, old, new):
    for module in model.modules():
        if vars(module).get("config") is old:
            module.config = new
