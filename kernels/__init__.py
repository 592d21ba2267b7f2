"""The operators of the lab, each with five implementations behind one public function.

    import kernels

    y = kernels.selective_scan(u, delta, A, B, C, D, z=z, delta_bias=bias, delta_softplus=True, impl="triton")
    y = kernels.selective_state_update(state, x, dt, A, B, C, D, z=z, dt_bias=bias, dt_softplus=True, impl="triton")
    y = kernels.causal_conv1d(x, weight, bias, activation="silu", impl="triton")
    o = kernels.causal_attention(q, k, v, impl="triton")
    y = kernels.ssd_scan(x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True, impl="triton")     # Mamba-2's scan
    statistics = kernels.attention_statistics(q, k, impl="triton")     # of its weights, without the matrix of them
    statistics = kernels.scan_statistics(delta, A, B, C, bias, True, impl="triton")    # of a scan's implicit attention
    kernels.implementations()          # what can run here, and why the rest cannot

The operators' folders have the names of the functions: import what is inside them with
`from kernels.selective_scan.problem import SelectiveScanProblem`.
"""

from kernels.attention_statistics.op import attention_statistics
from kernels.causal_attention.op import causal_attention
from kernels.causal_conv1d.op import causal_conv1d, causal_conv1d_update
from kernels.implementations import Unavailable, implementations
from kernels.scan_statistics.op import scan_statistics
from kernels.selective_scan.op import selective_scan, selective_state_update
from kernels.ssd_scan.op import ssd_scan

__all__ = [
    "Unavailable",
    "attention_statistics",
    "causal_attention",
    "causal_conv1d",
    "causal_conv1d_update",
    "implementations",
    "scan_statistics",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
]
