"""The float64 twin that parity is measured with."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.bind import architecture, use
from models.build import build
from models.gold import gold
from tests.models.bound import outputs, state, tokens

SEQLEN = 23


class Float32Results(TorchDispatchMode):
    """Collects the shapes of all float32 tensors that are computed."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.shapes.append(tuple(result.shape))
        return result


def test_gold_computes_in_float64_throughout(model, device):
    seqlen, headdim = 9, 16
    before = state(model)
    twin = gold(model)
    assert state(model) == before
    with Float32Results() as computed, torch.no_grad():
        hidden = twin.base_model(tokens(2, seqlen, device), use_cache=False).last_hidden_state
    assert hidden.dtype == torch.float64
    # the rotary table alone is float32: it is given to all implementations alike
    table = {(1, headdim // 2, 1), (1, 1, seqlen), (1, headdim // 2, seqlen)}
    table |= {(1, headdim // 2), (1, seqlen, headdim // 2), (1, seqlen, headdim)}
    if architecture(model) == "mamba":
        table = set()
    assert set(computed.shapes) <= table


def test_gold_is_the_model_of_transformers(model, device):
    """Gold runs on our mixer: a step that the mixer lacked would be lacking in what it is measured with."""
    ids = tokens(2, SEQLEN, device)
    exact, stock = outputs(gold(model), ids), outputs(model, ids)
    for name in exact:
        error = (stock[name] - exact[name]).norm() / exact[name].norm()
        # far above the rounding of float32 and far below the effect of any step
        assert error < torch.finfo(torch.float32).eps ** 0.5


def test_gold_is_the_float64_model_bound_to_the_reference(model, device):
    ids = tokens(1, 9, device)
    wide = build(architecture(model), "tiny", dtype=torch.float64, device=device)
    with use(wide, "reference"):
        assert torch.equal(outputs(wide, ids)["hidden"], outputs(gold(model), ids)["hidden"])
