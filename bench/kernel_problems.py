"""Which problems `bench.kernels` measures: operator, mode and sizes, by device and grid.

quick    a few lengths of a shape that people train; on a CPU one layer of paper-50m, on a GPU with batches that
         fill the machine and one long sequence that does not
full     a GPU's range: batch 1 to 8 (decoding: to 256), dim 1,024 to 5,120, dstate 16 to 128, headdim 64 and 128,
         512 to 131,072 tokens
scan, attention, attention-few, attention-flex
         the fractions of a GPU's range that the plans of `bench.gpu_suite` have time for, the rest of it at corners
"""

import dataclasses

from bench.kernel_fractions import ATTENTION, ATTENTION_FEW, ATTENTION_FLEX, SCAN
from bench.kernel_lists import (
    OCTAVES,
    attention_statistics,
    attentions,
    caches,
    convs,
    scan_statistics,
    scans,
)
from bench.mixer import MIXERS, MixerProblem
from kernels.causal_conv1d.problem import ConvUpdateProblem
from kernels.selective_scan.problem import StateUpdateProblem

# decode is one token in place, or attention of the last query over a cache
MODES = {
    "selective_scan": ("forward", "backward"),
    "causal_conv1d": ("forward", "backward"),
    "causal_attention": ("forward", "backward", "decode"),
    "selective_state_update": ("decode",),
    "causal_conv1d_update": ("decode",),
    "attention_statistics": ("forward",),
    "scan_statistics": ("forward",),
    "mamba_mixer": ("forward",),
}
OPERATORS = tuple(MODES)


def problems(operator, mode, device_type, grid="quick"):
    """The problems of an operator in a mode, in the order of their measurement; none that the grid leaves out."""
    return (_CPU if device_type == "cpu" else _GRIDS[grid]).get((operator, mode), ())


def resized(found, seqlens=None, batches=None):
    """The first problem of each list at lengths and batches of one's own; sizes that a problem lacks are left."""
    if not found:
        return found
    first = found[0]
    if seqlens and hasattr(first, "seqlen"):
        found = tuple(dataclasses.replace(first, seqlen=n) for n in seqlens)
    elif seqlens or batches:
        found = (first,)
    if batches:
        found = tuple(dataclasses.replace(p, batch=b) for b in batches for p in found)
    return found


_CPU = {
    ("selective_scan", "forward"): scans((1,), (128, 512, 2048), (1024,)),
    ("selective_scan", "backward"): scans((1,), (128, 512), (1024,)),
    ("causal_conv1d", "forward"): convs((1,), (128, 512, 2048), (1024,)),
    ("causal_conv1d", "backward"): convs((1,), (128, 512, 2048), (1024,)),
    ("causal_attention", "forward"): attentions(1, (128, 512, 2048), 8, 64),
    ("causal_attention", "backward"): attentions(1, (128, 512, 1024), 8, 64),
    ("causal_attention", "decode"): caches((1,), (128, 512, 2048), 8, 64, None),
    ("selective_state_update", "decode"): tuple(StateUpdateProblem(b, 1024) for b in (1, 4, 16)),
    ("causal_conv1d_update", "decode"): tuple(ConvUpdateProblem(b, 1024) for b in (1, 4, 16)),
    ("attention_statistics", "forward"): attention_statistics((128, 512, 2048), 8, 64),
    ("scan_statistics", "forward"): scan_statistics((128, 512), (1024,)),
    ("mamba_mixer", "forward"): (MixerProblem(1, 128, 512), MixerProblem(1, 512, 512)),
}

_QUICK = {
    ("selective_scan", "forward"): (
        *scans((1,), (2048, 8192, 32_768, 131_072), (2048,)),
        *scans((8,), (4096,), (5120,)),
        *scans((1,), (8192,), (2048,), layout="time_last"),
    ),
    ("selective_scan", "backward"): (
        *scans((1,), (2048, 8192, 32_768), (2048,)),
        *scans((8,), (2048,), (5120,)),
    ),
    ("causal_conv1d", "forward"): (
        *convs((1,), (2048, 8192, 32_768), (2048,)),
        *convs((8,), (4096,), (2048,), channel_last=False),
    ),
    ("causal_conv1d", "backward"): (
        *convs((1,), (2048, 8192, 32_768), (2048,)),
        *convs((8,), (4096,), (2048,), channel_last=False),
    ),
    ("causal_attention", "forward"): (
        *attentions(16_384, (2048, 8192, 32_768), 16, 64),
        *attentions(16_384, (2048, 8192, 32_768), 16, 128),
        *attentions(16_384, (16_384,), 32, 128, 8),
    ),
    ("causal_attention", "backward"): (
        *attentions(16_384, (2048, 8192), 16, 64),
        *attentions(16_384, (2048, 8192), 16, 128),
    ),
    ("causal_attention", "decode"): (
        *caches((1,), (2048, 8192, 32_768, 131_072), 32, 128, 8),
        *caches((64,), (8192,), 32, 128, 8),
    ),
    ("selective_state_update", "decode"): tuple(
        StateUpdateProblem(b, 5120) for b in (1, 16, 64, 256)
    ),
    ("causal_conv1d_update", "decode"): tuple(ConvUpdateProblem(b, 5120) for b in (1, 16, 64, 256)),
    ("attention_statistics", "forward"): (
        *attention_statistics((2048, 8192, 32_768, 131_072), 16, 64),
        *attention_statistics((8192,), 16, 128),
        *attention_statistics((8192,), 32, 128, 8),
    ),
    ("scan_statistics", "forward"): scan_statistics((2048, 8192, 32_768, 131_072), (1024,)),
    ("mamba_mixer", "forward"): MIXERS[:2],
}

_DIMS, _BATCHES = (1024, 2048, 5120), (1, 2, 4, 8)
_SCANS = (
    *scans(_BATCHES, OCTAVES, _DIMS),
    *scans((1, 8), (2048, 8192), (2048,), dstate=64),
    *scans((1, 8), (2048, 8192), (2048,), dstate=128),
    *scans((1, 8), (2048, 8192), (2048,), layout="time_last"),
)
_CONVS = (
    *convs(_BATCHES, OCTAVES, _DIMS),
    *convs((1, 8), (2048, 8192), (2048,), channel_last=False),
    *convs((1, 8), (2048, 8192), (2048,), width=8),
)
_FULL = {
    ("selective_scan", "forward"): _SCANS,
    ("selective_scan", "backward"): _SCANS,
    ("causal_conv1d", "forward"): _CONVS,
    ("causal_conv1d", "backward"): _CONVS,
    ("causal_attention", "forward"): (
        *attentions(16_384, OCTAVES, 16, 64),
        *attentions(16_384, OCTAVES, 16, 128),
        *attentions(16_384, OCTAVES, 32, 128, 8),
    ),
    ("causal_attention", "backward"): (
        *attentions(16_384, OCTAVES, 16, 64),
        *attentions(16_384, OCTAVES, 16, 128),
    ),
    ("causal_attention", "decode"): (
        *caches((1, 8, 64), OCTAVES, 32, 128, 8),
        *caches((1, 8), OCTAVES, 16, 64, None),
        *caches((1,), OCTAVES, 32, 128, 8, queries=4),
    ),
    ("selective_state_update", "decode"): tuple(
        StateUpdateProblem(b, d, n)
        for n in (16, 64, 128) for d in _DIMS for b in (1, 4, 16, 64, 256)
    ),
    ("causal_conv1d_update", "decode"): tuple(
        ConvUpdateProblem(b, d) for d in _DIMS for b in (1, 4, 16, 64, 256)
    ),
    ("attention_statistics", "forward"): (
        *attention_statistics(OCTAVES, 16, 64),
        *attention_statistics(OCTAVES, 16, 128),
        *attention_statistics(OCTAVES, 32, 128, 8),
    ),
    ("scan_statistics", "forward"): (
        *scan_statistics(OCTAVES, _DIMS),
        *scan_statistics((8192,), (2048,), dstate=64),
    ),
    ("mamba_mixer", "forward"): MIXERS,
}  # fmt: skip

_GRIDS = {
    "quick": _QUICK,
    "full": _FULL,
    "scan": SCAN,
    "attention": ATTENTION,
    "attention-few": ATTENTION_FEW,
    "attention-flex": ATTENTION_FLEX,
}
GRIDS = tuple(_GRIDS)
