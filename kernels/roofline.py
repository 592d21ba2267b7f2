"""The floor time of an operator's problem, or of a model's forward, on the measured peaks of a machine.

No kernel that does all of the counted work is faster than its floor: the longest of three times, since a
perfect kernel overlaps them.

    memory        bytes / copy bandwidth. Least traffic of a fused kernel: every operand is read once, every result
                  written once, nothing in between goes to memory. The bandwidth is that of a copy, and counts the
                  bytes that it reads plus those that it writes.
    matrix        matrix FLOPs / matrix rate of the dtype. A multiplication and an addition are two FLOPs. Matrix work
                  is the two products of attention and the linear projections: everything that tensor cores take.
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

A share of more than 100 % is possible where a kernel does less than is counted here: it computes exponentials by a
polynomial beside the unit, or its operands are still in a cache that the copy overflows.
"""

import math
from dataclasses import dataclass

import torch

from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.selective_scan.problem import SelectiveScanProblem

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


MATRIX_WORK = (CausalAttentionProblem, LinearProblem)


def floor(problem, dtype, peaks):
    """The floor of one problem.

    Args:
        problem: a problem of an operator (`kernels/*/problem.py`) or a `LinearProblem`.
        dtype: "fp64", "fp32", "tf32" (float32 data, tensor cores in tf32), "bf16" or "fp16".
        peaks: {"copy_bytes_per_s": float, "matmul_flops": {dtype: FLOP/s}, "exp_per_s": float}, as measured by
            `bench.machine`; what is absent or None is left out of the floor, which says so.

    Raises:
        ValueError: unknown dtype, or not one of the peaks that the problem needs.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    demands = (
        ("memory", problem.bytes(DTYPES[dtype]), peaks.get("copy_bytes_per_s")),
        (
            "matrix",
            problem.flops() if isinstance(problem, MATRIX_WORK) else 0,
            _matrix_rate(dtype, peaks.get("matmul_flops") or {}),
        ),
        ("exponential", problem.exps(), peaks.get("exp_per_s")),
    )
    terms = {term: work / peak for term, work, peak in demands if work and peak}
    missing = tuple(term for term, work, peak in demands if work and not peak)
    if not terms:
        raise ValueError(f"no floor of {problem}: none of the peaks it needs is in {peaks}")
    bound = max(terms, key=terms.get)
    return Floor(terms[bound], bound, terms, missing)


def _matrix_rate(dtype, rates):
    """FLOP/s of products with the accuracy of `dtype`; None if it was not measured."""
    if dtype == "fp32":
        return max(rates.get("fp32") or 0, (rates.get("tf32") or 0) / 3) or None
    return rates.get(dtype)


def model_floor(config, arch, batch, seqlen, dtype, peaks, logits="last"):
    """The floor of one forward over a prompt: the sum of the floors of its operators and projections.

    Projections with a common input (q, k and v; gate and up) count as one that reads it once. Embedding, norms,
    residuals, rotary embedding and the gate of the MLP are taken as fused into their neighbours, at no cost.

    Args:
        config: the sizes by the names of transformers' `MambaConfig` or `LlamaConfig`, in a dict.
        arch: "mamba" or "llama".
        batch, seqlen: tokens of the prompt.
        dtype, peaks: as in `floor`.
        logits: positions that go through the head: "last" or "all".

    Returns:
        Floor: `seconds` is the sum of the parts' floors, `terms` are sums over the parts as well, and `bound` is the
        largest of them; so `seconds` is more than the largest term where the parts have different bounds.
    """
    steps = model_problems(config, arch, batch, seqlen, logits)
    floors = [(count, floor(problem, dtype, peaks)) for count, problem in steps]
    terms, missing = {}, {}
    for count, part in floors:
        missing |= dict.fromkeys(part.missing)
        for term, seconds in part.terms.items():
            terms[term] = terms.get(term, 0.0) + count * seconds
    seconds = sum(count * part.seconds for count, part in floors)
    return Floor(seconds, max(terms, key=terms.get), terms, tuple(missing))


def model_problems(config, arch, batch, seqlen, logits="last"):
    """[(how often, problem)] of one forward; arguments as in `model_floor`."""
    if arch not in _LAYERS:
        raise ValueError(f"arch must be one of {', '.join(_LAYERS)}, got {arch!r}")
    if logits not in ("last", "all"):
        raise ValueError(f"logits must be last or all, got {logits!r}")
    positions = batch * (seqlen if logits == "all" else 1)
    layers = config["num_hidden_layers"]
    steps = [(layers, problem) for problem in _LAYERS[arch](config, batch, seqlen)]
    return [*steps, (1, LinearProblem(positions, config["hidden_size"], config["vocab_size"]))]


def _mamba_layer(config, batch, seqlen):
    tokens, hidden, dstate = batch * seqlen, config["hidden_size"], config["state_size"]
    dim = config["expand"] * hidden
    rank = config.get("time_step_rank") or math.ceil(hidden / 16)
    return [
        LinearProblem(tokens, hidden, 2 * dim),
        CausalConv1dProblem(batch, dim, seqlen, width=config["conv_kernel"]),
        LinearProblem(tokens, dim, rank + 2 * dstate),
        LinearProblem(tokens, rank, dim),
        SelectiveScanProblem(batch, seqlen, dim, dstate),
        LinearProblem(tokens, dim, hidden),
    ]


def _llama_layer(config, batch, seqlen):
    tokens, hidden, inner = batch * seqlen, config["hidden_size"], config["intermediate_size"]
    nheads = config["num_attention_heads"]
    nheads_kv = config.get("num_key_value_heads") or nheads
    headdim = config.get("head_dim") or hidden // nheads
    return [
        LinearProblem(tokens, hidden, (nheads + 2 * nheads_kv) * headdim),
        CausalAttentionProblem(batch, nheads, seqlen, headdim, nheads_kv),
        LinearProblem(tokens, nheads * headdim, hidden),
        LinearProblem(tokens, hidden, 2 * inner),
        LinearProblem(tokens, inner, hidden),
    ]


_LAYERS = {"mamba": _mamba_layer, "llama": _llama_layer}
