"""Checkpoints in llama.cpp's GGUF format: one local file with configuration, tokenizer and (quantised) weights.

transformers reads and dequantises them. What comes out here is an ordinary model of plain floating-point weights,
without any trace of the quantisation: it can be bound, cast and saved as every other.
"""

import importlib.util
from pathlib import Path

import torch

from models.huggingface import transformers
from models.tokenizer import Tokenizer

PACKAGES = ("gguf", "accelerate")


def find_gguf(path):
    """The GGUF file that a checkpoint path means: itself, or the only one of a folder without *.safetensors.

    None if it means none. ValueError if a folder holds several.
    """
    path = Path(path)
    if path.suffix == ".gguf" and not path.is_dir():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"checkpoint {path} holds several GGUF files ({names}); name one of them")
    return files[0] if files else None


def read_gguf(arch, file):
    """(configuration, {name: float32 tensor}) of a GGUF file, dequantised, as of a transformers model.

    Raises:
        ValueError: gguf or accelerate is not installed; the file is missing, broken, of another architecture than
            `arch`, or has rotary positions that transformers would not read.
    """
    _check(arch, file)
    hf = transformers()
    model_class = {"mamba": hf.MambaForCausalLM, "llama": hf.LlamaForCausalLM}[arch]
    try:
        model, info = model_class.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=hf.GgufConfig(dequantize=True),
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ValueError(f"checkpoint {file} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"checkpoint {file} lacks {len(missing)} parameters of a {arch} model, {missing[0]} among them"
        )
    config = model.config
    if config.model_type != arch:
        raise ValueError(f"checkpoint {file} holds a model of type {config.model_type!r}")
    return config, dict(model.named_parameters())


def gguf_tokenizer(file):
    """The tokenizer that a GGUF file carries, as a `models.tokenizer.Tokenizer`: nothing in a text is special."""
    file = Path(file)
    _check_packages(file)
    try:
        found = transformers().AutoTokenizer.from_pretrained(
            file.parent,
            gguf_file=file.name,
            local_files_only=True,
            trust_remote_code=False,
            clean_up_tokenization_spaces=False,
        )
        bpe = found.backend_tokenizer
    except Exception as error:
        raise ValueError(f"the tokenizer of {file} cannot be read: {first_line(error)}") from error
    bpe.encode_special_tokens = True
    return Tokenizer(file.stem, bpe.get_vocab_size(), bpe)


def first_line(error):
    """The first line of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _check(arch, file):
    if not file.is_file():
        raise ValueError(f"checkpoint {file} does not exist")
    _check_packages(file)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        field = reader.get_field("general.architecture")
        found = field and field.contents()
    except Exception as error:
        raise ValueError(f"checkpoint {file} is no GGUF file: {first_line(error)}") from error
    if found != arch:
        raise ValueError(
            f"checkpoint {file} holds a model of type {found!r}, not {arch!r}; give it for its own architecture"
        )
    scaling = reader.get_field(f"{arch}.rope.scaling.type")
    if (scaling is not None and scaling.contents() != "none") or any(
        tensor.name.startswith("rope_f") for tensor in reader.tensors
    ):
        raise ValueError(
            f"checkpoint {file} has scaled rotary positions, which transformers does not read from GGUF; "
            "give the model as safetensors"
        )


def _check_packages(file):
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"checkpoint {file} is a GGUF file, and {' and '.join(missing)} to read it is not installed: "
            f"pip install {' '.join(missing)}"
        )
