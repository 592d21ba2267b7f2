"""Which configuration a Triton kernel runs in: what was measured best on this GPU, else its static default.

`python -m bench.tune` measures, on a GPU, every candidate that a kernel names, and writes what won into
`configurations/<gpu>.json` beside this file, with date, versions and revision. A kernel asks `configuration` at each
launch; it never searches by itself, so that a run computes the same on every machine of a kind.

A kernel that can be tuned is a line of KERNELS. Its module has

    candidates(kernel, problem, dtype, generation)    configurations to try, dicts, the static default first
    static_candidates(target)                         the same as `static_cases` yields them, for `profiles.static`
"""

import functools
import json
import math
from contextlib import contextmanager
from pathlib import Path

import torch

from kernels.implementations import interpreted

FOLDER = Path(__file__).parent / "configurations"
# {kernel: (operator, mode in which bench.kernels times it, module)}
KERNELS = {
    "selective_scan_fwd": ("selective_scan", "forward", "kernels.selective_scan.forward"),
    "selective_scan_bwd": ("selective_scan", "backward", "kernels.selective_scan.backward"),
    "selective_state_update": ("selective_state_update", "decode", "kernels.selective_scan.decode"),
    "causal_conv1d_fwd": ("causal_conv1d", "forward", "kernels.causal_conv1d.forward"),
    "causal_conv1d_bwd": ("causal_conv1d", "backward", "kernels.causal_conv1d.backward"),
    "causal_attention_fwd": ("causal_attention", "forward", "kernels.causal_attention.forward"),
    "causal_attention_bwd_dq": ("causal_attention", "backward", "kernels.causal_attention.backward"),
    "causal_attention_bwd_dkdv": ("causal_attention", "backward", "kernels.causal_attention.backward"),
    "causal_attention_decode": ("causal_attention", "decode", "kernels.causal_attention.decode"),
    "attention_statistics": ("attention_statistics", "forward", "kernels.attention_statistics.forward"),
    "ssd_scan_fwd": ("ssd_scan", "forward", "kernels.ssd_scan.forward"),
}  # fmt: skip

# Of the process and no ContextVar: a thread of autograd's, whose context is empty, computes gradients on a GPU.
_chosen: dict = {}
_asked: dict | None = None


def configuration(kernel, default, device, same, near):
    """The configuration of a launch: `default` with what `using` or the table of this GPU says otherwise.

    Args:
        kernel: a key of KERNELS.
        default: {name: value}, the static choice.
        device: the torch device of the operands.
        same: {trait: text or number} that an entry of the table must share, such as dtype and headdim.
        near: {trait: positive number} of which the closest entry is taken, by octaves, such as seqlen.

    Returns:
        A new dict with the keys of `default`, and those that `using` or the table have besides.
    """
    if _asked is not None:
        _asked[kernel] = {"same": same, "near": near, "default": dict(default)}
    if kernel in _chosen:
        return default | _chosen[kernel]
    if interpreted() or device.type != "cuda":
        return dict(default)
    octaves = tuple((name, round(math.log2(max(1, n)))) for name, n in near.items())
    return default | _measured(kernel, _gpu(device), tuple(same.items()), octaves)


@contextmanager
def using(**configurations):
    """Within it every kernel that is named runs, in every thread, as told: `using(causal_attention_fwd={...})`."""
    for kernel in configurations:
        if kernel not in KERNELS:
            raise ValueError(
                f"there is no kernel {kernel!r} to tune; there are {', '.join(KERNELS)}"
            )
    global _chosen
    before, _chosen = _chosen, _chosen | configurations
    try:
        yield
    finally:
        _chosen = before


@contextmanager
def asking():
    """Collect what kernels ask for: {kernel: {"same", "near", "default"}} of the last launch of each."""
    global _asked
    before, _asked = _asked, {}
    try:
        yield _asked
    finally:
        _asked = before


def table_of(gpu):
    """The measured configurations of a GPU by the name that torch gives it: a dict, or None if nobody measured.

    {"gpu", "date", "git", "versions", "entries": [{"kernel", "same", "near", "configuration", "ms", "default_ms"}]},
    with an empty configuration where nothing was better than the default
    """
    path = FOLDER / file_name(gpu)
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is no JSON ({error}); `python -m bench.tune` writes it"
        ) from error


def forget():
    """Read the tables anew: one was written."""
    _measured.cache_clear()


def file_name(gpu):
    """Of the table of a GPU: "NVIDIA H200" has nvidia-h200.json."""
    return "-".join("".join(c if c.isalnum() else " " for c in gpu.lower()).split()) + ".json"


@functools.cache
def _gpu(device):
    return torch.cuda.get_device_name(device)


@functools.lru_cache(maxsize=4096)
def _measured(kernel, gpu, same, octaves):
    """The configuration of the closest entry, {} if there is none with the same traits."""
    same, octaves = dict(same), dict(octaves)
    entries = [
        entry
        for entry in (table_of(gpu) or {"entries": []})["entries"]
        if (entry["kernel"], entry["same"], entry["near"].keys()) == (kernel, same, octaves.keys())
    ]

    def distance(entry):
        return sum(abs(math.log2(n) - octaves[name]) for name, n in entry["near"].items())

    return min(entries, key=distance)["configuration"] if entries else {}
