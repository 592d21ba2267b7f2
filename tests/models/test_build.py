import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from models.architectures import REGISTRY
from models.build import build, parameter_counts
from models.floor import model_problems
from models.huggingface import check_no_clash
from models.initialise import initial
from models.presets import ARCHITECTURES, PRESETS

# sha256 over names and float32 bytes: the same on every machine and with every version of
# transformers
TINY_WEIGHTS = {
    "mamba": "cfafff2d499f6dd9331455599edc9c856a54cbe9c52cb561564745a6ec91122f",
    "llama": "000c984e3ac4bb505f70e24a3a088fb4522298e7687154aed61c3dc83308af36",
    "mamba2": "dea94a280f4d6a542985bba26c03ebc34e00cc267f10437dd97c78fb77278212",
    "hybrid": "22a10f4947e0f0ed8a7b2e5d0d56275473e5e7e12affb8f390a3831699dcfdf2",
}


def fingerprint(model):
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("arch", "preset", "total", "other"),
    [
        ("llama", "paper-50m", 53_748_224, 20_980_224),
        ("mamba", "paper-50m", 29_946_368, 13_562_368),
        ("mamba", "matched-50m", 53_111_296, 20_343_296),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, preset, total, other):
    counts = parameter_counts(build(arch, preset, dtype=torch.bfloat16))
    assert counts.total == total
    assert counts.other == other
    assert counts.embedding == total - other


def test_matched_llama_is_that_of_the_paper():
    assert PRESETS["matched-50m"].llama == PRESETS["paper-50m"].llama


def forward_flops(arch, seqlen, layers=None):
    """FLOPs of a forward of isoflop-50m without embedding and head."""
    config = getattr(PRESETS["isoflop-50m"], arch)
    if layers is not None:
        config = config | {"num_hidden_layers": layers}
    *body, (once, head) = model_problems(config, arch, 1, seqlen)
    assert (once, head.out_features) == (1, 32_000)
    return sum(count * problem.flops() for count, problem in body)


def test_isoflop_mamba_has_the_number_of_layers_that_comes_nearest():
    assert PRESETS["isoflop-50m"].llama == PRESETS["paper-50m"].llama
    layers = PRESETS["isoflop-50m"].mamba["num_hidden_layers"]
    llama = forward_flops("llama", 4096)
    apart = {n: abs(forward_flops("mamba", 4096, n) / llama - 1) for n in range(1, 41)}
    assert layers == min(apart, key=apart.get)
    assert apart[layers] < 0.014  # as the docstring says, and so the other lengths
    ratios = [forward_flops("mamba", n) / forward_flops("llama", n) for n in (2048, 8192)]
    assert ratios == pytest.approx([1.30, 0.70], abs=0.005)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_are_pinned(arch):
    assert fingerprint(build(arch, "tiny", seed=0)) == TINY_WEIGHTS[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_are_the_same_in_every_dtype(arch, dtype, device):
    exact = dict(build(arch, "tiny").named_parameters())
    cast = dict(build(arch, "tiny", dtype=dtype, device=device).named_parameters())
    assert cast.keys() == exact.keys()
    for name, parameter in cast.items():
        assert parameter.dtype == dtype
        assert parameter.device.type == device
        assert torch.equal(parameter.cpu(), exact[name].to(dtype)), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_seed_changes_the_weights_and_the_global_generator_does_not(arch):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fingerprint(build(arch, "tiny", seed=7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert fingerprint(build(arch, "tiny", seed=7)) == first
    assert fingerprint(build(arch, "tiny", seed=8)) != first


def test_a_parameter_depends_only_on_seed_name_and_shape():
    config = build("mamba", "tiny").config
    name, shape = "backbone.layers.1.mixer.in_proj.weight", (256, 64)
    deeper = dataclasses.replace(
        PRESETS["tiny"], mamba=PRESETS["tiny"].mamba | {"num_hidden_layers": 3}
    )
    third = build("mamba", deeper)
    assert torch.equal(third.get_parameter(name), initial(name, shape, config, seed=0))
    assert not torch.equal(
        third.get_parameter(name), third.get_parameter(name.replace("layers.1", "layers.2"))
    )


def test_mamba_initialisation_is_that_of_the_reference():
    model = build("mamba", "paper-50m")
    mixer = model.backbone.layers[3].mixer
    dim, dstate, dt_rank, n_layers = 1024, 16, 32, 8

    assert torch.equal(mixer.A_log[0], torch.arange(1, dstate + 1).double().log().float())
    assert torch.equal(mixer.A_log, mixer.A_log[:1].expand(dim, dstate))
    assert torch.equal(mixer.D, torch.ones(dim))
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 0.001 * (1 - 1e-4)
    assert dt.max() <= 0.1 * (1 + 1e-4)
    assert dt.log().mean().item() == pytest.approx(-4.6, abs=0.15)  # (log 0.001 + log 0.1) / 2
    for weight, bound in (
        (mixer.in_proj.weight, 512**-0.5),
        (mixer.x_proj.weight, dim**-0.5),
        (mixer.dt_proj.weight, dt_rank**-0.5),
        (mixer.conv1d.weight, 0.5),
        (mixer.conv1d.bias, 0.5),
        (mixer.out_proj.weight, (dim * n_layers) ** -0.5),
    ):
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert model.backbone.embeddings.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.equal(model.backbone.norm_f.weight, torch.ones(512))
    assert model.lm_head.weight is model.backbone.embeddings.weight


def test_llama_initialisation_and_rotary_table():
    model = build("llama", "paper-50m", dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert parameter.float().std().item() == pytest.approx(0.02, rel=0.02), name
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    # a rotary table rounded to bfloat16 would turn far positions by whole radians
    expected = 10_000.0 ** -(torch.arange(0, 64, 2) / 64)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_model_is_ready_to_run(arch):
    model = build(arch, "tiny")
    assert not model.training
    assert model.config._attn_implementation == "eager"
    assert all(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    with torch.no_grad():
        logits = model(torch.arange(1, 10)[None]).logits
    assert logits.shape == (1, 9, 32_000)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "gpt"}, "arch must be one of mamba, llama.*got 'gpt'"),
        ({"arch": "mamba", "preset": "70m"}, "preset must be one of paper-50m.*got '70m'"),
        ({"arch": "llama", "preset": "tiny", "dtype": torch.int8}, "dtype must be one of.*int8"),
        ({"arch": "llama", "checkpoint": "/nowhere"}, "/nowhere is not a folder"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, "tiny", seed=3).save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpoint_gives_back_its_weights(checkpoint, dtype, capfd):
    arch, folder = checkpoint
    model = build(arch, checkpoint=folder, dtype=dtype)
    saved = dict(build(arch, "tiny", seed=3, dtype=dtype).named_parameters())
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert capfd.readouterr().out == ""


def test_checkpoint_of_the_other_architecture_is_refused(checkpoint):
    arch, folder = checkpoint
    other = next(name for name in ARCHITECTURES if name != arch)
    found = REGISTRY[arch].model_types[0]
    with pytest.raises(ValueError, match=f"holds a model of type '{found}', not '{other}'"):
        build(other, checkpoint=folder)


def copy_without(folder, target, name):
    for file in folder.iterdir():
        if file.name != name:
            (target / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_checkpoint_is_refused(checkpoint, name, tmp_path):
    arch, folder = checkpoint
    copy_without(folder, tmp_path, name)
    with pytest.raises(ValueError, match=r"has no (config.json|\*.safetensors)") as error:
        build(arch, checkpoint=tmp_path)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_never_read(checkpoint, tmp_path):
    arch, folder = checkpoint
    copy_without(folder, tmp_path, "model.safetensors")
    torch.save(build(arch, "tiny").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no \*.safetensors"):
        build(arch, checkpoint=tmp_path)


def test_broken_checkpoints_are_refused_in_one_line(checkpoint, tmp_path):
    arch, folder = checkpoint
    copy_without(folder, tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text())

    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks \d+ parameters .*layers.2"):
        build(arch, checkpoint=tmp_path)

    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    with pytest.raises(ValueError, match="is quantised"):
        build(arch, checkpoint=tmp_path)

    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        build(arch, checkpoint=tmp_path)

    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        build(arch, checkpoint=tmp_path)
    assert "\n" not in str(error.value)


def test_kernels_of_hugging_face_beside_ours_is_one_clear_error(tmp_path):
    check_no_clash()
    installed = tmp_path / "kernels-0.99.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.99.0\n")
    program = (
        "import sys\n"
        "from models.build import build\n"
        "from models.bind import use\n"
        "assert 'transformers' not in sys.modules\n"
        "try:\n"
        "    build('llama', 'tiny')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "kernels 0.99.0 is installed" in done.stdout
    assert "pip uninstall kernels" in done.stdout
    assert done.stdout.count("\n") == 1
