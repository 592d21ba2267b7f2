"""Lists of problems that vary in some of their sizes, for the grids of `bench.kernels`."""

from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.scan_statistics.problem import ScanStatisticsProblem
from kernels.selective_scan.problem import SelectiveScanProblem

LARGEST = 3 << 28  # tokens x channels: 1.5 GiB a bf16 tensor, of which a backward has ten
OCTAVES = tuple(512 << n for n in range(9))  # 512 to 131,072


def scans(batches, seqlens, dims, dstate=16, **options):
    return tuple(
        SelectiveScanProblem(b, n, d, dstate, **options)
        for d in dims for b in batches for n in seqlens if b * n * d <= LARGEST
    )  # fmt: skip


def attention_statistics(seqlens, *sizes):
    """Of the shapes of `attentions`, with one sequence a batch."""
    return tuple(AttentionStatisticsProblem(**vars(p)) for p in attentions(1, seqlens, *sizes))


def scan_statistics(seqlens, dims, **options):
    return tuple(ScanStatisticsProblem(1, n, d, **options) for d in dims for n in seqlens)


def convs(batches, seqlens, dims, **options):
    return tuple(
        CausalConv1dProblem(b, d, n, **options)
        for d in dims for b in batches for n in seqlens if b * n * d <= LARGEST
    )  # fmt: skip


def attentions(tokens, seqlens, nheads, headdim, nheads_kv=None):
    """Batches of about `tokens` tokens in all, as far as one sequence allows."""
    return tuple(
        CausalAttentionProblem(max(1, min(8, tokens // n)), nheads, n, headdim, nheads_kv) for n in seqlens
    )  # fmt: skip


def caches(batches, seqlens, nheads, headdim, nheads_kv, queries=1):
    return tuple(
        CausalAttentionProblem(b, nheads, n, headdim, nheads_kv, queries)
        for b in batches for n in seqlens if b * n <= 1 << 21
    )  # fmt: skip
