"""Slices: a few layers of a model at full width, for models that are too deep to be measured whole.

`--slice 2` measures the first 2 layers and the first 4, each with the model's embedding, final norm and head, in the
same rounds. The difference is what layers cost without the ends, and `analysis.sliced` extends it to the whole depth.
A slice is told apart by the label of its cells: the preset `llama-2-7b@2` is the first 2 layers of llama-2-7b, so that
only slices of the same depth are compared with each other, and none with a whole model. `--slice 2,4,whole` measures
the whole model too, to see how far the extension is off.
"""

from dataclasses import replace
from pathlib import Path

WHOLE = "whole"
AT = "@"


def label(preset, depth):
    """The preset of cells that run the first `depth` layers, or all of them (WHOLE)."""
    return preset if depth == WHOLE else f"{preset}{AT}{depth}"


def layers_of(preset):
    """How many layers the cells of a preset have; None for the whole model."""
    _, at, layers = preset.rpartition(AT)
    return int(layers) if at else None


def whole_of(preset):
    """The preset without the mark of a slice."""
    return preset.rpartition(AT)[0] if layers_of(preset) else preset


def mark(preset):
    """What is added to the name of a step that concerns a slice: ("@2",), or nothing."""
    layers = layers_of(preset)
    return () if layers is None else (f"{AT}{layers}",)


def folder(run, preset):
    """Where a slice keeps its references, as a run keeps its own."""
    layers = layers_of(preset)
    return Path(run) if layers is None else Path(run) / "slices" / str(layers)


def sliced_sizes(size, layers):
    """The sizes of an architecture (`bench.cost.sizes`) with `layers` layers; None for all."""
    if layers is None:
        return size
    per_layer = size["per_layer"]
    gone = (size["layers"] - layers) * per_layer
    return size | {
        "layers": layers,
        "total": size["total"] - gone,
        "parameters": size["parameters"] - gone,
    }


def plan_of(plan, preset):
    """The plan as the references of one slice see it: the sizes of its architectures are those of the slice."""
    layers = layers_of(preset)
    architectures = {
        arch: found | {"sizes": sliced_sizes(found["sizes"], layers)}
        for arch, found in plan.architectures.items()
    }
    return replace(plan, architectures=architectures)
