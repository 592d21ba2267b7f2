"""A cell, ready to run: the model of its architecture and dtype under its implementation, doing what its mode says."""

from contextlib import contextmanager

import torch

from bench.decode import DecodedToken
from bench.forward import ChunkedForward, EagerForward, GraphForward, precision
from bench.train import TrainingStep
from models.bind import use


@contextmanager
def bound(models, cell, ids, logits):
    """The model of a cell under its implementation and precision; yields (model, `bench.forward.Work`).

    Args:
        models: `bench.forward.Models`, whose options say how many tokens a chunk of a prefill has, if any.
        ids: (batch, cell.tokens) int64 on the device.
        logits: `last` or `all`: the positions whose logits a prefill computes.
    """
    model = models.get(cell.arch, cell.dtype)
    train = cell.mode == "train"
    with precision(cell.dtype), torch.set_grad_enabled(train), use(model, cell.impl):
        model.train(train)
        try:
            yield model, _work(model, cell, ids, logits, models)
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()


def _work(model, cell, ids, logits, models):
    if cell.mode == "decode":
        return DecodedToken(model, ids)
    if cell.mode == "train":
        return TrainingStep(model, ids)
    if chunk := models.options.get("chunk"):
        return ChunkedForward(model, ids, chunk, logits)
    make = GraphForward if cell.launch == "graph" else EagerForward
    return make(model, ids, keep=1 if logits == "last" else 0)
