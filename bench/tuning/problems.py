"""Which problems `bench.tune` tunes a kernel on: few, since every one is measured in many configurations.

A configuration serves the problems around its own, so each kernel has small work, which leaves multiprocessors idle,
and large work, which does not; headdim and dstate, which change the code, have problems of their own. The first
problem of a list is the one that matters most: the lab's sweeps run one sequence through paper-50m.
"""

from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem
from kernels.ssd_scan.problem import SsdScanProblem
from kernels.tuning import KERNELS

# Most valuable first: what the budget may not reach comes last.
ORDER = (
    "selective_scan_fwd",
    "causal_attention_fwd",
    "causal_attention_bwd_dkdv",
    "causal_attention_bwd_dq",
    "selective_scan_bwd",
    "causal_conv1d_fwd",
    "attention_statistics",
    "causal_attention_decode",
    "selective_state_update",
    "causal_conv1d_bwd",
    "ssd_scan_fwd",
)

_CONVS = (
    CausalConv1dProblem(1, 1024, 4096),
    CausalConv1dProblem(1, 1024, 32_768),
    CausalConv1dProblem(8, 2048, 4096),
    CausalConv1dProblem(8, 2048, 4096, channel_last=False),
)
PROBLEMS = {
    ("selective_scan", "forward"): (
        SelectiveScanProblem(1, 4096, 1024),
        SelectiveScanProblem(8, 4096, 2048),
        SelectiveScanProblem(1, 32_768, 2048),
        SelectiveScanProblem(1, 512, 1024),
        SelectiveScanProblem(2, 4096, 2048, 64),
    ),
    ("selective_scan", "backward"): (
        SelectiveScanProblem(1, 4096, 1024),
        SelectiveScanProblem(8, 2048, 2048),
        SelectiveScanProblem(1, 16_384, 2048),
    ),
    ("selective_state_update", "decode"): (
        StateUpdateProblem(1, 1024),
        StateUpdateProblem(64, 5120),
        StateUpdateProblem(256, 2048),
    ),
    ("causal_conv1d", "forward"): _CONVS,
    ("causal_conv1d", "backward"): _CONVS,
    ("causal_attention", "forward"): (
        CausalAttentionProblem(2, 16, 8192, 128),
        CausalAttentionProblem(2, 16, 8192, 64),
        CausalAttentionProblem(1, 8, 2048, 64),
        CausalAttentionProblem(1, 32, 2048, 128, 8),
        CausalAttentionProblem(1, 16, 32_768, 128),
        CausalAttentionProblem(1, 16, 32_768, 64),
    ),
    ("causal_attention", "backward"): (
        CausalAttentionProblem(2, 16, 8192, 128),
        CausalAttentionProblem(2, 16, 8192, 64),
        CausalAttentionProblem(1, 8, 2048, 64),
        CausalAttentionProblem(1, 16, 2048, 128),
    ),
    ("causal_attention", "decode"): (
        CausalAttentionProblem(1, 32, 8192, 128, 8, 1),
        CausalAttentionProblem(1, 8, 2048, 64, None, 1),
        CausalAttentionProblem(1, 32, 131_072, 128, 8, 1),
        CausalAttentionProblem(64, 32, 8192, 128, 8, 1),
    ),
    ("attention_statistics", "forward"): (
        AttentionStatisticsProblem(1, 16, 8192, 64),
        AttentionStatisticsProblem(1, 16, 8192, 128),
        AttentionStatisticsProblem(1, 8, 2048, 64),
    ),
    ("ssd_scan", "forward"): (
        SsdScanProblem(1, 4096, 32),
        SsdScanProblem(8, 4096, 32),
        SsdScanProblem(8, 4096, 32, dstate=64),
    ),
}  # fmt: skip


def problems(kernel):
    """The problems that a kernel is tuned on, the most valuable one first."""
    return PROBLEMS[KERNELS[kernel][:2]]
