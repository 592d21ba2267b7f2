"""How much every earlier token contributes to what a mixing operator adds to a token, with values and projections.

The weights of softmax attention and of a scan do not compare: one set sums to 1, the other is signed and scaled by the
step size, for inputs of another size. What they bring into the residual stream does compare. The operator's output at
token i, after its output projection W, is a sum over tokens j <= i of one vector each; the length of that vector is the
contribution c_ij, as Kobayashi et al. (2020) weigh attention by the norm of what is attended to:

    softmax     c_ij = || W [a_ij^h v_j^h]_h ||                 all heads together: what cancels between them cancels
    scan        c_ij = || W (g_i * alpha_ij * u_j) ||           g_i = silu(z_i), * channel by channel; alpha is the
                                                                implicit attention, with the skip D on its diagonal

and p_ij = c_ij / sum_j c_ij has the same statistics as the weights in `analysis.attention`, instrument `contribution`.

Softmax: c_ij^2 = sum_{h,g} a_ij^h a_ij^g <W_h v_j^h, W_g v_j^g>. The inner products depend on the key alone and are
computed once, so a row costs nheads^2 operations a key instead of hidden * nheads * headdim.

Scan: from key j to row i a state decays from j to the end of j's block and from there to i, two factors that are both
at most 1. So a block takes one exponential per key and state whatever the number of rows, and a row one per block and
state. The projection is what remains: 2 * hidden * dim operations for every key of every row.
"""

import torch
import torch.nn.functional as F

from analysis.attention import SPAN_THRESHOLD, TOP_K, statistics_series
from kernels.attention_statistics.reference import AttentionStatistics, dense_statistics

BYTES = 32 << 20  # of a large tensor; up to six of them live at once
KEYS = 64  # tokens of a block of keys


@torch.no_grad()
def contribution_series(mixing, rows, *, top_k=TOP_K, span_threshold=SPAN_THRESHOLD):
    """Statistics of the contributions to some tokens, instrument `contribution`, within 256 MiB.

    Args:
        mixing: `models.observe.Mixing` of `causal_attention` (as many queries as keys) or `selective_scan`.
        rows: (n,) int64, ascending positions of the tokens that receive.

    Returns:
        list of `Series`: the five statistics of `analysis.attention`, with values (batch, positions). A token to
        which nothing contributes at all (its gate is shut) is left out.

    Raises:
        ValueError: as `contribution_norms`.
    """
    operands = mixing.operands
    batch, *_, seqlen = operands["u" if "u" in operands else "k"].shape[:3]
    found = []
    for some in rows.split(max(1, BYTES // (8 * batch * seqlen))):
        norms = contribution_norms(mixing, some).double()
        total = norms.sum(-1, keepdim=True)
        shares = norms.div_(total).masked_fill_(total == 0, 0.0)
        found.append(dense_statistics(shares, some.to(shares.device), top_k, span_threshold))
    each = (torch.cat(parts, -1)[:, None] for parts in zip(*found, strict=True))
    statistics = AttentionStatistics(*each, received=None)
    return statistics_series("contribution", statistics, rows.cpu(), len(rows) < seqlen)


def contribution_norms(mixing, rows):
    """c_ij: (batch, n, seqlen), 0 for j > i; float32, or float64 if the operands are.

    Args:
        mixing, rows: as in `contribution_series`; memory beside the result is bounded.

    Raises:
        ValueError: `rows` do not ascend within the sequence, queries are fewer than keys, or the operator is another.
    """
    if mixing.operator not in BLOCKS:
        raise ValueError(f"operator must be one of {', '.join(BLOCKS)}, got {mixing.operator!r}")
    values = mixing.operands["u" if mixing.operator == "selective_scan" else "v"]
    batch, *_, seqlen = values.shape[:3]
    if len(rows) == 0 or (rows.diff() <= 0).any() or rows[0] < 0 or rows[-1] >= seqlen:
        raise ValueError(
            f"rows must ascend, without repetition, from 0 to {seqlen - 1}, got {rows.tolist()[:8]}"
        )
    rows = rows.to(values.device)
    weight = mixing.out_weight.to(torch.promote_types(values.dtype, torch.float32))
    norms = weight.new_zeros(batch, len(rows), seqlen)
    for at in range(batch):
        for some, keys, lengths in BLOCKS[mixing.operator](mixing.operands, at, rows, weight):
            norms[at, some, keys] = lengths
    return norms


def _attention_norms(operands, at, rows, weight):
    """Yield (slice of the rows, slice of the keys, c (rows, keys))."""
    q, k, v = (operands[name][at].to(weight.dtype) for name in ("q", "k", "v"))
    nheads, seqlen, headdim = q.shape
    if seqlen != k.shape[1]:
        raise ValueError(f"q must have as many tokens as k, got {seqlen} and {k.shape[1]}")
    scale = operands.get("softmax_scale")
    q = q[:, rows] * (headdim**-0.5 if scale is None else scale)
    k, v = (t.repeat_interleave(nheads // len(t), dim=0) for t in (k, v))
    weight = weight.unflatten(1, (nheads, -1))

    def scores(first, keys):
        key = torch.arange(seqlen, device=q.device)[keys]
        return (q[:, first:] @ k[:, keys].mT).masked_fill_(key > rows[first:, None], float("-inf"))

    blocks = list(_blocks_of_keys(rows, KEYS))
    lse = q.new_full((nheads, len(rows)), float("-inf"))
    for first, keys in blocks:
        lse[:, first:] = torch.logaddexp(lse[:, first:], scores(first, keys).logsumexp(-1))
    for first, keys in blocks:
        a = torch.exp(scores(first, keys) - lse[:, first:, None]).permute(2, 1, 0).double()
        vectors = torch.einsum("ohd,hkd->kho", weight, v[:, keys]).double()
        squares = ((a @ (vectors @ vectors.mT)) * a).sum(-1)  # (keys, rows)
        yield slice(first, None), keys, squares.clamp_(min=0).sqrt_().mT.to(weight.dtype)


def _scan_norms(operands, at, rows, weight):
    """Yield (slice of the rows, slice of the keys, c (rows, keys))."""
    for some, keys, vectors in scan_vectors(operands, at, rows, weight.dtype):
        lengths = torch.linalg.vector_norm(weight @ vectors.flatten(1), dim=0)
        yield some, keys, lengths.view(vectors.shape[1:])


def scan_vectors(operands, at, rows, dtype):
    """What every key brings to every row of batch entry `at`, before the projection: g_i * alpha_ij * u_j.

    Yields (slice of the rows, slice of the keys, (dim, rows, keys)), which cover all j <= i; their sum over the keys
    of a row is the scan's output there. From the last key to the first, so that how far a row is from the end of a
    block, in steps, adds up as the blocks go by and needs no cumulative sum over the sequence.
    """
    u, delta, B, C = (operands[name][at] for name in ("u", "delta", "B", "C"))
    A = operands["A"].to(dtype)
    dim = len(A)
    per_group = dim // (len(B) if B.dim() == 3 else 1)
    by_channel = lambda t: t.view(-1, *t.shape[-2:]).to(dtype).repeat_interleave(per_group, 0).mT
    z, D = operands.get("z"), operands.get("D")
    gate = (
        u.new_ones(dim, len(rows), dtype=dtype) if z is None else F.silu(z[at][:, rows].to(dtype))
    )
    skip = u.new_zeros(dim, dtype=dtype) if D is None else D.to(dtype)
    group = max(1, BYTES // (dtype.itemsize * KEYS * dim))  # rows whose vectors are held at once
    steps_after = u.new_zeros(
        dim, len(rows), dtype=torch.float64
    )  # sum of steps from a block's end to the row
    for first, keys in reversed(list(_blocks_of_keys(rows, KEYS))):
        x, steps = u[:, keys].to(dtype), _steps(operands, delta[:, keys].to(dtype))
        inputs = (steps * x)[..., None] * by_channel(B[..., keys])  # (dim, keys, dstate)
        since = steps.double().cumsum(-1)
        last = int(torch.searchsorted(rows, keys.stop))  # rows from here on lie behind the block
        for i in range(first, last):
            row = int(rows[i]) - keys.start
            decays = (since[:, row, None] - since[:, : row + 1]).to(dtype)[..., None] * A[:, None]
            read = by_channel(C[..., rows[i], None]) * gate[:, i, None, None]  # (dim, 1, dstate)
            vectors = (decays.exp_().mul_(read) * inputs[:, : row + 1]).sum(-1)
            vectors[:, row] += skip * gate[:, i] * x[:, row]
            steps_after[:, i] = since[:, row]
            yield slice(i, i + 1), slice(keys.start, keys.start + row + 1), vectors[:, None]
        to_end = (since[:, -1:] - since).to(dtype)[..., None] * A[:, None]
        inputs *= to_end.exp_()
        for start in range(last, len(rows), group):
            some = slice(start, min(start + group, len(rows)))
            reads = torch.exp(steps_after[:, some].to(dtype)[..., None] * A[:, None])
            reads *= by_channel(C[..., rows[some]]) * gate[:, some, None]
            yield some, keys, reads @ inputs.mT
        steps_after[:, last:] += since[:, -1:]


def _steps(operands, delta):
    if operands.get("delta_bias") is not None:
        delta = delta + operands["delta_bias"].to(delta.dtype)[:, None]
    return F.softplus(delta) if operands.get("delta_softplus", False) else delta


def _blocks_of_keys(rows, size):
    """(index of the first row that sees it, slice of the keys) of every block of keys that any row sees."""
    for start in range(0, int(rows[-1]) + 1, size):
        stop = min(start + size, int(rows[-1]) + 1)
        yield int(torch.searchsorted(rows, start)), slice(start, stop)


BLOCKS = {"causal_attention": _attention_norms, "selective_scan": _scan_norms}
