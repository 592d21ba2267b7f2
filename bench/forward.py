"""The models of a run, and prefill: a forward over the prompt, eager, in chunks or as a CUDA graph.

Forwards run under `torch.no_grad`, as the paper's did. `inference_mode` would save a few microseconds per
operation on the host, but custom operators and CUDA graphs differ between the two, and users write `no_grad`.
"""

from contextlib import contextmanager

import torch

from bench.memory import weight_bytes
from kernels.implementations import recording
from models.bind import final_norm
from models.build import build
from models.chunked import prefill
from models.presets import PRESETS

TORCH_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GRAPH_WARMUPS = 3  # runs on a side stream before a capture, as torch's documentation asks for


@contextmanager
def precision(dtype):
    """float32 matrix products in true float32, or on tensor cores for `tf32`."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def build_planned(arch, options, dtype=torch.float32, layers=None):
    """The model of an architecture that the options of a plan ask for, or its first layers, on the CPU."""
    checkpoint = options["checkpoint"].get(arch)
    if checkpoint is not None:
        return build(arch, checkpoint=checkpoint, dtype=dtype, layers=layers)
    preset = planned_preset(options)
    return build(arch, preset, seed=options["seed"], dtype=dtype, layers=layers)


def planned_preset(options):
    """The Preset that the options of a plan name, widened to the tokenizer's vocabulary where that is larger."""
    preset = PRESETS[options["preset"]]
    widened = preset.changed(
        lambda settings: (
            settings | {"vocab_size": max(options["vocabulary"], settings["vocab_size"])}
        )
    )
    if options.get("chunk"):  # a prompt in chunks may be of any length
        longest = max(options["seqlens"]) + ("decode" in options["mode"])
        return widened.with_positions(longest)
    return widened


class Models:
    """The models of a run, built once; only the one in use lies on a GPU, so memory is its own."""

    def __init__(self, options, device):
        self.options, self.device = options, torch.device(device)
        self._built, self._current = {}, None

    def of(self, layers):
        """The same for the first `layers` layers of every architecture; None for the whole models."""
        return self if layers is None else _Sliced(self, layers)

    def get(self, arch, dtype, layers=None):
        """The model of one architecture in the weights' dtype of `dtype`, on the device."""
        key = arch, TORCH_DTYPES[dtype], layers
        if key not in self._built:
            self._built[key] = self._build(*key)
        if self._current not in (None, key):
            self._built[self._current].to("cpu")
        self._current = key
        return self._built[key].to(self.device)

    def weight_bytes(self, arch, dtype, layers=None):
        """Bytes of the weights of a model that was built, wherever it lies; None if it never was."""
        model = self._built.get((arch, TORCH_DTYPES[dtype], layers))
        return None if model is None else weight_bytes(model)

    def _build(self, arch, dtype, layers):
        return build_planned(arch, self.options, dtype, layers)


class _Sliced:
    """`Models` of some layers: the whole ones are not built for it."""

    def __init__(self, models, layers):
        self._models, self._layers = models, layers
        self.options, self.device = models.options, models.device

    def get(self, arch, dtype):
        return self._models.get(arch, dtype, self._layers)

    def weight_bytes(self, arch, dtype):
        return self._models.weight_bytes(arch, dtype, self._layers)


@contextmanager
def hidden_states(model):
    """Collect what the final norm returns, once a forward: `with hidden_states(model) as found:` fills found[0]."""
    found = []
    handle = final_norm(model).register_forward_hook(
        lambda module, args, output: found.append(output)
    )
    try:
        yield found
    finally:
        handle.remove()


class Work:
    """What a cell times: calling it does it once.

    `outputs()` does it once and gives what the parity gate compares, and the manifest of the kernels that ran.
    `reset()` comes after every run, outside of the timed region, and makes the next one the same as the first.
    `held()` are the bytes that it keeps from run to run, and `cache_bytes` those of a cache or state at the context.
    """

    cache_bytes = None

    def reset(self):
        """Nothing is left behind."""

    def held(self):
        return 0


class EagerForward(Work):
    """Calls the model; outputs are the hidden states at all positions and the logits at the last one."""

    def __init__(self, model, ids, keep):
        self.model, self.ids, self.keep = model, ids, keep

    def __call__(self):
        return self.model(self.ids, use_cache=False, logits_to_keep=self.keep).logits

    def outputs(self):
        with recording() as kernels, hidden_states(self.model) as found:
            logits = self()
        hidden = found[0] if len(found) == 1 else torch.cat(found, 1)
        return hidden, logits[:, -1], dict(kernels)


class ChunkedForward(EagerForward):
    """Reads the prompt in chunks and carries the state or the cache; outputs are those of a single pass.

    Arguments as `models.chunked.prefill`.
    """

    def __init__(self, model, ids, chunk, logits):
        self.model, self.ids, self.chunk, self.logits = model, ids, chunk, logits

    def __call__(self):
        return prefill(self.model, self.ids, self.chunk, self.logits).logits


class GraphForward(Work):
    """Captures the model once in a CUDA graph and replays it; its outputs are those of the replay."""

    def __init__(self, model, ids, keep):
        eager = EagerForward(model, ids, keep)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARMUPS):
                eager()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._outputs = eager.outputs()

    def __call__(self):
        self.graph.replay()

    def outputs(self):
        self.graph.replay()
        return self._outputs
