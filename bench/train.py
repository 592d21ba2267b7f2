"""One training step without the optimiser: forward, next-token loss, backward into the gradients of all parameters.

The loss is transformers' own, as users call it (`labels=ids`): the cross-entropy of the next token in float32, the mean
over all positions but the last of each row. So the logits of all positions are computed and held, in the dtype of the
model and in float32, which at short lengths is most of the memory. The model is in training mode, without dropout
and without activation checkpointing; the loss is not scaled. `reset`, outside of the timed region, drops the
gradients, so every run allocates them again.
"""

from bench.forward import Work
from bench.gradients import watched
from kernels.implementations import recording


class TrainingStep(Work):
    """Forward and backward of the loss on `ids`.

    Args:
        model: bound to an implementation and in training mode.
        ids: (batch, seqlen) int64 on the device, seqlen at least 2.

    Raises:
        ValueError: the model's configuration has a dropout, which no two implementations draw alike.
    """

    def __init__(self, model, ids):
        for name, rate in model.config.to_dict().items():
            if "dropout" in name and rate:
                raise ValueError(f"train: dropout is not compared, got {name}={rate}; set it to 0")
        self.model, self.ids = model, ids

    def __call__(self):
        self._forward().loss.backward()

    def outputs(self):
        """Logits of all positions (batch, seqlen, vocabulary) and {name: gradient} of the watched parameters."""
        with recording() as kernels:
            found = self._forward()
            found.loss.backward()
        gradients = {name: parameter.grad for name, parameter in watched(self.model).items()}
        return found.logits.detach(), gradients, dict(kernels)

    def reset(self):
        """Drop the gradients."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def _forward(self):
        return self.model(self.ids, labels=self.ids, use_cache=False)
