"""Published shapes, pairs of equal work, and slices: the first layers of a model, with its weights."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from models.bind import use
from models.build import build, outline, parameter_counts
from models.floor import model_problems
from models.gold import gold
from models.presets import PRESETS, Preset

PUBLISHED = {  # parameters of the checkpoints on the hub
    ("mamba-130m", "mamba"): 129_135_360,
    ("mamba-370m", "mamba"): 371_516_416,
    ("mamba-790m", "mamba"): 793_204_224,
    ("mamba-1.4b", "mamba"): 1_372_178_432,
    ("mamba-2.8b", "mamba"): 2_768_345_600,
    ("falcon-mamba-7b", "mamba"): 7_272_665_088,
    ("llama-2-7b", "llama"): 6_738_415_616,
    ("llama-3-8b", "llama"): 8_030_261_248,
    ("llama-2-70b", "llama"): 68_976_648_192,
}
COMPANIONS = dict.fromkeys(("130m", "370m", "790m", "1.4b", "2.8b"), "llama") | {"70b": "mamba"}
DEEP = replace(
    PRESETS["tiny"],
    mamba=PRESETS["tiny"].mamba | {"num_hidden_layers": 4, "vocab_size": 300},
    llama=PRESETS["tiny"].llama | {"num_hidden_layers": 4, "vocab_size": 300},
)
FALCON = Preset(
    "falcon", DEEP.mamba | {"model_type": "falcon_mamba", "mixer_rms_eps": 1e-6}, llama=None
)


@pytest.mark.parametrize(("preset", "arch"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_parameters_are_those_of_the_published_models(preset, arch):
    assert parameter_counts(outline(arch, preset)).total == PUBLISHED[preset, arch]
    assert PRESETS[preset].archs == (arch,)


def test_llama_3_has_grouped_queries():
    config = outline("llama", "llama-3-8b").config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (32, 8, 128)
    assert config.rope_parameters["rope_theta"] == 500_000


def test_pairs_hold_the_published_models():
    for pair, llama in (("7b", "llama-2-7b"), ("8b", "llama-3-8b")):
        assert PRESETS[pair].mamba == PRESETS["falcon-mamba-7b"].mamba
        assert PRESETS[pair].llama == PRESETS[llama].llama
    assert PRESETS["2.8b"].mamba == PRESETS["mamba-2.8b"].mamba
    assert PRESETS["70b"].llama == PRESETS["llama-2-70b"].llama


def flops(preset, arch, layers):
    """FLOPs of a forward over 4,096 tokens without embedding and head."""
    config = getattr(PRESETS[preset], arch) | {"num_hidden_layers": layers}
    *body, _ = model_problems(config, arch, 1, 4096)
    return sum(count * problem.flops() for count, problem in body)


@pytest.mark.parametrize("preset", COMPANIONS)
def test_companions_have_the_number_of_layers_that_comes_nearest(preset):
    ours = COMPANIONS[preset]
    other = "mamba" if ours == "llama" else "llama"
    aim = flops(preset, other, getattr(PRESETS[preset], other)["num_hidden_layers"])
    layers = getattr(PRESETS[preset], ours)["num_hidden_layers"]
    apart = {n: abs(flops(preset, ours, n) / aim - 1) for n in range(layers - 3, layers + 4)}
    assert layers == min(apart, key=apart.get)
    assert apart[layers] < 0.018  # as the docstring says
    assert PRESETS[preset].mamba["hidden_size"] == PRESETS[preset].llama["hidden_size"]


def test_an_architecture_that_a_preset_lacks_is_named():
    with pytest.raises(ValueError, match="preset llama-2-7b holds no mamba; take arch llama"):
        build("mamba", "llama-2-7b")


@pytest.mark.parametrize(("arch", "preset"), [("mamba", DEEP), ("llama", DEEP), ("mamba", FALCON)],
                         ids=["mamba", "llama", "falcon"])  # fmt: skip
def test_a_slice_has_the_weights_of_the_first_layers(arch, preset):
    whole = dict(build(arch, preset).named_parameters())
    part = build(arch, preset, layers=2)
    assert part.config.num_hidden_layers == len(part.base_model.layers) == 2
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter, whole[name]), name


@pytest.mark.parametrize("layers", [0, 5])
def test_a_slice_is_part_of_the_model(layers):
    with pytest.raises(ValueError, match=f"layers must be 1 to 4, got {layers}"):
        build("llama", DEEP, layers=layers)


@torch.no_grad()
def test_falcon_runs_under_every_implementation_and_in_float64(device):
    model = build("mamba", FALCON, device=device)
    assert type(model).__name__ == "FalconMambaForCausalLM"
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    ids = torch.arange(24, device=device)[None]
    exact = gold(model)(ids, use_cache=False).logits
    for impl in ("hf", "torch"):
        with use(model, impl):
            found = model(ids, use_cache=False).logits
        torch.testing.assert_close(found, exact.to(found.dtype), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A LLaMA of four layers in two files with an index."""
    folder = tmp_path_factory.mktemp("sharded")
    model = build("llama", DEEP, seed=3)
    model.config.save_pretrained(folder)
    tensors = {name: value.detach().clone() for name, value in model.named_parameters()}
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, tensors


@pytest.mark.parametrize("layers", [None, 2])
def test_a_sharded_checkpoint_is_read_whole_or_in_part(sharded, layers):
    folder, tensors = sharded
    model = build("llama", checkpoint=folder, layers=layers)
    assert len(model.base_model.layers) == (layers or 4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name]), name
