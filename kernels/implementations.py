"""Which implementation computes which operator, with which kernel, and why one cannot run here.

An *implementation* is one consistent way of computing all operators. Nothing ever falls back: asking for
one that cannot run raises `Unavailable` with the reason and the remedy.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kernels.clash import clash

IMPLEMENTATIONS = ("triton", "cuda", "torch", "cpu", "hf")

# "module:function" and not the function itself, so that a missing package is a reason and not an ImportError.
# Every function takes the operands of its operator's `<operator>_ref` and returns the same. The two operators of
# statistics are ours alone: what no package computes has no entry.
TABLE = {
    "selective_scan": {
        "triton": "kernels.selective_scan.forward:selective_scan_triton",
        "cuda": "kernels.selective_scan.cuda:selective_scan_cuda",
        "torch": "kernels.selective_scan.portable:selective_scan_torch",
        "cpu": "kernels.selective_scan.cpu:selective_scan_cpu",
        "hf": "kernels.selective_scan.hf:selective_scan_hf",
        "reference": "kernels.selective_scan.reference:selective_scan_ref",
    },
    "causal_conv1d": {
        "triton": "kernels.causal_conv1d.forward:causal_conv1d_triton",
        "cuda": "kernels.causal_conv1d.cuda:causal_conv1d_cuda",
        "torch": "kernels.causal_conv1d.portable:causal_conv1d_torch",
        "cpu": "kernels.causal_conv1d.cpu:causal_conv1d_cpu",
        "hf": "kernels.causal_conv1d.hf:causal_conv1d_hf",
        "reference": "kernels.causal_conv1d.reference:causal_conv1d_ref",
    },
    "selective_state_update": {
        "triton": "kernels.selective_scan.decode:selective_state_update_triton",
        "cuda": "kernels.selective_scan.cuda:selective_state_update_cuda",
        "torch": "kernels.selective_scan.portable:selective_state_update_torch",
        "cpu": "kernels.selective_scan.cpu:selective_state_update_cpu",
        "hf": "kernels.selective_scan.hf:selective_state_update_hf",
        "reference": "kernels.selective_scan.reference:selective_state_update_ref",
    },
    "causal_conv1d_update": {
        "triton": "kernels.causal_conv1d.decode:causal_conv1d_update_triton",
        "cuda": "kernels.causal_conv1d.cuda:causal_conv1d_update_cuda",
        "torch": "kernels.causal_conv1d.portable:causal_conv1d_update_torch",
        "cpu": "kernels.causal_conv1d.cpu:causal_conv1d_update_cpu",
        "hf": "kernels.causal_conv1d.hf:causal_conv1d_update_hf",
        "reference": "kernels.causal_conv1d.reference:causal_conv1d_update_ref",
    },
    "causal_attention": {
        "triton": "kernels.causal_attention.forward:causal_attention_triton",
        "cuda": "kernels.causal_attention.cuda:causal_attention_cuda",
        "torch": "kernels.causal_attention.portable:causal_attention_torch",
        "cpu": "kernels.causal_attention.cpu:causal_attention_cpu",
        "hf": "kernels.causal_attention.hf:causal_attention_hf",
        "reference": "kernels.causal_attention.reference:causal_attention_ref",
    },
    "ssd_scan": {
        "triton": "kernels.ssd_scan.forward:ssd_scan_triton",
        "cuda": "kernels.ssd_scan.cuda:ssd_scan_cuda",
        "torch": "kernels.ssd_scan.portable:ssd_scan_torch",
        "cpu": "kernels.ssd_scan.expanded:ssd_scan_cpu",
        "hf": "kernels.ssd_scan.hf:ssd_scan_hf",
        "reference": "kernels.ssd_scan.reference:ssd_scan_ref",
    },
    "attention_statistics": {
        "triton": "kernels.attention_statistics.forward:attention_statistics_triton",
        "torch": "kernels.attention_statistics.portable:attention_statistics_torch",
        "hf": "kernels.attention_statistics.hf:attention_statistics_hf",
        "reference": "kernels.attention_statistics.reference:attention_statistics_ref",
    },
    "scan_statistics": {
        "triton": "kernels.scan_statistics.forward:scan_statistics_triton",
        "torch": "kernels.scan_statistics.portable:scan_statistics_torch",
        "cpu": "kernels.scan_statistics.cpu:scan_statistics_cpu",
        "reference": "kernels.scan_statistics.reference:scan_statistics_ref",
    },
}

# Gradients of the operators that autograd cannot see into, called by the `autograd.py` of their folder. The others
# are differentiated by torch itself, or by the package that they call.
BACKWARD = {
    "selective_scan": {
        "triton": "kernels.selective_scan.backward:selective_scan_backward_triton",
        "cpu": "kernels.selective_scan.cpu_backward:selective_scan_backward_cpu",
    },
    "causal_conv1d": {
        "triton": "kernels.causal_conv1d.backward:causal_conv1d_backward_triton",
        "cpu": "kernels.causal_conv1d.cpu:causal_conv1d_backward_cpu",
    },
    "causal_attention": {
        "triton": "kernels.causal_attention.backward:causal_attention_backward_triton"
    },
}

# The CUDA module whose absence makes `cuda` unavailable, and how to get it. causal_attention needs none:
# torch brings CUDA kernels of its own.
CUDA_PACKAGES = {
    "selective_scan": (
        "selective_scan_cuda",
        "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm",
    ),
    "causal_conv1d": ("causal_conv1d_cuda", "pip install --no-build-isolation causal-conv1d"),
    "selective_state_update": ("mamba_ssm", "pip install --no-build-isolation mamba-ssm"),
    "ssd_scan": ("mamba_ssm", "pip install --no-build-isolation mamba-ssm"),
    "causal_conv1d_update": (
        "causal_conv1d_cuda",
        "pip install --no-build-isolation causal-conv1d",
    ),
}


class Unavailable(RuntimeError):
    """An implementation that cannot run here; the message says why and what would help."""


@dataclass(frozen=True)
class Row:
    """One line of `implementations()`: can `name` compute `operator` here, and with which function."""

    name: str
    operator: str
    available: bool
    reason: str
    kernel: str


def implementations(device=None):
    """What can run on `device` (the first GPU if there is one, else the CPU): a list of `Row`."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for operator, by_name in TABLE.items():
        for name in IMPLEMENTATIONS:
            reason = why_unavailable(name, operator, device)
            kernel = by_name[name].split(":")[1] if name in by_name else ""
            rows.append(Row(name, operator, not reason, reason, kernel))
    return rows


def check_impl(impl):
    """Raise ValueError unless `impl` names an implementation (or the `reference`)."""
    if impl not in (*IMPLEMENTATIONS, "reference"):
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")


def find(operator, impl, device) -> Callable:
    """The function that computes `operator`; ValueError for an unknown `impl`, `Unavailable` for an absent one."""
    check_impl(impl)
    reason = why_unavailable(impl, operator, torch.device(device))
    if reason:
        raise Unavailable(f"{operator}: impl {impl!r} is unavailable, because {reason}")
    return load(TABLE[operator][impl])


def find_backward(operator, impl) -> Callable:
    """The function that computes the gradients of `operator` for an `impl` that is in BACKWARD."""
    return load(BACKWARD[operator][impl])


class _Slot:
    """Where the function of one address lies once it is imported."""

    function = None


_slots = {
    address: _Slot()
    for table in (TABLE, BACKWARD)
    for by_impl in table.values()
    for address in by_impl.values()
}


def load(address):
    """The function at a "module:function" of TABLE or BACKWARD."""
    slot = _slots[address]
    # torch.compile remembers what it has once looked at: there the import comes before the first look
    if torch.compiler.is_compiling() or slot.function is None:
        _import(address)
    return slot.function


@torch.compiler.assume_constant_result  # torch.compile runs it and does not trace it
def _import(address):
    module, function = address.split(":")
    _slots[address].function = getattr(importlib.import_module(module), function)


@torch.compiler.assume_constant_result
def why_unavailable(impl, operator, device):
    """The reason why `impl` cannot compute `operator` on tensors of `device`; empty if it can."""
    device = torch.device(device)
    if impl not in TABLE[operator]:
        others = ", ".join(name for name in TABLE[operator] if name != "reference")
        return f"it has no implementation of that name; those of {operator} are {others}"
    match impl:
        case "hf":
            return clash() or _missing("transformers", "pip install transformers")
        case "cpu":
            if device.type != "cpu":
                return f"its kernels take CPU tensors, got {device.type} tensors"
            return _missing("numba", "pip install numba")
        case "cuda":
            if not torch.cuda.is_available():
                return "there is no CUDA device on this machine"
            if device.type != "cuda":
                return f"its kernels take CUDA tensors, got {device.type} tensors"
            return _missing(*CUDA_PACKAGES[operator]) if operator in CUDA_PACKAGES else ""
        case "triton":
            reason = _missing("triton", "pip install triton")
            if not reason and device.type == "cpu" and not interpreted():
                return (
                    "Triton compiles for GPUs and these are CPU tensors; "
                    "TRITON_INTERPRET=1 runs its kernels through the interpreter (slow, for parity)"
                )
            return reason
    return ""


def interpreted():
    """Whether Triton kernels run through the interpreter (the variable is read when they are imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _missing(module, remedy):
    found = importlib.util.find_spec(module) is not None
    return "" if found else f"the module {module} is not installed ({remedy})"


# of the process and not of a context: autograd computes the gradients of CUDA tensors in a thread of its own
_manifest: dict | None = None


@contextmanager
def recording():
    """Collect the manifest of what really runs: `with recording() as manifest:` fills {operator: kernel}."""
    global _manifest
    before, _manifest = _manifest, {}
    try:
        yield _manifest
    finally:
        _manifest = before


def is_recording():
    """Whether a manifest is being collected (a kernel's name may cost something to find out)."""
    return not torch.compiler.is_compiling() and _manifest is not None


def note(operator, kernel):
    """Called by every implementation with the name of the kernel that it is about to run."""
    if is_recording():
        seen = _manifest.get(operator, kernel).split(" + ")
        _manifest[operator] = " + ".join(dict.fromkeys([*seen, kernel]))
