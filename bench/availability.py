"""What becomes of a cell on a machine: measured, proven through Triton's interpreter, or unavailable because …"""

import os
from contextlib import contextmanager
from dataclasses import replace

import torch

from kernels.implementations import why_unavailable
from models.architectures import REGISTRY

PROOF_TOKENS = (
    64  # the interpreter needs milliseconds per operation of a kernel: it proves a prefix
)
PROVED = {
    "prefill": "the outputs on the first {} tokens",
    "decode": "the token decoded after the first {}",
    "train": "losses and gradients on the first {} tokens",
}
NO_GRAPH = {
    "decode": "a CUDA graph needs fixed addresses, and transformers' DynamicCache grows by new tensors; "
    "decode runs under --launch eager",
    "train": "a backward is not captured in a CUDA graph here; train runs under --launch eager",
}


def fate(cell, device):
    """("measured" | "interpreted" | "unavailable", reason) of a cell on a device."""
    device = torch.device(device)
    if cell.launch == "graph" and device.type != "cuda":
        return "unavailable", "CUDA graphs need a CUDA device"
    if cell.launch == "graph" and cell.mode != "prefill":
        return "unavailable", NO_GRAPH[cell.mode]
    if cell.dtype == "tf32" and not _has_tensor_cores(device):
        return "unavailable", "tf32 needs a CUDA device of compute capability 8.0 or newer"
    interpreted = cell.impl == "triton" and device.type == "cpu"
    with _interpreter(interpreted):
        for operator in _operators(cell):
            if reason := why_unavailable(cell.impl, operator, device):
                return "unavailable", f"{operator}: {reason}"
    if interpreted:
        if cell.dtype == "bf16":
            return "unavailable", "Triton's interpreter does not round bfloat16 as a GPU does"
        proved = PROVED[cell.mode].format(proof_length(cell))
        return "interpreted", (
            f"no GPU: Triton's interpreter proved {proved}; it says nothing about time"
        )
    return "measured", ""


def proof_length(cell):
    """How many tokens of a cell go through the interpreter."""
    return min(cell.seqlen, PROOF_TOKENS)


def proof_cell(cell):
    """The small cell whose proof serves `cell`: the first tokens of the first row of the same stream."""
    return replace(cell, seqlen=proof_length(cell), batch=1)


def _operators(cell):
    arch = REGISTRY[cell.arch]
    return arch.operators + (arch.decode_operators if cell.mode == "decode" else ())


def _has_tensor_cores(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def _interpreter(wanted):
    """Ask about availability as the worker will see it: with TRITON_INTERPRET=1 or without."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    if wanted:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
