"""Look inside a model while it runs: hidden states by name, and the operands of every token-mixing operator.

    with observing(model, hidden=on_hidden, mixing=on_mixing):
        model(ids, use_cache=False)

Works for every implementation that `models.bind.use` puts under the model, hf included, and gives the same names for
both architectures: `embedding`, `block 1` to `block n`, `final norm`. (The indices of transformers' own
`output_hidden_states` differ by one between the two: Mamba's tuple has no embedding.) Callbacks get the tensors as
they pass, so nothing is kept that they do not keep.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kernels.observation import observing_operators
from models.bind import OPERATORS, architecture, final_norm, layers, token_mixer

MIXING = ("selective_scan", "causal_attention", "ssd_scan")


@dataclass(frozen=True)
class Mixing:
    """One call of the operator that mixes the tokens of a block.

    Attributes:
        layer: `block 1` to `block n`.
        operator: `causal_attention`, `selective_scan` or `ssd_scan`.
        operands: by the names of the public operator's arguments: q and k after RoPE, v, softmax_scale; or u (after
            convolution and activation), delta (before bias and softplus), A, B and C (batch, ngroups, dstate, seqlen),
            D, z, delta_bias, delta_softplus; or those of `ssd_scan`.
        out_weight: (hidden, nheads * headdim or dim), the projection of the operator's output into the residual stream.
    """

    layer: str
    operator: str
    operands: dict
    out_weight: torch.Tensor


def layer_names(model):
    """The names of what `observing` shows, first to last."""
    return ["embedding", *(f"block {i}" for i in range(1, len(layers(model)) + 1)), "final norm"]


@contextmanager
def observing(model, hidden=None, mixing=None):
    """Call `hidden(name, tensor)` and `mixing(Mixing)` during the forwards of `model`.

    Args:
        hidden: gets (batch, seqlen, hidden): what enters the first block, what every block returns, and what the
            final norm returns.
        mixing: gets a `Mixing` just before the operator computes.
    """
    # `triton` and `cpu` compute Mamba-2's scan by Mamba's, which then is no operator of the architecture
    mixed = set(MIXING) & set(OPERATORS[architecture(model)])
    blocks = layers(model)
    running = []  # index of the block that computes

    def enter(index):
        def hook(module, args, kwargs):
            running[:] = [index]
            if hidden is not None and index == 0:
                hidden("embedding", args[0] if args else kwargs["hidden_states"])

        return hook

    def leave(index):
        def hook(module, args, output):
            if hidden is not None:
                hidden(f"block {index + 1}", output[0] if isinstance(output, tuple) else output)

        return hook

    def visit(operator, operands):
        if mixing is not None and operator in mixed and running:
            mixer = token_mixer(blocks[running[0]])
            out = mixer.o_proj if hasattr(mixer, "o_proj") else mixer.out_proj
            mixing(Mixing(f"block {running[0] + 1}", operator, operands, out.weight))

    handles = []
    try:
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(enter(index), with_kwargs=True))
            handles.append(block.register_forward_hook(leave(index)))
        if hidden is not None:
            final = lambda module, args, output: hidden("final norm", output)
            handles.append(final_norm(model).register_forward_hook(final))
        with observing_operators(visit):
            yield
    finally:
        for handle in handles:
            handle.remove()
