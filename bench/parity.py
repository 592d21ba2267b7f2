"""The parity gate: no cell is timed before its outputs agree with the definition.

    gold      the model in float64 under `reference`, from the same weights, already rounded to the cell's dtype
    baseline  the model in the cell's dtype under `hf`, or under `reference` where hf cannot run
    rule      kernels.accuracy: error(cell) <= 2 (error(baseline) + eps(float32) norm(gold)), largest and RMS

Compared are the hidden states after the final norm and the logits: in prefill at all positions and at the last one, in
decode at the decoded token. The models are causal and every cell reads a prefix of one token stream, so gold and
baseline are computed once, by a forward over the longest length, and shorter cells are compared with slices; a decoded
token with the last one of a forward over its context and itself. For training see `bench.gradients`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.forward import hidden_states, precision
from bench.memory import is_out_of_memory
from kernels.accuracy import errors
from kernels.implementations import Unavailable
from models.bind import use
from models.gold import gold as float64_twin

WINDOW = 16  # tokens whose baseline error bounds that of one: the largest of a single small token says little
SHORTEST = 16  # where even this many tokens run out of memory, there is no reference


@dataclass(frozen=True)
class Reference:
    """Gold and baseline of one architecture in one dtype.

    Attributes:
        gold_hidden, baseline_hidden: (batch, length, hidden), float64 and the cell's dtype.
        gold_logits, baseline_logits: (batch, len(positions), vocabulary), at the last tokens of planned lengths.
        lengths: the lengths whose last token has logits here.
        baseline: the implementation that computed the baseline.
    """

    gold_hidden: torch.Tensor
    gold_logits: torch.Tensor
    baseline_hidden: torch.Tensor
    baseline_logits: torch.Tensor
    lengths: list[int]
    baseline: str

    @property
    def length(self):
        return self.gold_hidden.shape[1]


def compute(model, ids, lengths, dtype):
    """The `Reference` of a model in the weights of `dtype`; shorter than `ids` where memory does not suffice.

    Args:
        model: on the device, not bound.
        ids: (batch, length) int64 on the device of the model.
        lengths: planned lengths, at whose last tokens logits are kept.
    """
    with precision(dtype), torch.no_grad():
        gold_hidden, gold_logits, kept = _gold(model, ids, lengths)
        baseline, hidden = _baseline(model, ids[:, : gold_hidden.shape[1]])
        length = hidden.shape[1]
        kept = [n for n in kept if n <= length]
        baseline_logits = _logits(model, hidden, kept)
    return Reference(
        gold_hidden[:, :length].contiguous().cpu(),
        gold_logits[:, : len(kept)].contiguous().cpu(),
        hidden.cpu(),
        baseline_logits.cpu(),
        kept,
        baseline,
    )


def _gold(model, ids, lengths):
    twin = float64_twin(model)
    hidden = _longest(lambda part: _hidden(twin, part), ids)
    kept = [length for length in lengths if length <= hidden.shape[1]]
    return hidden, _logits(twin, hidden, kept), kept


def _baseline(model, ids):
    hidden = under_hf(model, lambda: _hidden(model, ids))
    if hidden is not None:
        return "hf", hidden
    with use(model, "reference"):
        return "reference", _longest(lambda part: _hidden(model, part), ids)


def under_hf(model, run):
    """`run()` with the model under hf; None where hf cannot run, or not in this memory."""
    try:
        with use(model, "hf"):
            return run()
    except (Unavailable, NotImplementedError):
        return None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def _longest(run, ids):
    """`run` on the longest prefix, halving, that memory permits."""
    length = ids.shape[1]
    while True:
        try:
            return run(ids[:, :length])
        except Exception as error:
            if not is_out_of_memory(error) or length // 2 < SHORTEST:
                raise
        length //= 2
        if ids.is_cuda:
            torch.cuda.empty_cache()


def _hidden(model, ids):
    """(batch, length, hidden), row by row: the reference holds more in memory than the cells do."""
    rows = []
    for row in ids.split(1):
        with hidden_states(model) as found:
            model(row, use_cache=False, logits_to_keep=1)
        rows.append(found[-1])
    return torch.cat(rows)


def _logits(model, hidden, lengths):
    """(batch, len(lengths), vocabulary) at the last token of each length."""
    head = model.get_output_embeddings()
    last = hidden[:, [length - 1 for length in lengths]]
    return head(last.to(head.weight.dtype))  # Mamba's residual stream is float32 in every dtype


def check(reference, hidden, logits, seqlen):
    """Compare one cell with its reference, as far as the reference reaches: the record's `parity`.

    Args:
        hidden: (batch, seqlen, hidden) after the final norm.
        logits: (batch, vocabulary) at the last position.
    """
    batch, length = hidden.shape[0], min(seqlen, reference.length)
    pairs = {
        "hidden": errors(
            hidden[:, :length].cpu(),
            reference.baseline_hidden[:batch, :length],
            reference.gold_hidden[:batch, :length],
        )
    }
    if seqlen in reference.lengths:
        at = reference.lengths.index(seqlen)
        baseline, gold = reference.baseline_logits[:batch, at], reference.gold_logits[:batch, at]
        pairs["logits"] = errors(logits.cpu(), baseline, gold)
    return judged(pairs, length, reference.baseline)


def check_token(reference, hidden, logits, seqlen):
    """Compare a token decoded after `seqlen` others with its reference: the record's `parity`.

    The baseline's error of its hidden state is that of the last WINDOW tokens.

    Args:
        reference: of at least seqlen + 1 tokens, with the logits there.
        hidden: (batch, 1, hidden) after the final norm.
        logits: (batch, vocabulary).
    """
    batch, last = hidden.shape[0], slice(max(0, seqlen + 1 - WINDOW), seqlen + 1)
    gold, baseline = reference.gold_hidden[:batch, last], reference.baseline_hidden[:batch, last]
    at = reference.lengths.index(seqlen + 1)
    one = errors(hidden.cpu(), baseline[:, -1:], gold[:, -1:])
    bounds = errors(baseline, baseline, gold)
    pairs = {
        "hidden": {norm: (one[norm][0], bounds[norm][1]) for norm in one},
        "logits": errors(
            logits.cpu(), reference.baseline_logits[:batch, at], reference.gold_logits[:batch, at]
        ),
    }
    return judged(pairs, seqlen, reference.baseline)


def judged(pairs, seqlen, baseline):
    """The record's `parity` of {output: {norm: (error, bound)}}."""
    passed = all(error <= bound for norms in pairs.values() for error, bound in norms.values())
    outputs = {
        name: {norm: list(pair) for norm, pair in norms.items()} for name, norms in pairs.items()
    }
    return {"seqlen": seqlen, "baseline": baseline, "outputs": outputs, "passed": passed}


def failure(parity):
    """Why a parity record did not pass, with its numbers, on one line."""
    wrong = [
        f"{norm} error of {output} {error:.2e} > {bound:.2e}"
        for output, norms in parity["outputs"].items()
        for norm, (error, bound) in norms.items()
        if not error <= bound
    ]
    return f"parity failed at {parity['seqlen']} tokens: {', '.join(wrong)}"


def save(path, reference):
    """Write a reference so that it is whole or absent."""
    path = Path(path)
    path.parent.mkdir(exist_ok=True)
    tensors = {
        name: getattr(reference, name)
        for name in ("gold_hidden", "gold_logits", "baseline_hidden", "baseline_logits")
    }
    metadata = {
        "baseline": reference.baseline,
        "lengths": ",".join(map(str, reference.lengths)),
    }
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.rename(path)


def load(path):
    """The reference that `save` wrote."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    lengths = [int(length) for length in metadata["lengths"].split(",") if length]
    return Reference(**tensors, lengths=lengths, baseline=metadata["baseline"])
