"""The public operator `scan_statistics`: checks, then the implementation that the caller named."""

import torch

from kernels import checks
from kernels.implementations import check_impl, find
from kernels.scan_statistics.reference import ScanStatistics
from kernels.selective_scan.op import check_operands
from profiles.ranges import annotate

LEVELS = ("state", "channel")


def scan_statistics(
    delta,
    A,
    B,
    C,
    delta_bias=None,
    delta_softplus=False,
    top_k=5,
    span_threshold=0.01,
    *,
    level="state",
    rows=None,
    channels=None,
    impl="triton",
) -> ScanStatistics:
    """Exact statistics of the implicit attention of a selective scan, without its seqlen x seqlen weights.

    Operands are those of `selective_scan`; `kernels.scan_statistics.reference` has the equations.

    Args:
        delta: (batch, dim, seqlen), any strides.
        A: (dim, dstate), negative; dstate is 1 to 256.
        B, C: (batch, dstate, seqlen), or (batch, ngroups, dstate, seqlen) with dim % ngroups == 0.
        delta_bias: (dim,) or None.
        delta_softplus: the step size is softplus(delta + delta_bias).
        top_k: how many of the largest weights make up the top mass.
        span_threshold: between 0 and 1; the span reaches back to the first weight above it.
        level: "state": one distribution per channel and state for every token, in one pass and O(seqlen) memory; the
            results are means over the channels. "channel": |alpha| of whole channels, O(seqlen * dstate) work for
            every row and channel, so sample them on long sequences.
        rows: (n,) int64, the query tokens of level "channel"; all if None.
        channels: (m,) int64, the channels of level "channel"; all if None.
        impl: triton, torch, cpu or reference; level "channel" is computed by torch and reference.

    There are no gradients.

    Returns:
        ScanStatistics: entropy (nats), distance, top_mass and span (tokens), each (batch, dstate, seqlen), on level
        "channel" (batch, m, n); float32, or float64 if `delta` is. A row without any weight, where B was exactly 0 up
        to its token, is left out of the mean; if all channels are, or on level "channel", its four numbers are 0.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        kernels.implementations.Unavailable: `impl` cannot run here.
        NotImplementedError: `impl` cannot compute this case; the message names one that can.
    """
    check_impl(impl)
    B, C = check_scan("scan_statistics", impl, delta, A, B, C, delta_bias, delta_softplus)
    checks.check_statistics(top_k, span_threshold)
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    if level == "channel":
        rows, channels = check_sample(delta, rows, channels)
    elif rows is not None or channels is not None:
        raise ValueError(
            "rows and channels are samples for level='channel'; level='state' computes all in one pass: leave them out"
        )
    compute = find("scan_statistics", impl, delta.device)
    with annotate("op/scan_statistics", payload=delta.shape[2]):
        return compute(
            delta, A, B, C, delta_bias, delta_softplus, top_k, float(span_threshold), level, rows, channels
        )  # fmt: skip


def check_scan(operator, impl, delta, A, B, C, delta_bias, delta_softplus):
    """Check the operands of a scan without its input; returns B and C by group."""
    checks.check_tensor("delta", delta, (None, None, None), like=delta)
    if delta.numel() == 0:
        raise ValueError(
            f"delta must have at least one batch, channel and token, got {tuple(delta.shape)}"
        )
    _, B, C = check_operands("delta", delta, delta, A, B, C, None, None, delta_bias, delta_softplus)  # fmt: skip
    checks.check_no_gradient(
        operator, impl, delta, A, B, C, delta_bias, remedy="no implementation has: detach them"
    )
    return B, C


def check_sample(delta, rows, channels):
    """Check which rows and channels are wanted; returns both, all of them for None."""
    found = []
    for name, t, size in (("rows", rows, delta.shape[2]), ("channels", channels, delta.shape[1])):
        if t is None:
            t = torch.arange(size, device=delta.device)
        checks.check_tensor(name, t, (None,), like=delta, dtypes=(torch.int64,))
        if t.numel() == 0 or int(t.min()) < 0 or int(t.max()) >= size:
            got = "none" if t.numel() == 0 else f"{int(t.min())} to {int(t.max())}"
            raise ValueError(f"{name} must be some of 0 to {size - 1}, got {got}")
        found.append(t)
    return found
