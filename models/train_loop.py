"""Training: AdamW with warm-up, cosine and gradient clipping on the mean next-token loss; saved and continued exactly.

What is saved is one safetensors file with weights and both moments in float32, and the settings and the step as JSON
in its header. A run that goes on from it computes the same bits as one that was never interrupted: every batch follows
from its step alone, and no implementation draws random numbers.
"""

import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.train_tasks import generator_of

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARM_UP = 0.1  # of all steps
FLOOR = 0.1  # of the peak, where the cosine ends
HELD_OUT_BATCHES = 8
MOMENTS = ("exp_avg", "exp_avg_sq")


class StateError(ValueError):
    """A saved state that cannot be continued; the message is one line."""


class Training:
    """A model in training.

    Args:
        model: a transformers model that is bound to an implementation.
        task: called with (batch, generator, held_out), returns a `Batch`.
        settings: a dict with steps, batch, lr and seed; a state is continued only with equal ones.
    """

    def __init__(self, model, task, settings):
        self.model, self.task, self.settings = model.train(), task, settings
        self.parameters = dict(model.named_parameters())
        self.device = next(model.parameters()).device
        decayed = [p for name, p in self.parameters.items() if _decays(name, p)]
        kept = [p for name, p in self.parameters.items() if not _decays(name, p)]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}],
            lr=settings["lr"], betas=BETAS,
        )  # fmt: skip
        self.done = 0

    def step(self):
        """One step; returns {"step", "loss", "accuracy", "lr", "gradient_norm"}, before the weights moved."""
        settings = self.settings
        lr = rate(self.done, settings["steps"], settings["lr"])
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        batch = self.task(settings["batch"], generator_of(settings["seed"], "training", self.done))
        loss, accuracy = self._answer(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {self.done + 1} is {loss.item()}; use a smaller --lr"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimiser.step()
        self.done += 1
        return {
            "step": self.done, "loss": loss.item(), "accuracy": accuracy.item(), "lr": lr,
            "gradient_norm": norm.item(),
        }  # fmt: skip

    @torch.no_grad()
    def held_out(self):
        """{"loss", "accuracy"}: means over batches that were not trained on."""
        size, seed = self.settings["batch"], self.settings["seed"]
        found = [
            self._answer(self.task(size, generator_of(seed, "held out", i), held_out=True))
            for i in range(HELD_OUT_BATCHES)
        ]
        loss, accuracy = (torch.stack(values).mean().item() for values in zip(*found, strict=True))
        return {"loss": loss, "accuracy": accuracy}

    def _answer(self, batch):
        """(mean loss, share of right answers) at the tokens that count; others have no logits."""
        ids = batch.ids.to(self.device)
        hidden = self.model.base_model(ids, use_cache=False)[0][:, :-1]
        logits = self.model.lm_head(hidden[:, batch.counted.to(self.device)]).flatten(0, 1).float()
        targets = batch.targets().to(self.device)
        right = (logits.detach().argmax(1) == targets).float().mean()
        return F.cross_entropy(logits, targets), right

    def save(self, path):
        """Write the state to `path`: whole, or not at all."""
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach()
            for moment in MOMENTS:
                if parameter in self.optimiser.state:
                    tensors[f"{moment}/{name}"] = self.optimiser.state[parameter][moment]
        header = json.dumps({"step": self.done, "settings": self.settings})
        with replacing(path) as part:
            save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"state": header})

    def load(self, path):
        """Go on from a state; StateError if it cannot be read or is that of another training."""
        try:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                header = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StateError(f"{path} is no readable state: {error}") from None
        if header["settings"] != self.settings:
            raise StateError(f"{path} is the state of a training with other settings")
        self.done = header["step"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                if self.done:
                    moments = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
                    step = torch.tensor(float(self.done))
                    self.optimiser.state[parameter] = {"step": step} | moments


def rate(step, steps, peak):
    """The learning rate of a step (from 0): linear warm-up, then a cosine down to FLOOR of the peak."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)


@contextmanager
def replacing(path):
    """A path to write to, which takes the place of `path` in one move if nothing was raised."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _decays(name, parameter):
    """Matrices decay; norms, biases and Mamba's A and D, which set its time scales, do not."""
    return parameter.dim() > 1 and not name.endswith("A_log")
