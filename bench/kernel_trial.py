"""One contender on one problem: what it computes, for the accuracy rule, and a call that the clock can repeat.

forward     the output, or each of several; of statistics all but the span, which compares a weight with a threshold: a
            rounding moves it by any number of tokens where both are close (its tests leave such rows out)
backward    the gradients of every operand alone, by torch.autograd.grad on a graph that is kept
decode      the output and the state that is left. Calls repeat in place, each contender on a state of its own;
            the state stays bounded (A is negative, a filter's inputs only move), and no kernel's time depends on it

The definition takes seconds at full size, so a contender is judged on a problem cut to LARGEST_GOLD. What is timed
repeats the operands of that problem up to full size; a causal output must then begin as on the cut one, in the last
row of the batch too, and that is judged as well.
"""

import copy
import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

import kernels
from bench.mixer import public
from kernels.accuracy import errors
from kernels.scan_statistics.problem import ScanStatisticsProblem
from kernels.ssd_scan.problem import SsdScanProblem

STATES = ("state", "conv_state")  # operands that are updated in place
TOKENS = dict.fromkeys(("u", "delta", "z", "B", "C", "x"), -1) | dict.fromkeys(
    ("q", "k", "v", "hidden_states"), -2
)
"""Operands that have an axis of tokens, and which."""
SSD_TOKENS = dict.fromkeys(("x", "dt", "B", "C"), 1)
CAUSAL = (
    "output",
    "entropy",
    "distance",
    "top_mass",
)  # outputs whose beginning does not see what follows
# longer problems are checked on a shorter copy: the definition keeps every state, or score, for its gradients
LARGEST_GOLD = {
    ("forward", "cuda"): 2048,
    ("forward", "cpu"): 2048,
    ("backward", "cuda"): 512,
    ("backward", "cpu"): 256,
    ("decode", "cuda"): 131_072,
    ("decode", "cpu"): 131_072,
}
LARGEST_GOLD_BATCH = {"forward": 2, "backward": 2, "decode": 256}
# the definition of statistics keeps every weight of the states of a channel, one channel after the other
LARGEST_DENSE = {ScanStatisticsProblem: {"batch": 1, "seqlen": 256, "dim": 64}}


@dataclass(frozen=True)
class Trial:
    """`outputs` by name, and `repeat`, which computes them again."""

    outputs: dict
    repeat: object


def checked_problem(problem, mode, device):
    """The problem itself, or a copy of it that the definition can take in float64."""
    changes = {"batch": min(problem.batch, LARGEST_GOLD_BATCH[mode])}
    if hasattr(problem, "seqlen"):
        changes["seqlen"] = min(problem.seqlen, LARGEST_GOLD[mode, device.type])
    for name, largest in LARGEST_DENSE.get(type(problem), {}).items():
        changes[name] = min(getattr(problem, name), largest)
    return dataclasses.replace(problem, **changes)


@lru_cache(maxsize=4)
def draw(problem, dtype, device):
    """The operands of a problem, which nobody may change: a scan's are drawn on the CPU, which takes a second."""
    return problem.inputs(dtype, device)


def timed_inputs(problem, checked, small, dtype, device):
    """Operands of a problem: those of its cut form `checked`, repeated along batch and tokens, in the same layout."""
    if problem == checked:
        return small
    if type(problem) in LARGEST_DENSE:
        return problem.inputs(dtype, device)
    tokens = SSD_TOKENS if isinstance(problem, SsdScanProblem) else TOKENS
    batch = lambda t: _repeated(t, 0, problem.batch)
    found = {}
    for name, t in small.items():
        if name in tokens:
            t = _repeated(batch(t), tokens[name], problem.seqlen)
        elif name == "initial_state" and t is not None:
            t = batch(t)
        found[name] = t
    return found


def _repeated(t, axis, size):
    """`t` over and over along an axis, up to a size; the axes keep their order in memory."""
    if t.shape[axis] == size:
        return t
    outer_first = sorted(range(t.dim()), key=lambda i: -t.stride(i))
    dense = t.permute(outer_first)
    at = outer_first.index(axis % t.dim())
    index = torch.arange(size, device=t.device) % t.shape[axis]
    back = [outer_first.index(i) for i in range(t.dim())]
    return dense.index_select(at, index).permute(back)


def wrong_at_size(outputs, truth, mode):
    """Which output of `timed_inputs` is wrong where it can be told, in words; "" if none is."""
    if mode == "decode":
        return ""
    for name, t in outputs.items():
        if not bool(torch.isfinite(t).all()):
            return f"{name} is not finite"
    if mode == "backward":
        return ""
    baselines, gold = truth
    beginning = {}
    for name in CAUSAL:
        if name in outputs and name in gold and outputs[name].dim() == gold[name].dim():
            rows = gold[name].shape[0]
            cut = tuple(slice(n) for n in gold[name].shape[1:])
            # the last rows repeat the first ones where the batch is a multiple of them
            last = outputs[name].shape[0] % rows == 0
            part = outputs[name][-rows:] if last else outputs[name][:rows]
            beginning[name] = part[(slice(None), *cut)]
    if not beginning:
        return ""
    worst, found = worst_error(beginning, baselines, gold, mode)
    return found if worst > 1 else ""


def start(run, mode, inputs, prepare=lambda t: t):
    """Run once: a `Trial`. `inputs` are left as they are."""
    inputs = {
        name: prepare(t.clone() if name in STATES else t) if torch.is_tensor(t) else t
        for name, t in inputs.items()
    }
    if mode == "backward":
        return _start_backward(run, inputs)
    with torch.no_grad():
        outputs = _by_name(run(**inputs))
    outputs |= {name: inputs[name] for name in STATES if name in inputs}
    return Trial(outputs, torch.no_grad()(lambda: run(**inputs)))


def _by_name(found):
    if not isinstance(found, tuple):
        return {"output": found}
    return {name: t for name, t in found._asdict().items() if name != "span"}


def _start_backward(run, inputs):
    leaves = {
        name: t.detach().requires_grad_()
        for name, t in inputs.items()
        if torch.is_tensor(t) and t.is_floating_point()
    }
    y = run(**(inputs | leaves))
    # the same numbers for everybody, in the layout of the output
    generator = torch.Generator(y.device).manual_seed(1)
    dy = torch.randn(y.shape, generator=generator, device=y.device)
    dy = torch.empty_like(y).copy_(dy)
    operands = tuple(leaves.values())
    repeat = lambda: torch.autograd.grad(y, operands, dy, retain_graph=True)
    return Trial(dict(zip(leaves, repeat(), strict=True)), repeat)


@lru_cache(maxsize=8)
def truth(operator, problem, mode, dtype, device):
    """(baselines, gold): outputs by name of PyTorch in the dtype, and of the definition in float64 on the same inputs.

    PyTorch is the definition and, for gradients, transformers' own path too, the baseline of the models: it sums over
    channels by matrix products, as users' models do, where the definition sums in a cascade that errs ten times less.
    """
    inputs = draw(problem, dtype, device)
    wide = {name: _wide(t) for name, t in inputs.items()}
    compute = lambda operands, impl: (
        start(partial(public(operator), impl=impl), mode, operands).outputs
    )
    baselines = [compute(inputs, "reference")]
    if mode == "backward":
        with suppress(NotImplementedError, kernels.Unavailable):
            baselines.append(compute(inputs, "hf"))
    return baselines, compute(wide, "reference")


def _wide(t):
    """An operand in float64; a module as a copy of it."""
    if isinstance(t, torch.nn.Module):
        return copy.deepcopy(t).double()
    return t.double() if torch.is_tensor(t) and t.is_floating_point() else t


def worst_error(outputs, baselines, gold, mode):
    """(the largest error over its bound, "output: norm error > bound" of that one); the bound is the widest."""
    slack = 3.0 if mode == "backward" else 2.0
    found = []
    for name, actual in outputs.items():
        judged = [errors(actual, baseline[name], gold[name], slack) for baseline in baselines]
        for norm in judged[0]:
            error, bound = judged[0][norm][0], max(by[norm][1] for by in judged)
            text = f"{name}: {norm} error {error:.2e}, allowed {bound:.2e}"
            found.append((error / max(bound, 1e-300), text))
    return max(found)
