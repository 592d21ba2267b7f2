"""`torch`: blocks of query rows beside all the keys that they see, on any device; the upper triangle is left out.

A block of scores is at most BLOCK_ELEMENTS numbers, on a CPU a cache's worth, or LEAST_ROWS rows: memory beside the
results is O(seqlen_k). With t = s - max(s), l = sum e^t and p = e^t / l,

    entropy = ln l - sum e^t t / l

in which both terms are at least 0, so nothing cancels (it would in lse - sum e^s s / l). Keys lie in groups of GROUP:
the largest scores of a row are among the groups with the largest maxima, the first key above the span's threshold is
in the first group whose maximum is above it, and l and the mean distance are summed in float64 over sums of groups.
"""

import math

import torch
import torch.nn.functional as F

from kernels.attention_statistics.reference import AttentionStatistics
from kernels.implementations import note

GROUP = 64
LEAST_ROWS = 32  # fewer would read all keys for little work
MOST_ROWS = {"cpu": 128, "cuda": 4096}
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}


def attention_statistics_torch(q, k, softmax_scale, top_k, span_threshold, positions):
    """Operands and results as `attention_statistics_ref`, which this equals to rounding."""
    note("attention_statistics", "torch.attention_statistics")
    batch, nheads, seqlen_q, _ = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    rows = q.new_empty(4, batch, nheads, seqlen_q, dtype=dtype)
    received = q.new_zeros(batch, nheads, seqlen_k, dtype=torch.float64)
    # whole groups, so that a block of scores can be seen as (rows, groups, GROUP)
    padding = -seqlen_k % GROUP
    for b in range(batch):
        for h_kv in range(nheads_kv):
            keys = F.pad(k[b, h_kv].to(dtype), (0, 0, 0, padding)).mT
            for h in range(h_kv * nheads // nheads_kv, (h_kv + 1) * nheads // nheads_kv):
                queries = q[b, h].to(dtype)
                for first, last, width in _blocks(positions, q.device.type):
                    rows[:, b, h, first:last], weights = _block_statistics(
                        queries[first:last] @ keys[:, :width], softmax_scale, positions[first:last],
                        top_k, span_threshold,
                    )  # fmt: skip
                    seen = min(width, seqlen_k)
                    received[b, h, :seen] += weights[:seen]
    return AttentionStatistics(*rows, received.to(dtype))


def _blocks(positions, device_type):
    """(first row, last row + 1, keys that they see in whole groups) of every block."""
    ends = positions.tolist()
    place = "cpu" if device_type == "cpu" else "cuda"
    elements, most = BLOCK_ELEMENTS[place], MOST_ROWS[place]
    first = 0
    while first < len(ends):
        fitting = elements // (ends[min(first + most, len(ends)) - 1] + GROUP)
        last = min(first + min(most, max(LEAST_ROWS, fitting)), len(ends))
        yield first, last, -(-(ends[last - 1] + 1) // GROUP) * GROUP
        first = last


def _block_statistics(s, softmax_scale, positions, top_k, span_threshold):
    """((4, rows) entropy, distance, top mass and span, (width,) sums of the weights) of s = q k', (rows, width).

    Overwrites s.
    """
    width = s.shape[1]
    position = positions[:, None]
    masked = int(positions[0]) + 1  # every row sees the keys before it
    hidden = torch.arange(masked, width, device=s.device) > position
    s[:, masked:].masked_fill_(hidden, float("-inf"))
    groups = lambda t: t.view(len(t), -1, GROUP)

    group_max = groups(s).amax(2)
    m = group_max.amax(1, keepdim=True)
    t = s.sub_(m).mul_(softmax_scale)
    group_max = (group_max - m) * softmax_scale
    largest = _largest(groups(t), group_max, top_k)
    earliest = torch.arange(0, width, GROUP, device=s.device)

    e = t.exp()
    sums = groups(e).sum(2).double()
    total = sums.sum(1, keepdim=True)
    span = _span(
        groups(t), group_max, position, (total.log() + math.log(span_threshold)).to(s.dtype)
    )
    inside = torch.arange(GROUP, dtype=s.dtype, device=s.device)
    within = (e.view(-1, GROUP) @ inside).view(sums.shape).double()
    distance = ((position - earliest) * sums - within).sum(1)
    t[:, masked:].masked_fill_(hidden, 0.0)  # for 0 ln 0
    entropy = total[:, 0].log() - t.mul_(e).sum(1) / total[:, 0]
    received = e.mul_((1 / total).to(s.dtype)).sum(0)
    top_mass = largest.exp().sum(1) / total[:, 0]
    rows = (entropy, distance / total[:, 0], top_mass, span)
    return torch.stack([row.to(s.dtype) for row in rows]), received


def _largest(t, group_max, top_k):
    """The `top_k` largest of each row of `t` (rows, groups, GROUP), whose largest by group are `group_max`."""
    top_groups = group_max.topk(min(top_k, t.shape[1]), dim=1).indices
    candidates = t.take_along_dim(top_groups[:, :, None], dim=1).flatten(1)
    return candidates.topk(min(top_k, candidates.shape[1]), dim=1).values


def _span(t, group_max, position, threshold):
    """Tokens back to the first of `t` (rows, groups, GROUP) above `threshold` (rows, 1); 0 where there is none."""
    above = group_max > threshold
    group = above.byte().argmax(1)
    first = t[torch.arange(len(t), device=t.device), group] > threshold
    earliest = GROUP * group + first.byte().argmax(1)
    return torch.where(above.any(1), position[:, 0] - earliest, 0)
