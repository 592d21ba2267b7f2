"""The floor time of an operator's problem, or of a model's pass, on the measured peaks of a machine.

No kernel that does all of the counted work is faster than its floor: the longest of three times, since a
perfect kernel overlaps them.

    memory        bytes / copy bandwidth. Least traffic of a fused kernel: every operand is read once, every result
                  written once, nothing in between goes to memory. The bandwidth is that of a copy, and counts the
                  bytes that it reads plus those that it writes.
    matrix        matrix FLOPs / matrix rate of the dtype. A multiplication and an addition are two FLOPs. Matrix work
                  is the two products of attention (and of its statistics, whose scores are formed twice) and the
                  linear projections: everything that tensor cores take.
                  Causal attention counts the scores that the mask keeps and no others, although a kernel computes
                  the whole tiles on the diagonal.
    exponential   results / rate of the exponential unit. exp, log (softplus) and reciprocal (sigmoid) are one result
                  each, since a GPU has one unit for all of them: one a state and token in the scan, one a kept score
                  in attention, two a softplus, two a silu.

fp32 means results of float32 accuracy. Tensor cores reach it with three tf32 products, so the rate of fp32 is the
larger of the float32 rate and a third of the tf32 rate.

Scan and convolution are vector work: their `flops()` have no term, because no peak of vector arithmetic is
measured. On a GPU their exponentials and bytes take longer anyway. A CPU has no exponential unit: there the term is
missing, and the floor of a scan is that of its bytes, far below what any CPU reaches.

Backward is the gradients alone, from the operands and the gradient of the output: operands and output gradients are
read once, gradients are written once, and what a fused kernel recomputes (attention's scores and their exponentials,
the scan's states) is counted, since memory without it is not O(seqlen). A projection has two products in the
backward, one for its input and one for its weight. Decoding is one token: every weight, the states or the cache are
read once, and states written once.

A share of more than 100 % is possible where a kernel does less than is counted here: it computes exponentials by a
polynomial beside the unit, or its operands are still in a cache that the copy overflows.
"""

import math
from dataclasses import dataclass

import torch

from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Floor:
    """The least time of some work on a machine.

    Attributes:
        seconds: the floor.
        bound: the term that takes longest: "memory", "matrix" or "exponential".
        terms: {term: seconds} of the work that there is and whose peak is known.
        missing: terms with work but without a measured peak; the floor does not contain them, so it may be low.
    """

    seconds: float
    bound: str
    terms: dict
    missing: tuple = ()


@dataclass(frozen=True)
class LinearProblem:
    """A linear projection: (tokens, in_features) times the weight (out_features, in_features)."""

    tokens: int
    in_features: int
    out_features: int

    def flops(self):
        """A multiplication and an addition per token and weight."""
        return 2 * self.tokens * self.in_features * self.out_features

    def bytes(self, dtype):
        """Input and weight read once, output written once."""
        weight = self.in_features * self.out_features
        return (self.tokens * (self.in_features + self.out_features) + weight) * dtype.itemsize

    def exps(self):
        return 0

    def backward_flops(self):
        """The product for the input's gradient and that for the weight's."""
        return 2 * self.flops()

    def backward_bytes(self, dtype):
        """Input, weight and the output's gradient read once, the gradients of input and weight written once."""
        weight = self.in_features * self.out_features
        activations = self.tokens * (2 * self.in_features + self.out_features)
        return (activations + 2 * weight) * dtype.itemsize

    def backward_exps(self):
        return 0


MATRIX_WORK = (CausalAttentionProblem, AttentionStatisticsProblem, LinearProblem)
PASSES = ("forward", "backward")
MODES = {"prefill": ("forward",), "decode": ("forward",), "train": PASSES}


def floor(problem, dtype, peaks, direction="forward"):
    """The floor of one problem.

    Args:
        problem: a problem of an operator (`kernels/*/problem.py`) or a `LinearProblem`.
        dtype: "fp64", "fp32", "tf32" (float32 data, tensor cores in tf32), "bf16" or "fp16".
        peaks: {"copy_bytes_per_s": float, "matmul_flops": {dtype: FLOP/s}, "exp_per_s": float}, as measured by
            `bench.machine`; what is absent or None is left out of the floor, which says so.
        direction: "forward", or "backward" for the gradients alone.

    Raises:
        ValueError: unknown dtype or direction, a problem without a backward, or not one of the peaks that it needs.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    flops, bytes_, exps = work(problem, DTYPES[dtype], direction)
    demands = (
        ("memory", bytes_, peaks.get("copy_bytes_per_s")),
        (
            "matrix",
            flops if isinstance(problem, MATRIX_WORK) else 0,
            _matrix_rate(dtype, peaks.get("matmul_flops") or {}),
        ),
        ("exponential", exps, peaks.get("exp_per_s")),
    )
    terms = {term: work / peak for term, work, peak in demands if work and peak}
    missing = tuple(term for term, work, peak in demands if work and not peak)
    if not terms:
        raise ValueError(f"no floor of {problem}: none of the peaks it needs is in {peaks}")
    bound = max(terms, key=terms.get)
    return Floor(terms[bound], bound, terms, missing)


def work(problem, dtype, direction="forward"):
    """(FLOPs, bytes, exponentials) of a problem in a torch dtype; ValueError for a problem without that direction."""
    if direction not in PASSES:
        raise ValueError(f"direction must be one of {', '.join(PASSES)}, got {direction!r}")
    prefix = "backward_" if direction == "backward" else ""
    if not hasattr(problem, f"{prefix}flops"):
        raise ValueError(f"{type(problem).__name__} has no {direction}")
    flops, bytes_, exps = (
        getattr(problem, f"{prefix}{name}") for name in ("flops", "bytes", "exps")
    )
    return flops(), bytes_(dtype), exps()


def _matrix_rate(dtype, rates):
    """FLOP/s of products with the accuracy of `dtype`; None if it was not measured."""
    if dtype == "fp32":
        return max(rates.get("fp32") or 0, (rates.get("tf32") or 0) / 3) or None
    return rates.get(dtype)


def model_floor(config, arch, batch, seqlen, dtype, peaks, logits="last", mode="prefill"):
    """The floor of one pass of a model: the sum of the floors of its operators and projections.

    Projections with a common input (q, k and v; gate and up) count as one that reads it once. Embedding, norms,
    residuals, rotary embedding, the gate of the MLP, the loss and what an optimizer does are taken as fused into
    their neighbours, at no cost.

    Args:
        config: the sizes by the names of transformers' `MambaConfig` or `LlamaConfig`, in a dict.
        arch: "mamba" or "llama".
        batch, seqlen: tokens of the prompt; in decoding, the length of the context with the new token.
        dtype, peaks: as in `floor`.
        logits: positions that go through the head: "last" or "all"; training takes all.
        mode: "prefill" (a forward over the prompt), "decode" (one token) or "train" (forward and backward).

    Returns:
        Floor: `seconds` is the sum of the parts' floors, `terms` are sums over the parts as well, and `bound` is the
        largest of them; so `seconds` is more than the largest term where the parts have different bounds.
    """
    steps = model_problems(config, arch, batch, seqlen, logits, mode)
    floors = [
        (count, floor(problem, dtype, peaks, direction))
        for count, problem in steps
        for direction in MODES[mode]
    ]
    terms, missing = {}, {}
    for count, part in floors:
        missing |= dict.fromkeys(part.missing)
        for term, seconds in part.terms.items():
            terms[term] = terms.get(term, 0.0) + count * seconds
    seconds = sum(count * part.seconds for count, part in floors)
    return Floor(seconds, max(terms, key=terms.get), terms, tuple(missing))


def model_problems(config, arch, batch, seqlen, logits="last", mode="prefill"):
    """[(how often, problem)] of one pass; arguments as in `model_floor`."""
    if arch not in _LAYERS:
        raise ValueError(f"arch must be one of {', '.join(_LAYERS)}, got {arch!r}")
    if logits not in ("last", "all"):
        raise ValueError(f"logits must be last or all, got {logits!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    everywhere = mode == "train" or (mode == "prefill" and logits == "all")
    positions = batch * (seqlen if everywhere else 1)
    layers = config["num_hidden_layers"]
    decode = mode == "decode"
    steps = [(layers, problem) for problem in _LAYERS[arch](config, batch, seqlen, decode)]
    return [*steps, (1, LinearProblem(positions, config["hidden_size"], config["vocab_size"]))]


def _mamba_layer(config, batch, seqlen, decode):
    tokens = batch if decode else batch * seqlen
    hidden, dstate, width = config["hidden_size"], config["state_size"], config["conv_kernel"]
    dim = config["expand"] * hidden
    rank = config.get("time_step_rank") or math.ceil(hidden / 16)
    if decode:
        conv, scan = ConvUpdateProblem(batch, dim, width), StateUpdateProblem(batch, dim, dstate)
    else:
        conv = CausalConv1dProblem(batch, dim, seqlen, width=width)
        scan = SelectiveScanProblem(batch, seqlen, dim, dstate)
    return [
        LinearProblem(tokens, hidden, 2 * dim),
        conv,
        LinearProblem(tokens, dim, rank + 2 * dstate),
        LinearProblem(tokens, rank, dim),
        scan,
        LinearProblem(tokens, dim, hidden),
    ]


def _llama_layer(config, batch, seqlen, decode):
    tokens = batch if decode else batch * seqlen
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    nheads = config["num_attention_heads"]
    nheads_kv = config.get("num_key_value_heads") or nheads
    headdim = config.get("head_dim") or hidden // nheads
    return [
        LinearProblem(tokens, hidden, (nheads + 2 * nheads_kv) * headdim),
        CausalAttentionProblem(batch, nheads, seqlen, headdim, nheads_kv, 1 if decode else None),
        LinearProblem(tokens, nheads * headdim, hidden),
        LinearProblem(tokens, hidden, 2 * inner),
        LinearProblem(tokens, inner, hidden),
    ]


_LAYERS = {"mamba": _mamba_layer, "llama": _llama_layer}
