"""Named ranges for profilers: round, cell, repetition, layer and operator.

They are NVTX ranges of domain `crossover` under Nsight Systems, and `record_function` ranges of the same names under
torch.profiler. A range costs a function call and two attribute reads when no profiler is attached, and is invisible
to torch.compile. Names are short and of few kinds, so that a profile can be grouped by them; numbers travel as
payload: `round/3`, `cell/mamba-triton-2048-fp32`, `rep`, `layer/5`, `op/selective_scan`, `op/selective_scan.backward`.
"""

import os
from contextlib import contextmanager, nullcontext

import torch

DOMAIN = "crossover"
RECORDERS = ("nvtx", "torch", "proton")

# Nsight Systems injects its NVTX library through these variables; CROSSOVER_NVTX=1 asks for ranges
# without it.
_SIGNS = ("NVTX_INJECTION64_PATH", "NVTX_INJECTION32_PATH", "CROSSOVER_NVTX")
_NOTHING = nullcontext()

enabled = any(os.environ.get(sign) for sign in _SIGNS)
recorder = "nvtx"


def annotate(name, category=None, payload=None):
    """A context manager that marks a region for the profiler that is attached, or does nothing.

    Args:
        name: what the timeline shows, such as `op/selective_scan`.
        category: `round`, `cell`, `rep`, `layer` or `op`; the part of `name` before the slash if
            not given. Only NVTX has it.
        payload: a number shown with the range, such as a sequence length. Only NVTX has it.
    """
    if not enabled or torch.compiler.is_compiling():
        return _NOTHING
    if recorder == "torch":
        return torch.profiler.record_function(name)
    if recorder == "proton":
        from triton.profiler import scope

        return scope(name)
    import nvtx

    category = category or name.split("/")[0]
    return nvtx.annotate(name, domain=DOMAIN, category=category, payload=payload)


@contextmanager
def record_with(chosen, layers=()):
    """Send the ranges inside to "nvtx", "torch" (torch.profiler), "proton" or to nobody (None), whatever is attached.

    Args:
        layers: of a model that was bound while nothing was recorded, so that they have no ranges yet.
    """
    global enabled, recorder
    if chosen is not None and chosen not in RECORDERS:
        raise ValueError(f"chosen must be one of {', '.join(RECORDERS)} or None, got {chosen!r}")
    before = enabled, recorder
    enabled, recorder = chosen is not None, chosen or recorder
    handles = annotate_layers(layers)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        enabled, recorder = before


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
