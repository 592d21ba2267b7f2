"""One seeded set of weights per architecture, or a local checkpoint, as a transformers model."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kernels.checks import FLOATS
from models.float64 import widen
from models.gguf_file import find_gguf, first_line, read_gguf
from models.huggingface import transformers
from models.initialise import initial
from models.presets import ARCHITECTURES, PRESETS, Preset


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; shared ones count once, and the head belongs to the embedding."""

    total: int
    embedding: int
    other: int


def build(arch, preset="paper-50m", *, seed=0, dtype=torch.float32, device="cpu", checkpoint=None):
    """A `MambaForCausalLM` or `LlamaForCausalLM` in eval mode, with eager attention.

    Without a checkpoint the weights come from `models.initialise`: drawn on the CPU in float32 and then cast, so that
    every dtype and device starts from the same numbers. A float64 model computes in float64 throughout
    (`models.float64`).

    Args:
        arch: `mamba` or `llama`.
        preset: a name of `models.presets.PRESETS`, or a Preset; not used with a checkpoint.
        seed: of the initial weights.
        dtype: of the weights: float32, float16, bfloat16 or float64.
        device: where the model is put.
        checkpoint: a local folder with config.json and *.safetensors, or a GGUF file, or a folder with one; a GGUF
            file is dequantised. Nothing is downloaded, unpickled or executed.

    Raises:
        ValueError: an unknown arch, preset or dtype; a checkpoint that is incomplete or of another architecture; a
            GGUF file without the packages to read it.
        ImportError: Hugging Face's package `kernels` is installed (`models.huggingface`).
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    if dtype not in FLOATS:
        takes = ", ".join(str(known).removeprefix("torch.") for known in FLOATS)
        raise ValueError(f"dtype must be one of {takes}, got {dtype!r}")
    if checkpoint is not None:
        model = _load(arch, Path(checkpoint), dtype, device)
    else:
        config = _config(arch, preset)
        model = assemble(
            config, lambda name, shape: initial(name, shape, config, seed), dtype, device
        )
    if dtype is torch.float64:
        widen(model)
    return model.eval()


def parameter_counts(model):
    """The `ParameterCounts` of a transformers model."""
    total = sum(parameter.numel() for parameter in model.parameters())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding = sum(weight.numel() for weight in {end.weight for end in ends if end is not None})
    return ParameterCounts(total, embedding, total - embedding)


def assemble(config, weight, dtype, device):
    """A transformers model of `config` whose parameters are `weight(name, shape)`, cast to `dtype`.

    Its modules are made on the meta device, so transformers' own initialisation never runs.
    """
    config.dtype = dtype
    with torch.device("meta"):
        model = _model_class(config.model_type)(config)
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    with ThreadPoolExecutor(
        max_workers=torch.get_num_threads()
    ) as pool:  # drawing releases the lock
        for name, value in zip(names, pool.map(weight, names, names.values()), strict=True):
            owner, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(value.to(device, dtype))
            setattr(model.get_submodule(owner), leaf, parameter)
    model.tie_weights()
    if config.model_type == "llama":
        # the one buffer: float32 in a model of any dtype
        body = model.model
        body.rotary_emb = type(body.rotary_emb)(config=config).to(device)
    return model


def _config(arch, preset):
    if not isinstance(preset, Preset):
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        preset = PRESETS[preset]
    hf = transformers()
    config_class = {"mamba": hf.MambaConfig, "llama": hf.LlamaConfig}[arch]
    return config_class(**getattr(preset, arch), attn_implementation="eager")


def _model_class(arch):
    hf = transformers()
    return {"mamba": hf.MambaForCausalLM, "llama": hf.LlamaForCausalLM}[arch]


def _load(arch, path, dtype, device):
    file = find_gguf(path)
    if file is None:
        return _load_folder(arch, path, dtype).to(device)
    config, weights = read_gguf(arch, file)
    return assemble(config, lambda name, shape: weights[name].detach(), dtype, device)


def _load_folder(arch, folder, dtype):
    _check_checkpoint(arch, folder)
    model_class = _model_class(arch)
    try:
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ValueError(f"checkpoint {folder} cannot be loaded: {first_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"checkpoint {folder} lacks {len(missing)} parameters of a {arch} model, {missing[0]} among them"
        )
    return model


def _check_checkpoint(arch, folder):
    needs = "a checkpoint is a local folder with config.json and *.safetensors, or a GGUF file"
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder} is not a folder; {needs}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"checkpoint {folder} has no config.json; {needs}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"checkpoint {folder} has no *.safetensors file; {needs}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint {folder}: config.json is not JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != arch:
        raise ValueError(
            f"checkpoint {folder} holds a model of type {found!r}, not {arch!r}; give it for its own architecture"
        )
    if "quantization_config" in config:
        raise ValueError(
            f"checkpoint {folder} is quantised; give one with plain floating-point weights"
        )
