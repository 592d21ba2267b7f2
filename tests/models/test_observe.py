"""What `observing` shows is what the model computed, under the same names for both architectures."""

import pytest
import torch

from kernels.causal_attention.reference import causal_attention_ref
from kernels.selective_scan.op import selective_scan
from models.bind import use
from models.build import build
from models.observe import layer_names, observing

IDS = torch.arange(1, 20)[None] * 37


@pytest.fixture(scope="module", params=["mamba", "llama"])
def model(request):
    return build(request.param, "tiny")


def observe(model, impl):
    hidden, mixings = {}, []
    with torch.no_grad(), use(model, impl), observing(model, hidden.__setitem__, mixings.append):
        model(IDS, use_cache=False)
    return hidden, mixings


@pytest.mark.parametrize("impl", ["hf", "torch", "reference"])
def test_names_are_the_same_for_both_architectures_and_all_implementations(model, impl):
    hidden, mixings = observe(model, impl)
    assert list(hidden) == layer_names(model) == ["embedding", "block 1", "block 2", "final norm"]
    assert [m.layer for m in mixings] == ["block 1", "block 2"]
    assert all(t.shape == (1, 19, 64) for t in hidden.values())


def test_the_embedding_is_the_embedding_and_the_final_norm_the_input_of_the_head(model):
    hidden, _ = observe(model, "torch")
    torch.testing.assert_close(
        hidden["embedding"], model.get_input_embeddings()(IDS), rtol=0, atol=0
    )
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
        head = model.get_output_embeddings()(hidden["final norm"])
    torch.testing.assert_close(head, logits)


@pytest.mark.parametrize("impl", ["hf", "torch"])
def test_operands_make_the_output_that_the_projection_gets(model, impl):
    """The operands, put through the definition, give what enters the out projection of the same block."""
    entered = []
    block = model.base_model.layers[0]
    out = block.mixer.out_proj if hasattr(block, "mixer") else block.self_attn.o_proj
    handle = out.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    _, mixings = observe(model, impl)
    handle.remove()
    first = mixings[0]
    assert first.out_weight is out.weight
    with torch.no_grad():
        if first.operator == "selective_scan":
            expected = selective_scan(**first.operands, impl="reference").transpose(1, 2)
        else:
            expected, _ = causal_attention_ref(**first.operands)
            expected = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(entered[0], expected)


def test_all_implementations_show_the_same_operands(model):
    _, ours = observe(model, "torch")
    _, theirs = observe(model, "hf")
    for a, b in zip(ours, theirs, strict=True):
        assert a.operands.keys() == b.operands.keys()
        for name, value in a.operands.items():
            torch.testing.assert_close(value, b.operands[name])


def test_hooks_are_gone_afterwards_also_after_an_error(model):
    def fail(name, tensor):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"), observing(model, hidden=fail):
        model(IDS)
    assert not any(
        layer._forward_hooks or layer._forward_pre_hooks for layer in model.base_model.layers
    )
    model(IDS)
