"""A Mamba or LLaMA model over a sequence that is cut over the processes of a group."""

import torch

from models.bind import architecture, layers, use
from models.parallel import attention
from models.parallel.scan import ParallelMixer


@torch.no_grad()
def forward(model, ids, ranks, impl):
    """The hidden states after the final norm of the tokens that this rank holds.

    Every process of the group calls it with the same weights. Memory is that of a forward over its own tokens; LLaMA
    adds the keys and values of the whole sequence, twice, for one layer at a time.

    Args:
        model: a transformers model of the Mamba or the LLaMA family; what it is bound to is restored before.
        ids: (batch, tokens of this rank) int64, as `ranks.take` gives them.
        ranks: a Ranks; contiguous for Mamba.
        impl: as in `models.bind.use`.

    Returns:
        (batch, tokens of this rank, hidden).

    Raises:
        ValueError: ids of another length, or pieces that Mamba cannot have.
        NotImplementedError: hf's Mamba, whose scan takes no first state.
        kernels.implementations.Unavailable: `impl` cannot run here.
    """
    arch, tokens = architecture(model), ranks.lengths[ranks.rank]
    if ids.shape[1] != tokens:
        raise ValueError(
            f"ids must have the {tokens} tokens of rank {ranks.rank}, got {ids.shape[1]}"
        )
    run = {"mamba": _mamba, "llama": _llama}.get(arch)
    if run is None:
        raise NotImplementedError(
            f"{arch} is not computed over several processes; mamba and llama are"
        )
    with use(model, impl):
        return run(model, ids, ranks, impl)


def _mamba(model, ids, ranks, impl):
    if impl == "hf":
        raise NotImplementedError(
            "impl 'hf' takes no first state of its scan (transformers has none); use impl 'torch'"
        )
    if not ranks.is_contiguous:
        raise ValueError(
            "layout must be one segment a rank, in order, for a scan: Ranks.contiguous"
        )
    bound = [layer.mixer for layer in layers(model)]
    try:
        for layer in layers(model):
            layer.mixer = ParallelMixer(layer.mixer, impl, ranks)
        return model.base_model(ids, use_cache=False)[0]
    finally:
        for layer, mixer in zip(layers(model), bound, strict=True):
            layer.mixer = mixer


def _llama(model, ids, ranks, impl):
    attention.register()
    # the config is a copy that `use` made for this binding, and goes with it
    model.config._attn_implementation = attention.NAME
    positions = ranks.positions(ids.device)
    return model.base_model(ids, position_ids=positions, use_cache=False, ranks=ranks, impl=impl)[0]
