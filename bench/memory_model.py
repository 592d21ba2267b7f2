"""How much memory a cell takes, before it is tried: weights, activations, cache or state, logits, scores, scan states.

Bytes that torch's allocator holds at its peak. The terms come from what the code of each implementation keeps at the
same time; small coefficients were fitted to peaks measured on a CPU (`python -m bench.memory_model RUN` shows the
error against a run, implementation by implementation; on small models it is within 15 %). Not measured yet on a GPU,
where fused kernels hold about what `cpu` holds.

Numbers per token of one layer: h hidden, d inner, N dstate, r rank of dt, all in the cell's dtype but for what a scan
keeps in float32:

    Mamba, prefill   13 h + r + 2 N; `hf` expands A, B u and the states to 3 d N more in float32, and 8 h of gates
    LLaMA, prefill   3 d + 4 h in the MLP, 6 h + 4 kv while queries and keys are rotated; `hf` holds two matrices of
                     scores of all heads and a mask instead, in float32: (2 heads + 1) seqlen
    train            what backward needs of every layer, with the logits of all positions three times in float32, or
                     with what passes through one layer; or all gradients: whichever is most
    decode           the cache or the states, and the copy of one layer's keys that a growing cache makes

A scan in `torch` goes in chunks, whose states (37 d N) do not depend on the length.
"""

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil
import torch
from rich.console import Console
from rich.table import Table

from bench.cli import Parser
from bench.plan import Cell, PlanError, read_plan
from bench.records import NAME, RecordError, read_records
from bench.slices import layers_of, sliced_sizes

BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
FLOAT32 = 4
LONGEST = 1 << 24  # tokens; where `longest` stops looking


def peak_bytes(cell, size, logits="last", chunk=None):
    """The most bytes held in one run of a cell, weights and cache included.

    Args:
        cell: a Cell.
        size: as `bench.cost.sizes` gives it, of the layers that the cell has.
        logits: `last` or `all`: the positions whose logits a prefill computes.
        chunk: tokens that a prefill reads at a time; None for all.
    """
    weights = size["total"] * BYTES[cell.dtype]
    if cell.mode == "train":
        return weights + training_bytes(cell, size)
    if cell.mode == "decode":
        return weights + decoding_bytes(cell, size)
    if chunk is not None and chunk < cell.seqlen:
        return weights + cache_bytes(cell, size) + _forward_bytes(cell, size, chunk, "last")
    return weights + _forward_bytes(cell, size, cell.seqlen, logits)


def held_before(cell, size):
    """The most bytes held before what is timed, weights included: the prefill that a decoded token needs."""
    weights = size["total"] * BYTES[cell.dtype]
    return weights + cache_bytes(cell, size) + _forward_bytes(cell, size, cell.seqlen, "last")


def needed_bytes(cell, size, logits="last", chunk=None):
    """What a machine must have for a cell: the peak, or what comes before it if that is more."""
    peak = peak_bytes(cell, size, logits, chunk)
    return max(peak, held_before(cell, size)) if cell.mode == "decode" else peak


def longest(cell, size, memory, logits="last", chunk=None):
    """The most tokens at which a cell like `cell` needs no more than `memory` bytes; 0 if none, LONGEST at most."""
    fits = lambda n: needed_bytes(replace(cell, seqlen=n), size, logits, chunk) <= memory
    low, high = 0, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def why_hopeless(cell, plan, device):
    """Why a cell is not tried on a CPU: running out of memory there ends other processes, or swaps for hours.

    Empty if it is tried: on a GPU, where that is harmless, under --try-everything, and where all the memory of the
    machine would suffice.
    """
    if torch.device(device).type != "cpu" or plan.options.get("try_everything"):
        return ""
    size = sliced_sizes(plan.architectures[cell.arch]["sizes"], layers_of(cell.preset))
    needs = needed_bytes(cell, size, plan.options["logits"], plan.options.get("chunk"))
    there = psutil.virtual_memory().total
    if needs <= there:
        return ""
    return f"predicted {needs / 2**30:.1f} GiB of {there / 2**30:.1f} GiB, not tried (--try-everything tries)"


def cache_bytes(cell, size):
    """Bytes of the keys and values of seqlen tokens, or of the states of the scan (float32) and the convolution."""
    if size["heads"]:
        return 2 * size["layers"] * cell.batch * cell.seqlen * size["kv"] * BYTES[cell.dtype]
    states = FLOAT32 * size["dstate"] + BYTES[cell.dtype] * size["width"]
    return size["layers"] * cell.batch * size["inner"] * states


def decoding_bytes(cell, size):
    """Bytes beyond the weights while a token is decoded."""
    cache = cache_bytes(cell, size)
    logits = FLOAT32 * cell.batch * size["vocab"]
    if size["heads"]:
        keys = cache / (2 * size["layers"])
        # `hf` repeats the keys and values of a group for each of its heads, and has a row of scores
        repeated = 2 * keys * (size["hidden"] / size["kv"]) if _repeats(cell, size) else 0
        return cache + max(logits, keys + repeated)
    states = {"hf": 6, "torch": 4}.get(cell.impl, 2)
    return cache + max(logits, states * _states(cell, size))


def training_bytes(cell, size):
    """Bytes beyond the weights in a training step."""
    tokens, item = cell.batch * cell.seqlen, BYTES[cell.dtype]
    logits = FLOAT32 * tokens * size["vocab"]
    # a tied weight gets a gradient from either end, and then their sum
    ends = size["total"] - size["parameters"]
    tied = ends if ends == size["vocab"] * size["hidden"] else 0
    gradients = item * (size["total"] + 2 * tied)
    h, d = size["hidden"], size["inner"]
    if size["heads"]:
        kept = item * tokens * (10.2 * h + 4 * d)
        scores = size["heads"] * tokens * cell.seqlen if cell.impl == "hf" else 0
        kept += scores * (item if item == FLOAT32 else item + FLOAT32)
        passing = 2 * FLOAT32 * scores
    else:
        selection = size["rank"] + 2 * size["dstate"]
        kept = item * tokens * (14 * h + 4 * selection)
        kept += 0 if cell.impl == "cpu" else FLOAT32 * tokens * 3 * h
        passing = item * tokens * 13 * h
        if cell.impl == "torch":
            passing += 37 * _states(cell, size)
        if cell.impl == "hf":
            kept += 3.1 * tokens * _states(cell, size) / cell.batch
            passing += 3 * tokens * _states(cell, size) / cell.batch
    layers = size["layers"] * kept
    return max(layers + 3 * logits, layers + logits + passing, gradients + passing)


def gradient_bytes(arch, seqlen, batch, size):
    """Bytes that a reference of gradients takes: float64 row by row, one layer's graph at a time."""
    wide = size["heads"] * seqlen**2 or seqlen * size["inner"] * size["dstate"]
    layer = 8 * 6 * wide + 8 * 20 * seqlen * (size["inner"] + size["hidden"])
    logits = 6 * seqlen * size["vocab"] * (8 + 4 * (batch - 1))
    between = 8 * size["layers"] * seqlen * size["hidden"]
    return layer + logits + between + 3 * 8 * size["total"]


def _forward_bytes(cell, size, seqlen, logits):
    """Bytes beyond weights and cache in a forward over the last `seqlen` tokens of a prompt."""
    tokens, item = cell.batch * seqlen, BYTES[cell.dtype]
    h, d = size["hidden"], size["inner"]
    head = FLOAT32 * (tokens if logits == "all" else cell.batch) * size["vocab"] + item * tokens * h
    if size["heads"]:
        mixing, mlp = 6 * h + 4 * size["kv"], 4 * h + 3 * d
        layer = item * tokens * (max(mixing, mlp) + 2 * size["headdim"])
        if cell.impl == "hf":
            scores = (2 * size["heads"] + 1) * tokens * cell.seqlen
            layer = max(layer, FLOAT32 * scores + item * tokens * 6.5 * h)  # softmax in float32
        elif seqlen < cell.seqlen and _masks(cell):
            layer += (
                seqlen * cell.seqlen * (1 + item)
            )  # as bool, and as what is added to the scores
    else:
        scan = FLOAT32 if cell.impl == "cpu" else item  # numba's kernels take float32
        layer = scan * tokens * (13 * h + size["rank"] + 2 * size["dstate"])
        layer += {"torch": 37}.get(cell.impl, 6) * _states(cell, size)
        if cell.impl == "hf":
            layer += item * tokens * 8 * h + 3 * tokens * _states(cell, size) / cell.batch
    return max(layer, head)


def _masks(cell):
    """Whether attention of queries that have keys before them needs a mask: torch's kernels do, for their alignment."""
    if cell.impl == "cuda" and BYTES[cell.dtype] == 2:
        return importlib.util.find_spec("flash_attn") is None  # it takes half precision and no mask
    return cell.impl in ("torch", "cpu", "cuda")


def _states(cell, size):
    """Bytes of the states of one layer's scan, float32."""
    return FLOAT32 * cell.batch * size["inner"] * size["dstate"]


def _repeats(cell, size):
    return cell.impl == "hf" and size["kv"] < size["hidden"]


def compared(plan, records):
    """[(cell, predicted bytes, measured bytes)] of the records that hold a peak of the allocator, one per cell."""
    rows = {}
    for record in records:
        measured = (record.get("memory_bytes") or {}).get("peak_allocated")
        if record["status"] != "ok" or not measured:
            continue
        cell = Cell(**record["cell"])
        size = sliced_sizes(plan.architectures[cell.arch]["sizes"], layers_of(cell.preset))
        options = plan.options
        predicted = peak_bytes(cell, size, options.get("logits", "last"), options.get("chunk"))
        weights = record["memory_bytes"]["weights"]
        rows[cell] = (cell, predicted - weights, measured - weights)
    return list(rows.values())


def error_table(rows):
    """A table of the errors of the prediction beyond the weights, per architecture, implementation and mode."""
    table = Table(
        title="Memory beyond the weights: predicted / measured peak", title_justify="left"
    )
    for column in ("arch", "impl", "mode", "cells", "lowest", "median", "highest"):
        table.add_column(column, justify="left" if column in ("arch", "impl", "mode") else "right")
    groups = {}
    for cell, predicted, measured in rows:
        groups.setdefault((cell.arch, cell.impl, cell.mode), []).append(predicted / measured)
    for key, ratios in sorted(groups.items()):
        numbers = (min(ratios), median(ratios), max(ratios))
        table.add_row(*key, str(len(ratios)), *(f"{ratio:.2f}" for ratio in numbers))
    return table


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = Parser(
        prog="python -m bench.memory_model",
        description="Compare the memory that the model predicts with the peaks that a run measured.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    args = parser.parse_args(argv)
    try:
        rows = compared(
            read_plan(Path(args.run) / "plan.json"), read_records(Path(args.run) / NAME)
        )
    except (PlanError, RecordError) as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"{args.run} holds no measured peak of memory")
    Console(width=None if sys.stdout.isatty() else 120).print(error_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
