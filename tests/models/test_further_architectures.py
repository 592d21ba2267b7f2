"""Mamba-2 and a hybrid under every implementation: whole prompts, chunks, single tokens, and taking it off again."""

import copy

import pytest
import torch

from kernels.implementations import recording
from models.bind import OPERATORS, architecture, final_norm, layers, use
from models.float64 import widen
from models.mamba2_mixer import Mamba2OperatorMixer
from tests.models.bound import outputs, require, state
from tests.models.test_families import tiny
from tests.tolerance import assert_as_accurate

ARCHS = {"mamba2": "mamba2", "hybrid": "jamba"}
TOKENS = torch.randint(1, 300, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=ARCHS)
def model(request, device):
    return tiny(request.param, ARCHS[request.param], device)


def gold_outputs(model, ids):
    twin = copy.deepcopy(model).double()
    widen(twin)
    with use(twin, "reference"):
        return outputs(twin, ids)


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton", "cuda", "reference", "hf"])
def test_outputs_are_as_accurate_as_transformers(model, impl, device):
    arch = architecture(model)
    if impl != "hf":
        require(arch, impl, device)
    ids = TOKENS.to(device)
    with use(model, "hf"):
        baseline = outputs(model, ids)
    gold = gold_outputs(model, ids)
    with use(model, impl), recording() as manifest:
        found = outputs(model, ids)
    for name in found:
        assert_as_accurate(name, found[name], baseline[name], gold[name])
    assert set(OPERATORS[arch]) <= set(manifest)


def test_restoring_leaves_no_trace(model, device):
    before = state(model)
    with use(model, "torch"):
        pass
    assert state(model) == before


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_chunks_and_single_tokens_continue_from_the_cache(model, impl, device):
    ids = TOKENS.to(device)
    with use(model, "hf"):
        baseline = outputs(model, ids)["logits"]
    gold = gold_outputs(model, ids)["logits"]
    found, cache = [], {}
    with use(model, impl), torch.no_grad():
        for time in (slice(0, 4), slice(4, 9), slice(9, 10), slice(10, 11)):
            step = model(ids[:, time], use_cache=True, **cache)
            found.append(step.logits)
            name = "cache_params" if hasattr(step, "cache_params") else "past_key_values"
            cache = {name: getattr(step, name)}
    assert_as_accurate("logits", torch.cat(found, 1), baseline, gold)


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_gradients(model, impl, device):
    ids = TOKENS.to(device)

    def gradients(model):
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    twin = copy.deepcopy(model).double()
    widen(twin)
    with use(twin, "reference"):
        gold = gradients(twin)
    with use(model, "hf"):
        baseline = gradients(model)
    with use(model, impl):
        actual = gradients(model)
    for name in gold:
        assert_as_accurate(name, actual[name], baseline[name], gold[name], slack=3)


def test_blocks_and_final_norm(model):
    assert len(layers(model)) == 2
    assert type(final_norm(model)).__name__.endswith("RMSNorm")


def test_bounded_step_sizes_are_refused(device):
    model = tiny("mamba2", "mamba2", device)
    before = state(model)
    model.backbone.layers[1].mixer.time_step_limit = (0.0, 1.0)
    with pytest.raises(NotImplementedError, match=r"time_step_limit=\(0\.0, 1\.0\).*use impl 'hf'"):
        use(model, "torch")
    assert state(model) == before
    assert not isinstance(layers(model)[0].mixer, Mamba2OperatorMixer)
