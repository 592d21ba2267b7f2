"""How long a plan takes and how much memory: a rough model before anything ran, measured times once they exist.

The model counts matrix work (2 FLOPs a weight and token), the quadratic part of attention, and the steps of a
sequential scan, at rates typical of a device. It is for planning only: no result depends on it.
"""

from dataclasses import dataclass
from statistics import median

from bench.gradients import is_long
from bench.measure import SOLE_S, paper_rules
from bench.plan import Cell

FIXED_S = 8.0  # a fresh process: importing torch and transformers, building the models
DOUBT_S = 1.0  # seconds of measurements that weigh as much as the model
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Rates:
    """Typical speeds of a device: matrix FLOP/s, seconds per step of a scan in PyTorch and per forward, bytes/s."""

    flops: float
    step_s: float
    forward_s: float
    bytes: float


CPU = Rates(flops=5e10, step_s=1.5e-4, forward_s=5e-3, bytes=1e10)
GPU = Rates(flops=2e13, step_s=8e-5, forward_s=5e-3, bytes=1e12)
BACKWARD = 3  # a forward and a backward cost this many forwards


def sizes(config, counts):
    """What the model needs to know of an architecture, from its transformers configuration."""
    return {
        "parameters": counts.other,
        "total": counts.total,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "inner": getattr(config, "intermediate_size", config.hidden_size),
        "heads": getattr(config, "num_attention_heads", 0),
        "dstate": getattr(config, "state_size", 0),
        "vocab": config.vocab_size,
    }


def forward_seconds(cell, size, rates):
    """Seconds of one forward, within a factor of a few."""
    tokens = cell.batch * cell.seqlen
    flops = 2 * size["parameters"] * tokens
    seconds = rates.forward_s
    if cell.arch == "llama":
        flops += 4 * size["layers"] * size["hidden"] * cell.seqlen * tokens
    else:
        flops += 9 * size["layers"] * size["inner"] * size["dstate"] * tokens
        if cell.impl == "hf":
            seconds += size["layers"] * cell.seqlen * rates.step_s
    return seconds + flops / rates.flops


def forward_bytes(cell, size):
    """Bytes that one forward holds beyond the weights, within a factor of a few."""
    tokens, item = cell.batch * cell.seqlen, BYTES[cell.dtype]
    held = 6 * tokens * max(size["inner"], size["hidden"]) * item
    if cell.impl == "hf" and cell.arch == "llama":
        held += 3 * size["heads"] * tokens * cell.seqlen * item
    if cell.impl == "hf" and cell.arch == "mamba":
        held += 3 * tokens * size["inner"] * size["dstate"] * 4
    return held + tokens * 8


def token_seconds(cell, size, rates):
    """Seconds of one decoded token: the weights and the cache are read once."""
    return (
        rates.forward_s
        + (size["total"] * BYTES[cell.dtype] + cache_bytes(cell, size)) / rates.bytes
    )


def cache_bytes(cell, size):
    """Bytes of the KV cache, as large as if all heads had keys of their own, or of the states."""
    if cell.arch == "llama":
        return 2 * size["layers"] * cell.batch * cell.seqlen * size["hidden"] * BYTES[cell.dtype]
    return 4 * size["layers"] * cell.batch * size["inner"] * (size["dstate"] + 4)


def training_seconds(cell, size, rates):
    """Seconds of one forward and backward with the logits of all positions."""
    head = 2 * size["hidden"] * size["vocab"] * cell.batch * cell.seqlen
    seconds = BACKWARD * (forward_seconds(cell, size, rates) + head / rates.flops)
    if cell.impl == "hf" and cell.arch == "mamba":
        # the gradient of the slice of each token is as large as the whole sequence
        slices = cell.batch * cell.seqlen**2 * size["inner"] * size["dstate"] * 4
        seconds += 3 * size["layers"] * slices / rates.bytes
    return seconds


def training_bytes(cell, size):
    """Bytes that a training step holds beyond the weights: activations of all layers, logits and gradients."""
    tokens, item = cell.batch * cell.seqlen, BYTES[cell.dtype]
    kept = 8 * tokens * (size["inner"] + size["hidden"]) * item
    if cell.impl == "hf" and cell.arch == "llama":
        kept += 3 * size["heads"] * tokens * cell.seqlen * item
    if cell.impl == "hf" and cell.arch == "mamba":
        kept += 5 * tokens * size["inner"] * size["dstate"] * 4
    return size["layers"] * kept + 4 * tokens * size["vocab"] * 4 + size["total"] * item


def gradient_bytes(arch, seqlen, batch, size):
    """Bytes that a reference of gradients takes: float64 row by row, one layer's graph at a time."""
    wide = seqlen * size["inner"] * size["dstate"] if arch == "mamba" else size["heads"] * seqlen**2
    layer = 8 * 6 * wide + 8 * 20 * seqlen * (size["inner"] + size["hidden"])
    logits = 6 * seqlen * size["vocab"] * (8 + 4 * (batch - 1))
    between = 8 * size["layers"] * seqlen * size["hidden"]
    return layer + logits + between + 3 * 8 * size["total"]


def reference_seconds(keys, architectures, rates):
    """Seconds of the gradients of `bench.references.gradient_keys`: twice, in float64 too, with checkpointing."""
    impl = lambda arch, seqlen: "torch" if is_long(arch, seqlen) else "hf"
    cells = [Cell(arch, impl(arch, n), "", n, batch, dtype) for arch, dtype, n, batch in keys]
    return sum(4 * training_seconds(c, architectures[c.arch]["sizes"], rates) for c in cells)


def held_bytes(cell, size):
    """Bytes that a cell holds beyond the weights, what comes before its work included."""
    if cell.mode == "train":
        return training_bytes(cell, size)
    held = forward_bytes(cell, size)
    return held + 2 * cache_bytes(cell, size) if cell.mode == "decode" else held


def cell_seconds(cell, size, rates, budget_s, runs=None):
    """Seconds that a cell takes in one round: parity, warm-up and sampling; `runs` if the protocol fixes them."""
    if cell.mode == "decode":
        one = token_seconds(cell, size, rates)
        return forward_seconds(cell, size, rates) + 3 * one + max(budget_s, 3 * one)
    one = (training_seconds if cell.mode == "train" else forward_seconds)(cell, size, rates)
    if runs is not None:
        return one * (runs + 1)
    if rates is CPU and one > budget_s:
        return one if one > SOLE_S["cpu"] else 2 * one
    return 2 * one + max(budget_s, 3 * one if one < budget_s else one)


class Clock:
    """Time left, from what the same cells took in earlier rounds and from the model elsewhere.

    `architectures` is that of a plan: {arch: {"sizes": …}}.
    """

    def __init__(self, architectures, rates, budget_s, runs=None):
        self._model = lambda cell: cell_seconds(
            cell, architectures[cell.arch]["sizes"], rates, budget_s, runs
        )
        self._took = {}

    def observe(self, cell, seconds):
        """Note that `cell` took `seconds` in a round."""
        self._took.setdefault(cell, []).append(seconds)

    def expect(self, cell):
        """Seconds that `cell` will take."""
        if cell in self._took:
            return median(self._took[cell])
        return self._model(cell) * self._correction(cell)

    def _correction(self, cell):
        """How much slower than the model cells of the same arch, impl and mode were; near 1 while little is known."""
        kind = lambda c: (c.arch, c.impl, c.mode)
        alike = [c for c in self._took if kind(c) == kind(cell)]
        took = sum(median(self._took[c]) for c in alike)
        return (took + DOUBT_S) / (sum(map(self._model, alike)) + DOUBT_S)

    def remaining(self, cells_by_round, begun=()):
        """Seconds left for {round: cells}; each round that has not begun also starts a process."""
        return sum(
            (0.0 if round_ in begun else FIXED_S) + sum(map(self.expect, cells))
            for round_, cells in cells_by_round.items()
            if cells
        )


def rates_of(plan):
    """The typical speeds of the device of a plan."""
    return GPU if plan.options["device"] == "cuda" else CPU


def clock_of(plan):
    """The clock of a plan, before anything of it ran."""
    rates = rates_of(plan)
    runs = sum(paper_rules().exact) if plan.protocol == "paper" else None
    return Clock(plan.architectures, rates, plan.options["budget"], runs)
