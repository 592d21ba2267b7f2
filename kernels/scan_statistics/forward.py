"""`triton`: one pass over the tokens for level "state"; a program owns some states of a block of channels.

Recurrences as in `portable.py`; compensated sums and the queue of candidates for the span as in `cpu.py`, in float32.
The queue lies in memory, 1 / span_threshold numbers a state at most, of which a token touches few. Sums over the
channels of a block go to memory, and a second reduction, in float64, adds up the blocks: the same bits every time.

Time goes in segments, so that those sums take no more memory for a longer sequence; between them states lie in memory.
"""

import torch
import triton

from kernels.implementations import interpreted, note
from kernels.scan_statistics.forward_kernels import CARRIED, scan_statistics_kernel
from kernels.scan_statistics.reference import ScanStatistics, means
from kernels.specialise import static_case

# Not measured on a GPU yet. Two states share softplus and logarithm of a step size; more would leave fewer warps.
CONFIG = {"BLOCK_N": 2, "BLOCK_D": 32}
# with the 128 registers that the assembler chooses, two spill on sm_100
OPTIONS = {"num_warps": 1, "num_stages": 1, "maxnreg": 168}
TOKENS = 1024  # of a segment
MAX_TOP_K = 8  # in registers


def scan_statistics_triton(
    delta, A, B, C, delta_bias, delta_softplus, top_k, span_threshold, level, rows, channels
):
    """Arguments and returns as in `scan_statistics_ref`, for level "state"; computes in float32."""
    if level != "state":
        raise NotImplementedError(
            f"scan_statistics: impl 'triton' has no level {level!r}; it is computed by impl='torch'"
        )
    if delta.dtype == torch.float64:
        raise NotImplementedError(
            "scan_statistics: impl 'triton' computes in float32, got delta in float64; use impl='torch'"
        )
    if top_k > MAX_TOP_K:
        raise NotImplementedError(
            f"scan_statistics: impl 'triton' takes top_k up to {MAX_TOP_K}, got {top_k}; use impl='torch'"
        )
    note("scan_statistics", "triton.scan_statistics")
    batch, _, seqlen = delta.shape
    found = torch.empty(4, batch, A.shape[1], seqlen, dtype=torch.float32, device=delta.device)
    grid, args = plan(delta, A, B, delta_bias, delta_softplus, top_k, span_threshold)
    for start in range(0, seqlen, TOKENS):
        tokens = min(TOKENS, seqlen - start)
        args |= {"start": start, "tokens": tokens}
        args["sums_ptr"] = args["sums_ptr"][..., :tokens].contiguous()
        with torch.cuda.device_of(delta):
            scan_statistics_kernel[grid](**args, **OPTIONS)
        sums = args["sums_ptr"].sum(1, dtype=torch.float64).transpose(0, 1)
        found[..., start : start + tokens] = torch.stack(means(sums[:4], sums[4]))
    return ScanStatistics(*found)


def plan(delta, A, B, delta_bias, delta_softplus, top_k, span_threshold):
    """The grid, and the arguments of the first segment with the state before the first token."""
    batch, dim, seqlen = delta.shape
    ngroups, dstate = B.shape[1:3]
    config = _config(dim // ngroups, dstate)
    blocks = ngroups * triton.cdiv(dim // ngroups, config["BLOCK_D"])
    kept = min(int(1.001 / span_threshold) + 2, seqlen)
    tokens = min(TOKENS, seqlen)
    new = lambda rows, dtype=torch.float32: torch.zeros(
        rows, batch, dstate, dim, dtype=dtype, device=delta.device
    )
    state = new(CARRIED.value + top_k)
    state[0] = -4e30
    sums = torch.empty(batch, blocks, 5, dstate, tokens, dtype=torch.float32, device=delta.device)
    args = dict(
        delta_ptr=delta, A_ptr=A, B_ptr=B, bias_ptr=None if delta_bias is None else delta_bias.contiguous(),
        state_ptr=state, queue_ptr=new(3, torch.int32), ratios_ptr=new(kept), places_ptr=new(kept, torch.int32),
        sums_ptr=sums, delta_strides=delta.stride(), A_strides=A.stride(), B_strides=B.stride(),
        start=0, tokens=tokens, dim=dim, dstate=dstate, ngroups=ngroups, kept=kept,
        THRESHOLD=span_threshold, SOFTPLUS=delta_softplus, TOP_K=top_k, **config,
    )  # fmt: skip
    return (blocks, triton.cdiv(dstate, config["BLOCK_N"]), batch), args


def _config(group_dim, dstate):
    if interpreted():  # there a step costs the same for any width
        power = triton.next_power_of_2
        return {"BLOCK_N": power(dstate), "BLOCK_D": min(4096, power(group_dim))}
    return CONFIG


def static_cases():
    """The default configurations, for `profiles.static`: what is launched for typical problems."""
    from kernels.scan_statistics.problem import ScanStatisticsProblem

    for name, dtype, layout, top_k in (
        ("fp32", torch.float32, "channel_last", 5),
        ("bf16", torch.bfloat16, "channel_last", 5),
        ("fp32-time_last-top8", torch.float32, "time_last", 8),
    ):
        inputs = ScanStatisticsProblem(1, 8192, layout=layout).inputs(dtype, "meta")
        del inputs["C"]
        _, args = plan(**inputs, top_k=top_k, span_threshold=0.01)
        # the innermost loop is that of the queue, which few tokens enter: no measure of the work of one
        case = {"name": f"scan_statistics-{name}", "work": {}}
        yield case | static_case(scan_statistics_kernel, args) | OPTIONS
