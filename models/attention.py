"""Causal attention of our operators under transformers' models, through its `AttentionInterface`.

Registering a name adds an entry and changes none. Only a model whose own config names it uses it.
"""

from kernels.implementations import note
from kernels.observation import tell
from models.huggingface import transformers
from profiles.ranges import annotate


def register(impl):
    """Make `impl` known to transformers; returns the name that goes into `config._attn_implementation`."""
    hf = transformers()
    if impl != "hf":
        from kernels.huggingface import register

        return register(impl)
    name = "crossover-hf"
    hf.AttentionInterface.register(name, _eager)
    hf.AttentionMaskInterface.register(name, hf.masking_utils.eager_mask)
    return name


def _eager(module, query, key, value, attention_mask, scaling, **kwargs):
    """transformers' own eager attention, with its own mask, noted in the manifest."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    note("causal_attention", "transformers.eager")
    tell("causal_attention", q=query, k=key, v=value, softmax_scale=scaling)
    with annotate("op/causal_attention"):
        return eager_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
