"""Fractions of a GPU's range of sizes, for which a plan of `bench.gpu_suite` has the time."""

from functools import partial

from bench.kernel_lists import OCTAVES, attention_statistics, attentions, caches
from bench.mixer import MIXERS
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem


def _lines(make, *lines):
    """Problems of several lines: each a dict of sizes, of which `seqlens` are those along it."""
    return tuple(
        make(seqlen=n, **{name: size for name, size in line.items() if name != "seqlens"})
        for line in lines for n in line["seqlens"]
    )  # fmt: skip


# A fraction of batch {1, 2, 8} x dim {1,024, 1,536, 2,048, 5,120} x 9 lengths x dstate {16, 64}: every level, and every
# pair of extremes that has at most LARGEST elements. One line over all lengths, the others at every second or third.
_FRACTION = (
    {"batch": 1, "dim": 2048, "dstate": 16, "seqlens": OCTAVES},
    {"batch": 1, "dim": 1024, "dstate": 16, "seqlens": (512, 2048, 8192, 32_768, 131_072)},
    {"batch": 8, "dim": 5120, "dstate": 16, "seqlens": (512, 2048, 8192, 16_384)},
    {"batch": 1, "dim": 5120, "dstate": 16, "seqlens": (512, 4096, 32_768, 131_072)},
    {"batch": 8, "dim": 1024, "dstate": 16, "seqlens": (512, 4096, 16_384, 65_536)},
    {"batch": 2, "dim": 1536, "dstate": 16, "seqlens": (1024, 4096, 16_384, 65_536)},
    {"batch": 1, "dim": 1024, "dstate": 64, "seqlens": (512, 131_072)},
    {"batch": 2, "dim": 2048, "dstate": 64, "seqlens": (8192,)},
    {"batch": 8, "dim": 5120, "dstate": 64, "seqlens": (512,)},
)
_CONV_FRACTION = (
    {"batch": 1, "dim": 2048, "seqlens": (512, 2048, 8192, 32_768, 131_072)},
    {"batch": 8, "dim": 5120, "seqlens": (512, 8192)},
    {"batch": 8, "dim": 1024, "seqlens": (4096, 65_536)},
    {"batch": 2, "dim": 1536, "seqlens": (4096,)},
    {"batch": 1, "dim": 2048, "seqlens": (8192,), "channel_last": False},
)
SCAN = {
    ("selective_scan", "forward"): _lines(SelectiveScanProblem, *_FRACTION),
    ("selective_scan", "backward"): _lines(SelectiveScanProblem, *_FRACTION),
    ("causal_conv1d", "forward"): _lines(CausalConv1dProblem, *_CONV_FRACTION),
    ("causal_conv1d", "backward"): _lines(CausalConv1dProblem, *_CONV_FRACTION),
    ("selective_state_update", "decode"): tuple(
        StateUpdateProblem(b, d, n)
        for b, d, n in (
            (1, 1024, 16), (1, 5120, 16), (1, 2048, 64), (8, 1536, 16), (64, 2048, 16), (256, 5120, 16),
            (256, 1024, 64),
        )
    ),
    ("causal_conv1d_update", "decode"): tuple(
        ConvUpdateProblem(b, d) for b, d in ((1, 1024), (1, 5120), (8, 1536), (64, 2048), (256, 5120))
    ),
    ("mamba_mixer", "forward"): MIXERS,
}  # fmt: skip


_heads = partial(attentions, 16_384)
# Of heads {8, 32} x headdim {64, 128} x query heads per key head {1, 4, 8} x 9 lengths, likewise
_ATTENTION_FORWARD = (
    *_heads(OCTAVES, 32, 128, 8),
    *_heads((512, 2048, 8192, 32_768, 131_072), 32, 64),
    *_heads((1024, 8192, 131_072), 8, 128, 1),
    *_heads((512, 4096, 131_072), 8, 64),
    *_heads((8192,), 32, 128),
    *_heads((2048, 16_384), 32, 64, 4),
    *_heads((4096,), 8, 64, 2),
)
_ATTENTION_BACKWARD = (
    *_heads((512, 2048, 8192, 32_768), 32, 128, 8),
    *_heads((512, 2048, 8192, 32_768), 32, 64),
    *_heads((1024, 16_384), 8, 128, 1),
    *_heads((4096, 65_536), 8, 64),
)
ATTENTION = {
    ("causal_attention", "forward"): _ATTENTION_FORWARD,
    ("causal_attention", "backward"): _ATTENTION_BACKWARD,
    ("causal_attention", "decode"): (
        *caches((1,), OCTAVES[::2], 32, 128, 8),
        *caches((64,), (512, 8192, 32_768), 32, 128, 8),
        *caches((8,), (2048, 131_072), 32, 64, None),
        *caches((1,), (1024, 131_072), 8, 64, None),
        *caches((8,), (4096, 65_536), 8, 128, 1),
    ),
    ("attention_statistics", "forward"): (
        *attention_statistics((512, 2048, 8192, 32_768, 131_072), 32, 64),
        *attention_statistics((8192, 131_072), 32, 128, 8),
        *attention_statistics((1024,), 8, 128, 1),
        *attention_statistics((4096,), 8, 64),
    ),
}
ATTENTION_FLEX = {  # for the peer that compiles at every shape
    ("causal_attention", "forward"): _heads((2048, 8192, 32_768), 32, 128, 8),
    ("causal_attention", "backward"): _heads((8192,), 32, 128, 8),
}
ATTENTION_FEW = {  # for the dtypes beside bfloat16
    ("causal_attention", "forward"): (
        *_heads((2048, 8192, 32_768), 32, 128, 8),
        *_heads((512, 8192), 32, 64),
        *_heads((4096,), 8, 64),
    ),
    ("causal_attention", "backward"): (
        *_heads((2048, 8192), 32, 128, 8),
        *_heads((512, 8192), 32, 64),
    ),
    ("causal_attention", "decode"): (
        *caches((1,), (8192, 131_072), 32, 128, 8),
        *caches((8,), (2048,), 32, 64, None),
    ),
    ("attention_statistics", "forward"): attention_statistics((2048, 8192), 32, 64),
}
