"""Who is timed against whom by `bench.kernels`, and on which problems.

The implementations of the lab come through its public functions; peers are other people's kernels called
directly, so that each is seen at its best (torch's attention kernels one by one instead of torch's choice).
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.implementations import IMPLEMENTATIONS
from kernels.selective_scan.problem import SelectiveScanProblem

OPERATORS = ("selective_scan", "causal_conv1d", "causal_attention")

# {operator: {device type: problems}}: on a GPU the shapes of the models that people train, from a batch that
# fills the machine to one long sequence that does not; on a CPU one layer of paper-50m
GRIDS = {
    "selective_scan": {
        "cuda": (
            SelectiveScanProblem(1, 2048, 1024),
            SelectiveScanProblem(1, 8192, 2048),
            SelectiveScanProblem(8, 2048, 2048),
            SelectiveScanProblem(8, 4096, 5120),
            SelectiveScanProblem(1, 131_072, 1024),
            SelectiveScanProblem(1, 8192, 2048, layout="time_last"),
        ),
        "cpu": (SelectiveScanProblem(1, 512, 1024), SelectiveScanProblem(1, 2048, 1024)),
    },
    "causal_conv1d": {
        "cuda": (
            CausalConv1dProblem(batch=1, seqlen=8192, dim=2048),
            CausalConv1dProblem(batch=8, seqlen=4096, dim=2048),
            CausalConv1dProblem(batch=8, seqlen=4096, dim=2048, channel_last=False),
        ),
        "cpu": (CausalConv1dProblem(batch=1, seqlen=2048, dim=1024),),
    },
    "causal_attention": {
        "cuda": (
            CausalAttentionProblem(batch=1, nheads=8, seqlen=2048, headdim=64),
            CausalAttentionProblem(batch=2, nheads=16, seqlen=8192, headdim=64),
            CausalAttentionProblem(batch=2, nheads=16, seqlen=8192, headdim=128),
            CausalAttentionProblem(batch=1, nheads=32, seqlen=16_384, headdim=128, nheads_kv=8),
        ),
        "cpu": (
            CausalAttentionProblem(batch=1, nheads=8, seqlen=512, headdim=64),
            CausalAttentionProblem(batch=1, nheads=8, seqlen=2048, headdim=64),
        ),
    },
}

SDPA_BACKENDS = {
    "sdpa.flash": SDPBackend.FLASH_ATTENTION,
    "sdpa.cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa.efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def contenders(operator, device):
    """[(name, function of the problem's inputs that returns the output)] for a device."""
    public = getattr(kernels, operator)
    found = [
        (impl, lambda impl=impl, **inputs: public(**inputs, impl=impl)) for impl in IMPLEMENTATIONS
    ]
    if operator == "causal_attention" and device.type == "cuda":
        found += [
            (name, lambda backend=backend, **inputs: _sdpa(backend, **inputs))
            for name, backend in SDPA_BACKENDS.items()
        ]
    return found


def _sdpa(backend, q, k, v, softmax_scale=None):
    with sdpa_kernel(backend):
        try:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        except RuntimeError as error:
            if "No available kernel" in str(error):
                raise NotImplementedError(f"{backend.name} takes no {q.dtype} here") from error
            raise
