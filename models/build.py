"""One seeded set of weights per architecture, or a local checkpoint, as a transformers model."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kernels.checks import FLOATS
from models.architectures import REGISTRY
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


def build(
    arch,
    preset="paper-50m",
    *,
    seed=0,
    dtype=torch.float32,
    device="cpu",
    checkpoint=None,
    layers=None,
):
    """A transformers model for causal language modelling in eval mode, with eager attention.

    Without a checkpoint the weights come from `models.initialise`: drawn on the CPU in float32 and then cast, so that
    every dtype and device starts from the same numbers. A float64 model computes in float64 throughout
    (`models.float64`).

    Args:
        arch: a name of `models.architectures.REGISTRY`.
        preset: a name of `models.presets.PRESETS`, or a Preset; not used with a checkpoint.
        seed: of the initial weights.
        dtype: of the weights: float32, float16, bfloat16 or float64.
        device: where the model is put.
        checkpoint: a local folder with config.json and *.safetensors, or a GGUF file, or a folder with one; a GGUF
            file is dequantised. Nothing is downloaded, unpickled or executed.
        layers: only the first that many, with the weights that they have in the whole model; None for all. Embedding,
            final norm and head are there in any case.

    Raises:
        ValueError: an unknown arch, preset or dtype; an arch that the preset lacks; more layers than there are, or
            less than 1; a checkpoint that is incomplete or of another architecture; a
            GGUF file without the packages to read it.
        ImportError: Hugging Face's package `kernels` is installed (`models.huggingface`).
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    if dtype not in FLOATS:
        takes = ", ".join(str(known).removeprefix("torch.") for known in FLOATS)
        raise ValueError(f"dtype must be one of {takes}, got {dtype!r}")
    if checkpoint is not None:
        model = _load(arch, Path(checkpoint), dtype, device, layers)
    else:
        whole = _config(arch, preset)
        model = assemble(
            _shortened(whole, layers),
            lambda name, shape: initial(name, shape, whole, seed),
            dtype,
            device,
        )
    if dtype is torch.float64:
        widen(model)
    return model.eval()


def outline(arch, preset, layers=None):
    """The model that `build` makes of a preset, on the meta device: shapes, but no weights."""
    model = _skeleton(_shortened(_config(arch, preset), layers))
    model.tie_weights()
    return model


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
    model = _skeleton(config)
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # drawing releases the lock; cast there, lest values in float32 wait for their turn to be copied
    cast = lambda name, shape: weight(name, shape).to(dtype)
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        for name, value in zip(names, pool.map(cast, names, names.values()), strict=True):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value.to(device)))
    model.tie_weights()
    _fill_buffers(model, device)
    return model


def _skeleton(config):
    with torch.device("meta"):
        return _class(config.model_type, "ForCausalLM")(config)


def _fill_buffers(model, device):
    """Make what is no parameter and still on the meta device."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if name == "rotary_emb":  # float32 in a model of any dtype
                setattr(module, name, type(child)(config=model.config).to(device))
            elif type(child).__name__ == "FalconMambaWeightlessRMSNorm":
                # a norm without weights: a one, which nothing reads but `models.float64`, by the names of other norms
                one = torch.ones(1, dtype=model.dtype, device=device)
                child.weight = nn.Buffer(one, persistent=False)
                child.variance_epsilon = child.eps


def _config(arch, preset):
    if not isinstance(preset, Preset):
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        preset = PRESETS[preset]
    if arch not in preset.archs:
        raise ValueError(
            f"preset {preset.name} holds no {arch}; take arch {' or '.join(preset.archs)}"
        )
    settings = dict(preset.of(arch))
    model_type = settings.pop("model_type", REGISTRY[arch].model_types[0])
    return _class(model_type, "Config")(**settings, attn_implementation="eager")


def _shortened(config, layers):
    """The configuration of the first `layers` layers."""
    if layers is None:
        return config
    if not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(f"layers must be 1 to {config.num_hidden_layers}, got {layers}")
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    return config


def _class(model_type, kind):
    """transformers' class of a model type: its `Config`, or its `ForCausalLM`."""
    hf = transformers()
    for architecture in REGISTRY.values():
        if stem := architecture.classes.get(model_type):
            return getattr(hf, stem + kind)
    config_class = type(hf.AutoConfig.for_model(model_type))
    if kind == "Config":
        return config_class
    return hf.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]


def _load(arch, path, dtype, device, layers):
    file = find_gguf(path)
    if file is None:
        return _load_folder(arch, path, dtype, layers).to(device)
    config, weights = read_gguf(arch, file)
    config = _shortened(config, layers)
    return assemble(config, lambda name, shape: weights[name].detach(), dtype, device)


def _load_folder(arch, folder, dtype, layers):
    found = _check_checkpoint(arch, folder)
    model_class = _class(found["model_type"], "ForCausalLM")
    try:
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        config = _shortened(config, layers)
        model, info = model_class.from_pretrained(
            folder,
            config=config,
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
    """The configuration of a folder that can be loaded, as its JSON says."""
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
    if found not in REGISTRY[arch].model_types:
        raise ValueError(
            f"checkpoint {folder} holds a model of type {found!r}, not {arch!r}; give it for its own architecture"
        )
    if "quantization_config" in config:
        raise ValueError(
            f"checkpoint {folder} is quantised; give one with plain floating-point weights"
        )
    return config
