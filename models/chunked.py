"""Chunked prefill: a prompt of any length in chunks, with the state or the cache carried from one to the next.

Embedding, norms, projections and MLP see one chunk at a time, and only the last position goes through the head. What
is left of memory is what an architecture must remember: Mamba the last inputs of its convolutions and the states of its
scans, O(chunk) in all; LLaMA the keys and values of every token before, O(seqlen) for the cache and O(chunk) for the
rest. (Attention without a fused kernel for a chunk at the end of a longer sequence adds chunk x seqlen: a mask under
`torch` and `cpu`, the scores too under `hf`.)

The arithmetic is that of a single pass: convolution and scan continue from their states, and attention's mask is
aligned bottom-right.
"""

import inspect
from dataclasses import dataclass
from functools import cache as memoised

import torch


@dataclass(frozen=True)
class Prefilled:
    """What a prompt leaves behind.

    Attributes:
        logits: (batch, 1, vocabulary) at the last position, or (batch, seqlen, vocabulary).
        cache: transformers' cache after the last token; decoding can go on from it, with room for `spare` tokens.
    """

    logits: torch.Tensor
    cache: object


@torch.no_grad()
def prefill(model, ids, chunk, logits="last", *, spare=0, after_chunk=None):
    """Read `ids` in chunks of `chunk` tokens, the last one shorter where it does not divide the length.

    Args:
        model: a transformers model, bound to any implementation (`models.bind.use`).
        ids: (batch, seqlen) int64 on the device of the model.
        chunk: tokens a chunk, at least 1; one of at least seqlen is a single pass that keeps its cache.
        logits: `last` or `all`: the positions whose logits are computed.
        spare: tokens beyond the prompt that the cache has room for.
        after_chunk: called after every chunk with the number of tokens read so far.

    Raises:
        ValueError: a chunk, logits or ids that are not as above.
        NotImplementedError: the implementation cannot go on from a state (hf's Mamba, but for chunks of one token).
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1 token, got {chunk!r}")
    if logits not in ("last", "all"):
        raise ValueError(f"logits must be last or all, got {logits!r}")
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(f"ids must be (batch, seqlen), at least one token, got {tuple(ids.shape)}")
    from models.kv_cache import reserved_cache

    seqlen = ids.shape[1]
    cache = reserved_cache(model.config, seqlen + spare)
    arguments = {"use_cache": True, cache_argument(type(model)): cache}
    found = []
    for start in range(0, seqlen, chunk):
        part = ids[:, start : start + chunk]
        if logits == "all":
            found.append(model(part, **arguments).logits)
        elif start + chunk >= seqlen:
            found.append(model(part, logits_to_keep=1, **arguments).logits)
        else:
            model.base_model(part, **arguments)
        if after_chunk is not None:
            after_chunk(min(start + chunk, seqlen))
    return Prefilled(found[0] if len(found) == 1 else torch.cat(found, 1), cache)


def cache_tensors(cache):
    """The tensors of a cache: keys and values, or states of convolution and recurrence, layer by layer."""
    found = []
    for layer in cache.layers:
        found += [getattr(layer, name, None) for name in ("keys", "values")]
        for name in ("conv_states", "recurrent_states"):
            found += getattr(layer, name, {}).values()
    return [t for t in found if t is not None]


@memoised
def cache_argument(model_class):
    """What transformers' forward of a model calls its cache."""
    names = inspect.signature(model_class.forward).parameters
    return "cache_params" if "cache_params" in names else "past_key_values"
