"""`use` on the models of every family that people load: tiny ones of every type, with random weights."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kernels.implementations import recording
from models.bind import FAMILIES, use
from tests.tolerance import assert_as_accurate

SIZES = {
    "llama": {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
    "mamba": {"hidden_size": 32, "state_size": 8},
    "mamba2": {"hidden_size": 32, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    "hybrid": {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "mamba_d_state": 8, "num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
    },
}  # fmt: skip
SHARED = {"vocab_size": 300, "num_hidden_layers": 2, "pad_token_id": 0}
TYPES = [(arch, name) for arch, family in FAMILIES.items() for name in family]


def tiny(arch, name, device):
    config = AutoConfig.for_model(name, **SHARED, **SIZES[arch])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if arch in ("llama", "hybrid") else None
    )
    return model.to(device).eval()


def tokens(device):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 300, (2, 13), generator=generator).to(device)


@torch.no_grad()
def logits(model, device):
    return model(tokens(device), use_cache=False).logits


@pytest.mark.parametrize(("arch", "name"), TYPES, ids=[name for _, name in TYPES])
def test_logits_and_greedy_tokens_are_those_of_transformers(arch, name, device):
    model = tiny(arch, name, device)
    gold, stock = logits(copy.deepcopy(model).double(), device), logits(model, device)
    generate = lambda: model.generate(tokens(device), do_sample=False, max_new_tokens=6)
    expected = generate()
    with use(model, "torch"), recording() as manifest:
        assert_as_accurate("logits", logits(model, device), stock, gold)
        assert torch.equal(generate(), expected)
    assert any(kernel.startswith("torch.") for kernel in manifest.values())
    assert torch.equal(logits(model, device), stock)


def test_hf_under_falcon_is_falcon_to_the_bit(device):
    model = tiny("mamba", "falcon_mamba", device)
    stock = logits(model, device)
    with use(model, "hf"):
        assert torch.equal(logits(model, device), stock)
