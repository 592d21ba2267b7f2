"""NVTX ranges of domain `crossover`: round, cell, repetition, layer and operator.

A range costs a function call and two attribute reads when no profiler is attached, and is invisible
to torch.compile. Names are short and of few kinds, so that a profile can be grouped by them;
numbers travel as payload: `round/3`, `cell/mamba-triton-2048-fp32`, `rep`, `layer/5`,
`op/selective_scan`.
"""

import os
from contextlib import nullcontext

import torch

DOMAIN = "crossover"

# Nsight Systems injects its NVTX library through these variables; CROSSOVER_NVTX=1 asks for ranges
# without it.
_SIGNS = ("NVTX_INJECTION64_PATH", "NVTX_INJECTION32_PATH", "CROSSOVER_NVTX")
_NOTHING = nullcontext()

enabled = any(os.environ.get(sign) for sign in _SIGNS)


def annotate(name, category=None, payload=None):
    """A context manager that marks a region for Nsight Systems, or does nothing.

    Args:
        name: what the timeline shows, such as `op/selective_scan`.
        category: `round`, `cell`, `rep`, `layer` or `op`; the part of `name` before the slash if
            not given.
        payload: a number shown with the range, such as a sequence length.
    """
    if not enabled or torch.compiler.is_compiling():
        return _NOTHING
    import nvtx

    category = category or name.split("/")[0]
    return nvtx.annotate(name, domain=DOMAIN, category=category, payload=payload)


def annotate_layers(layers):
    """Mark every forward of `layers` as `layer/<i>`; returns the handles that take the hooks off
    again.

    Without a profiler there are no hooks at all.
    """
    if not enabled:
        return []
    return [handle for i, layer in enumerate(layers) for handle in _hooks(layer, f"layer/{i}")]


def _hooks(layer, name):
    entered = []  # a stack: a layer may call itself, as activation checkpointing does

    def enter(module, args):
        entered.append(annotate(name))
        entered[-1].__enter__()

    def leave(module, args, output):
        if entered:  # empty when a hook before ours raised
            entered.pop().__exit__(None, None, None)

    # always_call: a range must also end when the layer raises
    return (
        layer.register_forward_pre_hook(enter),
        layer.register_forward_hook(leave, always_call=True),
    )
