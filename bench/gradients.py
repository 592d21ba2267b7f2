"""The parity gate of training: losses and gradients before they are timed.

    gold      the model in float64 under `reference`, from the same weights, already rounded to the cell's dtype
    baseline  the model in the cell's dtype under `hf`, or under `reference` where hf cannot run
              (Mamba of more than LONG tokens: under `torch`)
    rule      kernels.accuracy with slack 3: error <= 3 (error(baseline) + eps(float32) norm(gold)), largest and RMS

Compared are the loss of every position and gradients of the mean loss: of the embedding, of the token mixer of the
first and of the last layer with the norm before it, and of the final norm; evenly spaced rows of those that are large,
and of the embedding rows whose tokens occur. Gradients of a prefix are no prefix of the gradients, so every
length and batch has a reference of its own. It is computed layer by layer with activation checkpointing, which
repeats the same arithmetic.

transformers' scan takes each token as a slice, and the gradient of a slice is as large as the whole sequence: its
backward costs the square of the length. So the baseline of long sequences goes through `torch`.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from bench.forward import precision
from bench.parity import judged, under_hf
from kernels.accuracy import errors
from models.architectures import REGISTRY
from models.bind import architecture, final_norm, layers, token_mixer, use
from models.gold import gold as float64_twin

SLACK = 3.0
LONG = 128  # tokens above which the scan of the baseline is that of `torch`
MOST = 1 << 16  # numbers of one gradient that are compared
NORMS = ("norm", "input_layernorm")  # what a block calls the norm before its mixer


@dataclass(frozen=True)
class GradientReference:
    """Gold and baseline of one architecture, dtype, length and batch: {name: tensor}, "loss" among the names.

    Attributes:
        baseline_impl: the implementation that computed the baseline.
    """

    gold: dict
    baseline: dict
    baseline_impl: str


def watched(model):
    """{name: parameter} of those whose gradients are compared."""
    blocks = layers(model)
    found = {"embedding": model.get_input_embeddings().weight}
    for position, block in {"first": blocks[0], "last": blocks[-1]}.items():
        norm = next(block._modules[name] for name in NORMS if name in block._modules)
        found[f"{position} norm"] = norm.weight
        for name, parameter in token_mixer(block).named_parameters():
            found[f"{position} {name}"] = parameter
    return found | {"final norm": final_norm(model).weight}


def compute(model, ids, dtype):
    """The `GradientReference` of a model in the weights of `dtype`.

    Args:
        model: on the device, not bound.
        ids: (batch, seqlen) int64 on the device of the model, seqlen at least 2.
    """
    with precision(dtype):
        # row by row, since float64 and its graph hold more than the cell does; rows count alike in the mean
        twin = float64_twin(model)
        with use(twin, "reference"):
            rows = [_run(twin, row) for row in ids.split(1)]
        gold = {"loss": torch.cat([row["loss"] for row in rows])}
        for name in rows[0].keys() - gold.keys():
            gold[name] = sum(row[name] for row in rows) / len(rows)
        baseline, impl = _baseline(model, ids)
    pick = lambda found: {n: _picked(n, t, ids).cpu().contiguous() for n, t in found.items()}
    return GradientReference(pick(gold), pick(baseline), impl)


def check(reference, logits, gradients, ids):
    """Compare one cell with its reference: the record's `parity`.

    Args:
        logits: (batch, seqlen, vocabulary).
        gradients: {name: gradient} of the `watched` parameters; None where there is none.
        ids: (batch, seqlen) that was trained on.
    """
    pairs = {}
    for name, tensor in {"loss": _losses(logits, ids), **gradients}.items():
        title = name if name == "loss" else f"gradient of {name}"
        if tensor is None:
            pairs[title] = {"max": (math.inf, 0.0)}
            continue
        actual = _picked(name, tensor, ids).cpu()
        pairs[title] = errors(actual, reference.baseline[name], reference.gold[name], SLACK)
    return judged(pairs, ids.shape[1], reference.baseline_impl)


def is_long(arch, seqlen):
    """Whether the baseline is computed under `torch`."""
    return "selective_scan" in REGISTRY[arch].operators and seqlen > LONG


def _baseline(model, ids):
    if is_long(architecture(model), ids.shape[1]):
        with use(model, "torch"):
            return _run(model, ids), "torch"
    found = under_hf(model, lambda: _run(model, ids))
    if found is not None:
        return found, "hf"
    with use(model, "reference"):
        return _run(model, ids), "reference"


def _run(model, ids):
    """{"loss": (batch * (seqlen - 1),), name: gradient of the mean loss} of a bound model."""
    parameters = watched(model)
    with torch.enable_grad(), checkpointing(model):
        hidden = model.base_model(ids, use_cache=False)[0]
        # as transformers does: Mamba's residual stream is float32 in a model of any dtype
        logits = model.lm_head(hidden.to(model.lm_head.weight.dtype))
        losses = _losses(logits, ids)
        found = torch.autograd.grad(losses.mean(), list(parameters.values()))
    return {"loss": losses.detach(), **dict(zip(parameters, found, strict=True))}


def _losses(logits, ids):
    """(batch * (seqlen - 1),): the cross-entropy of every next token, in float32 at least."""
    logits = logits[:, :-1].flatten(0, 1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, ids[:, 1:].flatten(), reduction="none")


@contextmanager
def checkpointing(model):
    """Training mode with activation checkpointing of every block."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


def _picked(name, tensor, ids):
    """Evenly spaced rows of a tensor, so that there are at most MOST numbers."""
    if name == "loss":
        return tensor
    rows = ids.unique() if name == "embedding" else torch.arange(len(tensor), device=tensor.device)
    most = max(1, MOST // tensor[0].numel())
    return tensor[rows[:: -(-len(rows) // most)]]


def save(path, reference):
    """Write a reference so that it is whole or absent."""
    path.parent.mkdir(exist_ok=True)
    sides = {"gold": reference.gold, "baseline": reference.baseline}
    tensors = {f"{side}/{name}": t for side, found in sides.items() for name, t in found.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, {"baseline": reference.baseline_impl})
    part.rename(path)


def load(path):
    """The reference that `save` wrote."""
    with safe_open(path, framework="pt") as file:
        found = {"gold": {}, "baseline": {}}
        for key in file.keys():  # noqa: SIM118
            side, _, name = key.partition("/")
            found[side][name] = file.get_tensor(key)
        return GradientReference(found["gold"], found["baseline"], file.metadata()["baseline"])
