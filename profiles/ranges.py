"""NVTX ranges of domain `crossover`: round, cell, repetition, layer and operator.

A range costs one attribute read when no profiler is attached, and is invisible to torch.compile.
Names are short and of few kinds, so that a profile can be grouped by them; numbers travel as payload:
`round/3`, `cell/mamba-triton-2048-fp32`, `rep`, `layer/5`, `op/selective_scan`.
"""

import os
from contextlib import nullcontext

import torch

DOMAIN = "crossover"

# Nsight Systems injects its NVTX library through these variables; CROSSOVER_NVTX=1 asks for ranges without it.
_SIGNS = ("NVTX_INJECTION64_PATH", "NVTX_INJECTION32_PATH", "CROSSOVER_NVTX")
_NOTHING = nullcontext()

enabled = any(os.environ.get(sign) for sign in _SIGNS)


def annotate(name, category=None, payload=None):
    """A context manager that marks a region for Nsight Systems, or does nothing.

    Args:
        name: what the timeline shows, such as `op/selective_scan`.
        category: `sweep`, `cell`, `layer` or `op`; the part of `name` before the slash if not given.
        payload: a number shown with the range, such as a sequence length.
    """
    if not enabled or torch.compiler.is_compiling():
        return _NOTHING
    import nvtx

    category = category or name.split("/")[0]
    return nvtx.annotate(name, domain=DOMAIN, category=category, payload=payload)


def annotate_layers(layers):
    """Mark every forward of `layers` as `layer/<i>`; returns a function that takes the hooks off again."""
    if not enabled:
        return lambda: None
    handles = []
    for i, layer in enumerate(layers):
        stack = []

        def enter(module, args, i=i, stack=stack):
            stack.append(annotate(f"layer/{i}"))
            stack[-1].__enter__()

        def leave(module, args, output, stack=stack):
            stack.pop().__exit__(None, None, None)

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    return lambda: [handle.remove() for handle in handles]
