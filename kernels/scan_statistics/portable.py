"""`torch`: the statistics in plain PyTorch, on any device, in one pass and bounded memory.

All earlier weights of a (channel, state) decay by the same factor, so a token divides the new distribution in two:
the share r = w / Z of its own weight, and s = 1 - r of the old distribution as it was. With Z <- e^(A d) Z + w,

    entropy  <- s entropy + (-r ln r - s ln s)        the chain rule of entropy: nothing cancels
    distance <- s (distance + 1)
    top      <- the largest of s top and r

Z is kept as its logarithm, which neither under- nor overflows: x = ln w - ln(e^(A d) Z) gives r = sigmoid(x).

p_ij never grows with i. So a key that has fallen below the threshold stays below, and at most 1 / span_threshold keys
are above it at a time: those are remembered, with ln w_j - A P_j from a moving origin, and the first of them above
ln(threshold Z_i) - A P_i is found by bisection in their running maximum.

Everything is float64: rounding errors of 100,000 tokens add up, and time is spent on launches.
"""

import torch

from kernels.implementations import note
from kernels.scan_statistics.channels import channel_statistics
from kernels.scan_statistics.reference import ScanStatistics, means, step_sizes

TOKENS = 128  # of a block
LANES = {"cpu": 1 << 13, "cuda": 1 << 15}  # channels times states of a block
NOTHING = -1e30  # the logarithm of a weight of zero, and less that of Z before the first token


def scan_statistics_torch(
    delta, A, B, C, delta_bias, delta_softplus, top_k, span_threshold, level, rows, channels
):
    """Arguments and returns as in `scan_statistics_ref`; computes in float64, level "channel" as `delta`."""
    note("scan_statistics", "torch.scan_statistics")
    if level == "channel":
        return channel_statistics(
            delta, A, B, C, delta_bias, delta_softplus, top_k, span_threshold, rows, channels
        )
    batch, dim, seqlen = delta.shape
    dstate = A.shape[1]
    sums = torch.zeros(5, batch, seqlen, dstate, dtype=torch.float64, device=delta.device)
    some = max(1, LANES.get(delta.device.type, 1 << 13) // (batch * dstate))
    for first in range(0, dim, some):
        block = torch.arange(first, min(first + some, dim), device=delta.device)
        bias = None if delta_bias is None else delta_bias[block]
        group = block * B.shape[1] // dim
        state = _start(batch, len(block), dstate, top_k, span_threshold, seqlen, delta.device)
        for start in range(0, seqlen, TOKENS):
            time = slice(start, start + TOKENS)
            d = step_sizes(delta[:, block, time], bias, delta_softplus, torch.float64)
            d = d.transpose(1, 2)[..., None]  # (batch, tokens, channels, 1)
            b = B[..., time].to(torch.float64).permute(0, 3, 1, 2)[:, :, group]
            log_w = _log(d) + _log(b)
            steps = d * A[block].to(torch.float64)
            sums[:, :, time] += _walk(state, steps, log_w, start, span_threshold)
    dtype = torch.promote_types(delta.dtype, torch.float32)
    found = means(sums[:4], sums[4])
    return ScanStatistics(*(t.mT.to(dtype).contiguous() for t in found))


def _log(t):
    return t.abs().log_().clamp_(min=NOTHING)


def _start(batch, channels, dstate, top_k, span_threshold, seqlen, device):
    """The state before the first token: nothing has weight."""
    new = lambda *more: torch.zeros(
        *more, batch, channels, dstate, dtype=torch.float64, device=device
    )
    kept = min(int(1 / span_threshold) + 1, seqlen)
    return {
        "log_Z": new() + 4 * NOTHING,
        "entropy": new(),
        "distance": new(),
        "top": new(top_k),
        "keys": new(kept).movedim(0, -1) - float("inf"),  # ln w_j - A P_j, P from the next token on
        "places": new(kept).movedim(0, -1).long(),
    }


def _walk(state, steps, log_w, start, span_threshold):
    """Take the state over a block of tokens; returns the sums over channels of the four and of how many there are."""
    log_Zs, before = [], []
    for step, w in zip(steps.unbind(1), log_w.unbind(1), strict=True):
        before.append(state["log_Z"] + step)
        state["log_Z"] = torch.logaddexp(before[-1], w)
        log_Zs.append(state["log_Z"])
    log_Z = torch.stack(log_Zs, 1)
    x = log_w - torch.stack(before, 1)
    e = torch.exp(-x.abs())
    minor, major = e / (1 + e), 1 / (1 + e)
    r, s = torch.where(x > 0, major, minor), torch.where(x > 0, minor, major)
    gained = torch.log1p(e) + x.abs() * minor  # -r ln r - s ln s

    found = torch.empty(4, *x.shape, dtype=x.dtype, device=x.device)
    for t in range(x.shape[1]):
        share, kept = r[:, t], s[:, t]
        state["entropy"] = torch.addcmul(gained[:, t], kept, state["entropy"])
        state["distance"] = kept * (state["distance"] + 1)
        state["top"] = _insert(state["top"] * kept, share)
        found[0, :, t], found[1, :, t] = state["entropy"], state["distance"]
        found[2, :, t] = state["top"].sum(0)
    found[3] = _spans(state, steps, log_w, log_Z, start, span_threshold)
    undefined = log_Z < NOTHING / 2
    sums = found.masked_fill_(undefined, 0.0).sum(3)
    return torch.cat([sums, (~undefined).sum(2, dtype=sums.dtype)[None]])


def _insert(top, share):
    """The largest of `top` (k, ...), which descends, and `share`."""
    rows = []
    for row in top:
        rows.append(torch.maximum(row, share))
        share = torch.minimum(row, share)
    return torch.stack(rows)


def _spans(state, steps, log_w, log_Z, start, span_threshold):
    """i - min{j : p_ij > span_threshold}, 0 where there is none: (batch, tokens, channels, dstate)."""
    since = steps.cumsum(1)  # A P, from the start of the block
    tokens = torch.arange(start, start + steps.shape[1], device=steps.device)
    last = lambda t: t.movedim(1, -1)  # keys innermost
    keys = torch.cat([state["keys"], last(log_w - since)], -1)
    new_places = tokens.expand(*keys.shape[:-1], -1)
    places = torch.cat([state["places"], new_places], -1)

    # the running maximum over all of the block: where it first exceeds the bound of row i, j <= i, or row i has none
    bound = last(log_Z - since) + torch.log(log_Z.new_tensor(span_threshold))
    at = torch.searchsorted(keys.cummax(-1).values, bound.contiguous(), right=True)
    place = places.gather(-1, at.clamp(max=keys.shape[-1] - 1))
    found = (at < keys.shape[-1]) & (place <= tokens)
    span = torch.where(found, tokens - place, 0).to(steps.dtype)

    alive = keys.masked_fill(keys <= bound[..., -1:], float("-inf"))
    kept = alive.topk(state["keys"].shape[-1], dim=-1).indices.sort(-1).values
    state["keys"] = alive.gather(-1, kept) + last(since[:, -1:])
    state["places"] = places.gather(-1, kept)
    return span.movedim(-1, 1)
