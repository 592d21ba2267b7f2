"""Caches, chunks, masks: a bound model continues a sequence as transformers does."""

from functools import cache

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import create_causal_mask

from models.bind import architecture, use
from models.build import build
from models.gold import gold
from tests.models.bound import outputs, require, tokens
from tests.tolerance import assert_as_accurate

CACHE_ARGUMENT = {"mamba": "cache_params", "llama": "past_key_values"}


def greedy(model, ids, count=12):
    return model.generate(ids, do_sample=False, max_new_tokens=count)[:, ids.shape[1] :]


@cache
def stock_tokens(arch, device):
    return greedy(build(arch, "tiny", device=device), tokens(2, 7, device))


@pytest.mark.parametrize("impl", ["torch", "cpu", "hf", "cuda"])
def test_greedy_generation_gives_the_tokens_of_transformers(model, impl, device):
    require(architecture(model), impl, device)
    stock = stock_tokens(architecture(model), device)
    with use(model, impl):
        assert torch.equal(greedy(model, tokens(2, 7, device)), stock)
    assert len(stock.unique()) > 4  # not one token over and over


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
def test_chunked_prefill_is_one_prefill(model, impl, device):
    arch = architecture(model)
    require(arch, impl, device)
    chunks = (
        (5, 1, 2, 9, 1) if impl != "triton" else (5, 1, 4)
    )  # shorter and longer than the convolution
    ids = tokens(2, sum(chunks), device)
    exact = outputs(gold(model), ids)["hidden"]
    with use(model, "hf"):
        baseline = outputs(model, ids)["hidden"]
    cache = DynamicCache(config=model.config)
    with use(model, impl):
        parts = [
            outputs(model, part, use_cache=True, **{CACHE_ARGUMENT[arch]: cache})["hidden"]
            for part in ids.split(chunks, dim=1)
        ]
    assert_as_accurate("hidden", torch.cat(parts, dim=1), baseline, exact)


def test_hf_refuses_the_chunk_that_transformers_would_get_wrong(device):
    model = build("mamba", "tiny", device=device)
    cache = DynamicCache(config=model.config)
    with use(model, "hf"):
        outputs(model, tokens(1, 5, device), use_cache=True, cache_params=cache)
        outputs(model, tokens(1, 1, device), use_cache=True, cache_params=cache)
        with pytest.raises(NotImplementedError, match=r"a chunk of 3 tokens .* use impl 'torch'"):
            outputs(model, tokens(1, 3, device), use_cache=True, cache_params=cache)


@pytest.mark.parametrize("seqlen", [2, 11])  # shorter and longer than the convolution
def test_a_cache_passes_from_our_mixer_to_transformers(seqlen, device):
    model = build("mamba", "tiny", device=device)
    ids = tokens(2, seqlen + 1, device)
    caches = {}
    for impl in ("hf", "torch"):
        caches[impl] = DynamicCache(config=model.config)
        with use(model, impl):
            outputs(model, ids[:, :-1], use_cache=True, cache_params=caches[impl])
    for ours, theirs in zip(caches["torch"].layers, caches["hf"].layers, strict=True):
        torch.testing.assert_close(ours.conv_states[0], theirs.conv_states[0])
        torch.testing.assert_close(ours.recurrent_states[0], theirs.recurrent_states[0])
        assert ours.recurrent_states[0].dtype == theirs.recurrent_states[0].dtype
    exact = outputs(gold(model), ids)["hidden"][:, -1]
    baseline = outputs(model, ids)["hidden"][:, -1]
    after = outputs(model, ids[:, -1:], use_cache=True, cache_params=caches["torch"])["hidden"]
    assert_as_accurate("hidden", after[:, 0], baseline, exact)


def test_mamba_ignores_what_is_padded(device):
    model = build("mamba", "tiny", device=device)
    ids = tokens(1, 9, device)
    padded = torch.cat([tokens(1, 4, device, seed=1), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    exact = outputs(gold(model), ids)["hidden"]
    baseline = outputs(model, padded, attention_mask=mask)["hidden"][:, 4:]
    with use(model, "torch"):
        actual = outputs(model, padded, attention_mask=mask)["hidden"][:, 4:]
    assert_as_accurate("hidden", actual, baseline, exact)


@pytest.fixture
def llama(device):
    return build("llama", "tiny", device=device)


def causal_mask(model, seqlen):
    embeds = torch.zeros(1, seqlen, 64, device=model.device)
    positions = torch.arange(seqlen, device=model.device)[None]
    return create_causal_mask(model.config, embeds, None, None, position_ids=positions)


def test_no_mask_is_built_for_our_kernels(llama):
    with use(llama, "torch"):
        assert causal_mask(llama, 32) is None
    with use(llama, "hf"):
        assert causal_mask(llama, 32).shape == (1, 1, 32, 32)


def test_a_mask_of_ones_changes_nothing(llama, device):
    ids = tokens(2, 9, device)
    with use(llama, "torch"):
        expected = outputs(llama, ids)["logits"]
        masked = outputs(llama, ids, attention_mask=torch.ones_like(ids))["logits"]
    assert torch.equal(masked, expected)


def test_masks_that_are_no_sequences_are_refused(llama, device):
    ids = tokens(2, 8, device)
    holes = torch.ones_like(ids)
    holes[0, 3] = 0
    cases = {
        "an attention_mask with holes": {"attention_mask": holes},
        r"got one of shape \(2, 1, 8, 8\); use 'hf'": {
            "attention_mask": torch.ones(2, 1, 8, 8, device=device)
        },
        "needs a cache that grows": {
            "past_key_values": StaticCache(config=llama.config, max_cache_len=16),
            "use_cache": True,
        },
    }
    with use(llama, "torch"):
        for message, arguments in cases.items():
            with pytest.raises(ValueError, match=message):
                outputs(llama, ids, **arguments)


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
def test_a_padded_prompt_generates_the_tokens_of_transformers(model, impl, device):
    require(architecture(model), impl, device)
    ids = tokens(2, 7, device)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    generate = lambda: model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=3 if impl == "triton" else 8
    )
    stock = generate()
    with use(model, impl):
        assert torch.equal(generate(), stock)


def test_hf_takes_a_padding_mask_as_transformers_does(llama, device):
    ids = tokens(2, 8, device)
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    stock = outputs(llama, ids, attention_mask=padding)["logits"]
    with use(llama, "hf"):
        assert torch.equal(outputs(llama, ids, attention_mask=padding)["logits"], stock)


def test_attention_dropout_is_refused(device):
    model = build("llama", "tiny", device=device)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with use(model, "torch"), pytest.raises(ValueError, match=r"no attention dropout, got 0\.1"):
        model.train()(tokens(1, 4, device))
