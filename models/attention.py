"""Causal attention of our operators under transformers' LLaMA, through its `AttentionInterface`.

Registering a name adds an entry and changes none. Only a model whose own config names it uses it.
"""

from functools import partial

import torch

from kernels.causal_attention.op import causal_attention
from kernels.implementations import note
from models.huggingface import transformers
from profiles.ranges import annotate


def register(impl):
    """Make `impl` known to transformers; returns the name that goes into `config._attn_implementation`.

    No mask function is registered with it, except for `hf`: transformers then builds no mask at all (it would be
    seqlen x seqlen), and our operators apply the causal one themselves. `check_inputs` refuses the rest.
    """
    hf = transformers()
    name = f"crossover-{impl}"
    if impl == "hf":
        hf.AttentionInterface.register(name, _eager)
        hf.AttentionMaskInterface.register(name, hf.masking_utils.eager_mask)
    else:
        hf.AttentionInterface.register(name, partial(_attend, impl=impl))
    return name


def _attend(module, query, key, value, attention_mask, *, scaling, impl, dropout=0.0, **kwargs):
    """query, key, value: (batch, nheads, seqlen, headdim) views; returns (batch, seqlen, nheads, headdim)."""
    if attention_mask is not None:
        raise ValueError(_NO_MASK.format(impl=impl, got=f"shape {tuple(attention_mask.shape)}"))
    if dropout:
        raise ValueError(
            f"impl {impl!r} has no attention dropout, got {dropout}; set config.attention_dropout to 0"
        )
    o = causal_attention(query, key, value, softmax_scale=scaling, impl=impl)
    return o.transpose(1, 2), None


def _eager(module, *args, **kwargs):
    """transformers' own eager attention, with its own mask, noted in the manifest."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    note("causal_attention", "transformers.eager")
    with annotate("op/causal_attention"):
        return eager_attention_forward(module, *args, **kwargs)


_NO_MASK = (
    "impl {impl!r} applies the causal mask alone, got an attention_mask of {got}; "
    "give sequences of equal length without padding, or use impl 'hf'"
)


def check_inputs(impl):
    """A forward pre-hook for `LlamaModel` that refuses inputs whose mask is more than causal.

    Nothing is computed for the usual input without a mask. A mask of ones, as `generate` makes, is accepted.
    """

    def check(module, args, kwargs):
        given = dict(
            zip(
                ("input_ids", "attention_mask", "position_ids", "past_key_values"),
                args,
                strict=False,
            )
        )
        given |= kwargs
        mask = given.get("attention_mask")
        if mask is not None and not bool(torch.all(mask != 0)):
            raise ValueError(
                _NO_MASK.format(impl=impl, got=f"{int((mask == 0).sum())} padded tokens")
            )
        cache = given.get("past_key_values")
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ValueError(
                f"impl {impl!r} needs a cache that grows, got {type(cache).__name__}; use DynamicCache"
            )
        positions = given.get("position_ids")
        packable = positions is not None and mask is None and cache is None
        if packable and bool((positions.diff(dim=-1) != 1).any()):
            raise ValueError(
                f"impl {impl!r} takes one sequence per row, got position_ids that restart; use impl 'hf'"
            )

    return check
