"""Which problems `bench.kernels` measures: operator, mode and sizes, by device and grid.

quick    a few lengths of a shape that people train; on a CPU one layer of paper-50m, on a GPU with batches that
         fill the machine and one long sequence that does not
full     a GPU's range: batch 1 to 8 (decoding: to 256), dim 1,024 to 5,120, dstate 16 to 128, headdim 64 and 128,
         512 to 131,072 tokens
"""

import dataclasses

from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.scan_statistics.problem import ScanStatisticsProblem
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem

# decode is one token in place, or attention of the last query over a cache
MODES = {
    "selective_scan": ("forward", "backward"),
    "causal_conv1d": ("forward", "backward"),
    "causal_attention": ("forward", "backward", "decode"),
    "selective_state_update": ("decode",),
    "causal_conv1d_update": ("decode",),
    "attention_statistics": ("forward",),
    "scan_statistics": ("forward",),
}
OPERATORS = tuple(MODES)
GRIDS = ("quick", "full")
LARGEST = 3 << 28  # tokens x channels: 1.5 GiB a bf16 tensor, of which a backward has ten
OCTAVES = tuple(512 << n for n in range(9))  # 512 to 131,072


def problems(operator, mode, device_type, grid="quick"):
    """The problems of an operator in a mode, in the order of their measurement."""
    if device_type == "cpu":
        return _CPU[operator, mode]
    return (_QUICK if grid == "quick" else _FULL)[operator, mode]


def resized(found, seqlens=None, batches=None):
    """The first problem of each list at lengths and batches of one's own; sizes that a problem lacks are left."""
    first = found[0]
    if seqlens and hasattr(first, "seqlen"):
        found = tuple(dataclasses.replace(first, seqlen=n) for n in seqlens)
    elif seqlens or batches:
        found = (first,)
    if batches:
        found = tuple(dataclasses.replace(p, batch=b) for b in batches for p in found)
    return found


def _scans(batches, seqlens, dims, dstate=16, **options):
    return tuple(
        SelectiveScanProblem(b, n, d, dstate, **options)
        for d in dims for b in batches for n in seqlens if b * n * d <= LARGEST
    )  # fmt: skip


def _attention_statistics(seqlens, *sizes):
    """Of the shapes of `_attentions`, with one sequence a batch."""
    return tuple(AttentionStatisticsProblem(**vars(p)) for p in _attentions(1, seqlens, *sizes))


def _scan_statistics(seqlens, dims, **options):
    return tuple(ScanStatisticsProblem(1, n, d, **options) for d in dims for n in seqlens)


def _convs(batches, seqlens, dims, **options):
    return tuple(
        CausalConv1dProblem(b, d, n, **options)
        for d in dims for b in batches for n in seqlens if b * n * d <= LARGEST
    )  # fmt: skip


def _attentions(tokens, seqlens, nheads, headdim, nheads_kv=None):
    """Batches of about `tokens` tokens in all, as far as one sequence allows."""
    return tuple(
        CausalAttentionProblem(max(1, min(8, tokens // n)), nheads, n, headdim, nheads_kv) for n in seqlens
    )  # fmt: skip


def _caches(batches, seqlens, nheads, headdim, nheads_kv, queries=1):
    return tuple(
        CausalAttentionProblem(b, nheads, n, headdim, nheads_kv, queries)
        for b in batches for n in seqlens if b * n <= 1 << 21
    )  # fmt: skip


_CPU = {
    ("selective_scan", "forward"): _scans((1,), (128, 512, 2048), (1024,)),
    ("selective_scan", "backward"): _scans((1,), (128, 512), (1024,)),
    ("causal_conv1d", "forward"): _convs((1,), (128, 512, 2048), (1024,)),
    ("causal_conv1d", "backward"): _convs((1,), (128, 512, 2048), (1024,)),
    ("causal_attention", "forward"): _attentions(1, (128, 512, 2048), 8, 64),
    ("causal_attention", "backward"): _attentions(1, (128, 512, 1024), 8, 64),
    ("causal_attention", "decode"): _caches((1,), (128, 512, 2048), 8, 64, None),
    ("selective_state_update", "decode"): tuple(StateUpdateProblem(b, 1024) for b in (1, 4, 16)),
    ("causal_conv1d_update", "decode"): tuple(ConvUpdateProblem(b, 1024) for b in (1, 4, 16)),
    ("attention_statistics", "forward"): _attention_statistics((128, 512, 2048), 8, 64),
    ("scan_statistics", "forward"): _scan_statistics((128, 512), (1024,)),
}

_QUICK = {
    ("selective_scan", "forward"): (
        *_scans((1,), (2048, 8192, 32_768, 131_072), (2048,)),
        *_scans((8,), (4096,), (5120,)),
        *_scans((1,), (8192,), (2048,), layout="time_last"),
    ),
    ("selective_scan", "backward"): (
        *_scans((1,), (2048, 8192, 32_768), (2048,)),
        *_scans((8,), (2048,), (5120,)),
    ),
    ("causal_conv1d", "forward"): (
        *_convs((1,), (2048, 8192, 32_768), (2048,)),
        *_convs((8,), (4096,), (2048,), channel_last=False),
    ),
    ("causal_conv1d", "backward"): (
        *_convs((1,), (2048, 8192, 32_768), (2048,)),
        *_convs((8,), (4096,), (2048,), channel_last=False),
    ),
    ("causal_attention", "forward"): (
        *_attentions(16_384, (2048, 8192, 32_768), 16, 64),
        *_attentions(16_384, (2048, 8192, 32_768), 16, 128),
        *_attentions(16_384, (16_384,), 32, 128, 8),
    ),
    ("causal_attention", "backward"): (
        *_attentions(16_384, (2048, 8192), 16, 64),
        *_attentions(16_384, (2048, 8192), 16, 128),
    ),
    ("causal_attention", "decode"): (
        *_caches((1,), (2048, 8192, 32_768, 131_072), 32, 128, 8),
        *_caches((64,), (8192,), 32, 128, 8),
    ),
    ("selective_state_update", "decode"): tuple(
        StateUpdateProblem(b, 5120) for b in (1, 16, 64, 256)
    ),
    ("causal_conv1d_update", "decode"): tuple(ConvUpdateProblem(b, 5120) for b in (1, 16, 64, 256)),
    ("attention_statistics", "forward"): (
        *_attention_statistics((2048, 8192, 32_768, 131_072), 16, 64),
        *_attention_statistics((8192,), 16, 128),
        *_attention_statistics((8192,), 32, 128, 8),
    ),
    ("scan_statistics", "forward"): _scan_statistics((2048, 8192, 32_768, 131_072), (1024,)),
}

_DIMS, _BATCHES = (1024, 2048, 5120), (1, 2, 4, 8)
_SCANS = (
    *_scans(_BATCHES, OCTAVES, _DIMS),
    *_scans((1, 8), (2048, 8192), (2048,), dstate=64),
    *_scans((1, 8), (2048, 8192), (2048,), dstate=128),
    *_scans((1, 8), (2048, 8192), (2048,), layout="time_last"),
)
_CONVS = (
    *_convs(_BATCHES, OCTAVES, _DIMS),
    *_convs((1, 8), (2048, 8192), (2048,), channel_last=False),
    *_convs((1, 8), (2048, 8192), (2048,), width=8),
)
_FULL = {
    ("selective_scan", "forward"): _SCANS,
    ("selective_scan", "backward"): _SCANS,
    ("causal_conv1d", "forward"): _CONVS,
    ("causal_conv1d", "backward"): _CONVS,
    ("causal_attention", "forward"): (
        *_attentions(16_384, OCTAVES, 16, 64),
        *_attentions(16_384, OCTAVES, 16, 128),
        *_attentions(16_384, OCTAVES, 32, 128, 8),
    ),
    ("causal_attention", "backward"): (
        *_attentions(16_384, OCTAVES, 16, 64),
        *_attentions(16_384, OCTAVES, 16, 128),
    ),
    ("causal_attention", "decode"): (
        *_caches((1, 8, 64), OCTAVES, 32, 128, 8),
        *_caches((1, 8), OCTAVES, 16, 64, None),
        *_caches((1,), OCTAVES, 32, 128, 8, queries=4),
    ),
    ("selective_state_update", "decode"): tuple(
        StateUpdateProblem(b, d, n)
        for n in (16, 64, 128) for d in _DIMS for b in (1, 4, 16, 64, 256)
    ),
    ("causal_conv1d_update", "decode"): tuple(
        ConvUpdateProblem(b, d) for d in _DIMS for b in (1, 4, 16, 64, 256)
    ),
    ("attention_statistics", "forward"): (
        *_attention_statistics(OCTAVES, 16, 64),
        *_attention_statistics(OCTAVES, 16, 128),
        *_attention_statistics(OCTAVES, 32, 128, 8),
    ),
    ("scan_statistics", "forward"): (
        *_scan_statistics(OCTAVES, _DIMS),
        *_scan_statistics((8192,), (2048,), dstate=64),
    ),
}  # fmt: skip
