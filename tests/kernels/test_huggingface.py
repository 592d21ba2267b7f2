"""`attn_implementation="crossover"`: what transformers' models compute with it, and what it refuses."""

import copy

import pytest
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig

import kernels.huggingface
from kernels.implementations import why_unavailable
from tests.tolerance import assert_as_accurate

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
IMPLS = ["torch", "cpu", "triton"]


@pytest.fixture
def llama(device):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")).to(device).eval()


def with_attention(model, name):
    """The same weights with another attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(name)
    return twin


def name_of(impl, device):
    if reason := why_unavailable(impl, "causal_attention", device):
        pytest.skip(f"{impl}: {reason}")
    return "crossover" if impl == "triton" else f"crossover-{impl}"


def tokens(batch, seqlen, device):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(300, (batch, seqlen), generator=generator).to(device)


@torch.no_grad()
def logits(model, ids, **arguments):
    return model(ids, use_cache=False, **arguments).logits


def check(actual, llama, ids, rows=..., **arguments):
    """`actual` logits at `rows` against transformers' eager attention."""
    gold = in_float64(llama, ids, **arguments)
    baseline = logits(llama, ids, **arguments)
    assert_as_accurate("logits", actual[rows], baseline[rows], gold[rows])


def in_float64(llama, ids, attention_mask=None, **arguments):
    """Logits of a float64 twin; padded rows one by one and without padding, since its own mask overflows."""
    twin = copy.deepcopy(llama).double()
    if attention_mask is None:
        return logits(twin, ids, **arguments)
    gold = torch.zeros(*ids.shape, 300, dtype=torch.float64, device=ids.device)
    for row, mask in enumerate(attention_mask.bool()):
        here = mask.nonzero()[:, 0]
        gold[row, here] = logits(twin, ids[row : row + 1, here], position_ids=here[None])[0]
    return gold


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_are_those_of_eager_attention(llama, impl, device):
    ids = tokens(2, 19, device)
    check(logits(with_attention(llama, name_of(impl, device)), ids), llama, ids)


def test_the_name_is_taken_when_a_model_is_made(device):
    model = transformers.AutoModelForCausalLM.from_config(
        LlamaConfig(**SIZES), attn_implementation="crossover-torch"
    )
    assert model.config._attn_implementation == "crossover-torch"


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding(llama, impl, side, device):
    ids = tokens(3, 12, device)
    mask = torch.ones_like(ids)
    if side != "right":
        mask[0, :5] = 0
    if side != "left":
        mask[1, 9:] = 0
        mask[0, 10:] = 0
    actual = logits(with_attention(llama, name_of(impl, device)), ids, attention_mask=mask)
    assert torch.isfinite(actual).all()
    check(actual, llama, ids, rows=mask.bool(), attention_mask=mask)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_by_their_positions(llama, impl, device):
    ids = tokens(2, 12, device)
    positions = torch.stack([torch.arange(12) % 5, torch.arange(12)]).to(device)
    actual = logits(with_attention(llama, name_of(impl, device)), ids, position_ids=positions)
    check(actual, llama, ids, position_ids=positions)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_by_their_bounds(llama, impl, device):
    """As `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives them."""
    ids = tokens(1, 12, device)
    positions = torch.cat([torch.arange(4), torch.arange(8)])[None].to(device)
    bounds = torch.tensor([0, 4, 12], dtype=torch.int32, device=device)
    packed = {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 8,
        "max_length_k": 8,
    }
    model = with_attention(llama, name_of(impl, device))
    check(logits(model, ids, position_ids=positions, **packed), llama, ids, position_ids=positions)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("padded", [False, True])
def test_greedy_generation_gives_the_tokens_of_eager_attention(llama, impl, padded, device):
    ids = tokens(2, 7, device)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    generate = lambda model: model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=5
    )
    assert torch.equal(generate(with_attention(llama, name_of(impl, device))), generate(llama))


def test_a_chunk_after_a_cache(llama, device):
    ids = tokens(2, 11, device)
    model = with_attention(llama, "crossover-torch")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in ids.split([4, 1, 6], dim=1)]
    check(torch.cat(parts, 1), llama, ids)


def test_gradients_pass(llama, device):
    model = with_attention(llama, "crossover-torch")
    ids = tokens(1, 9, device)
    wanted = llama.model.layers[0].self_attn.q_proj.weight
    found = model.model.layers[0].self_attn.q_proj.weight
    for m in (llama, model):
        m(ids, labels=ids).loss.backward()
    gold = copy.deepcopy(llama).double()
    gold.zero_grad()
    gold(ids, labels=ids).loss.backward()
    exact = gold.model.layers[0].self_attn.q_proj.weight.grad
    assert_as_accurate("q_proj", found.grad, wanted.grad, exact, slack=3)


def refused(model, match, ids, **arguments):
    with pytest.raises(ValueError, match=match):
        logits(model, ids, **arguments)


def test_what_the_operator_does_not_compute_is_refused(llama, device):
    model, ids = with_attention(llama, "crossover-torch"), tokens(2, 8, device)
    holes = torch.ones_like(ids)
    holes[0, 3] = 0
    refused(model, "an attention_mask with holes", ids, attention_mask=holes)
    refused(
        model,
        r"one of shape \(2, 1, 8, 8\)",
        ids,
        attention_mask=torch.ones(2, 1, 8, 8, device=device),
    )
    cache = transformers.StaticCache(config=model.config, max_cache_len=16)
    with pytest.raises(ValueError, match="needs a cache that grows"), torch.no_grad():
        model(ids, past_key_values=cache)
    model.model.layers[0].self_attn.is_causal = False
    refused(model, "causal attention only", ids)


def test_dropout_is_refused(llama, device):
    model = with_attention(llama, "crossover-torch").train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    refused(model, r"no attention dropout, got 0\.1", tokens(1, 4, device))


def test_a_sliding_window_counts_only_where_it_is_shorter(device):
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=8, attn_implementation="eager")
    mistral = transformers.MistralForCausalLM(config).to(device).eval()
    model = with_attention(mistral, "crossover-torch")
    check(logits(model, tokens(2, 8, device)), mistral, tokens(2, 8, device))
    refused(model, "sliding window", tokens(2, 9, device))


def test_no_mask_lies_in_memory(llama, device):
    """Plain causal attention needs nothing; sequences need their bounds."""
    sequences = kernels.huggingface.sequences
    assert sequences(2, 16, 16, device=device) is None
    mask = torch.ones(2, 16, dtype=torch.bool, device=device)
    assert sequences(2, 16, 16, attention_mask=mask, device=device) is None
    mask[1, :4] = False
    assert sequences(2, 16, 16, attention_mask=mask, device=device).tolist() == [0, 16, 20, 32]
    assert sequences(2, 1, 16, 15, attention_mask=mask, device=device).tolist() == [0, 4]
