"""The floor time of an operator's problem on the measured peaks of a machine.

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

from dataclasses import dataclass

import torch

from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.causal_attention.problem import CausalAttentionProblem

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
