"""How well predicted boundaries agree with true ones.

A sequence of n turns is segmented by the indexes of the turns with which a new segment begins: each in 1..n-1. All
functions take such indexes in any order; none is needed (the sequence is then one segment).
"""

from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """Shares of predicted boundaries that are true, of true ones that were predicted, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def margin_agreement(reference, predicted, n, margin):
    """`Agreement` where a prediction may be up to `margin` turns off, and counts for one true boundary only.

    Pairs are the largest possible matching: on a line the earliest partner within reach gives it. Nothing predicted
    where nothing is true is perfect agreement.
    """
    reference, predicted = _checked(reference, n), _checked(predicted, n)
    if not isinstance(margin, int) or margin < 0:
        raise ValueError(f"margin must be a whole number of turns, at least 0, got {margin!r}")
    if len(reference) == 0 and len(predicted) == 0:
        return Agreement(1.0, 1.0, 1.0)
    matched = i = j = 0
    while i < len(reference) and j < len(predicted):
        off = predicted[j] - reference[i]
        matched += abs(off) <= margin
        i, j = i + (off >= -margin), j + (off <= margin)
    precision = matched / len(predicted) if len(predicted) else 0.0
    recall = matched / len(reference) if len(reference) else 0.0
    return Agreement(precision, recall, 2 * matched / (len(reference) + len(predicted)))


def window_size(reference, n):
    """The k of `pk` and `window_diff`: half the mean reference segment in turns, rounded, at least 2, below n."""
    reference = _checked(reference, n)
    if n < 2:
        raise ValueError(f"n must be at least 2 turns for a boundary to exist, got {n}")
    return min(max(2, round(n / (len(reference) + 1) / 2)), n - 1)


def pk(reference, predicted, n, k=None):
    """Share of pairs of turns k apart of which one segmentation says that a boundary is between and the other not.

    Beeferman, Berger and Lafferty 1999. 0 is perfect; k is `window_size` if not given.
    """
    ours, theirs = _between(reference, predicted, n, k)
    return float(np.mean((ours > 0) != (theirs > 0)))


def window_diff(reference, predicted, n, k=None):
    """Share of pairs of turns k apart with another number of boundaries between them (Pevzner and Hearst 2002)."""
    ours, theirs = _between(reference, predicted, n, k)
    return float(np.mean(ours != theirs))


def covering(reference, predicted, n):
    """Mean over turns of the best overlap (intersection over union) of their true segment with a predicted one.

    Van den Burg and Williams 2020 (arXiv 2003.06222), equation 2. 1 is perfect.
    """
    true, found = (_segments(_checked(b, n), n) for b in (reference, predicted))
    shared = np.minimum(true[:, None, 1], found[None, :, 1]) - np.maximum(
        true[:, None, 0], found[None, :, 0]
    )
    shared = np.maximum(shared, 0)
    sizes = np.diff(true)
    union = sizes + np.diff(found).T - shared
    return float((sizes[:, 0] * (shared / union).max(1)).sum() / n)


def location_errors(reference, predicted, n):
    """(true boundaries,) turns from each to the nearest prediction; empty if nothing was predicted.

    It does not see predictions too many, so it is read beside the agreement.
    """
    reference, predicted = _checked(reference, n), _checked(predicted, n)
    if len(predicted) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.abs(reference[:, None] - predicted).min(1)


def hausdorff(reference, predicted, n):
    """Turns from the boundary that is farthest from any of the other segmentation; ValueError if one has none."""
    there, back = location_errors(reference, predicted, n), location_errors(predicted, reference, n)
    if len(there) == 0 or len(back) == 0:
        raise ValueError("hausdorff needs a boundary in both segmentations, and one has none")
    return int(max(there.max(), back.max()))


def _checked(boundaries, n):
    found = np.unique(np.asarray(boundaries, dtype=np.int64))
    if len(found) != len(boundaries):
        raise ValueError(f"boundaries must differ, got {len(boundaries)} of {len(found)} turns")
    if len(found) and (found[0] < 1 or found[-1] >= n):
        raise ValueError(
            f"boundaries must be turns 1 to {n - 1}, with which a segment begins, got {found[0]} to {found[-1]}"
        )
    return found


def _segments(boundaries, n):
    """(segments, 2) the first turn of each and the one after its last."""
    ends = np.concatenate([[0], boundaries, [n]])
    return np.stack([ends[:-1], ends[1:]], 1)


def _between(reference, predicted, n, k):
    """Boundaries between turns i and i + k for every i, in both segmentations: twice (n - k,)."""
    if k is None:
        k = window_size(reference, n)
    if not 1 <= k < n:
        raise ValueError(f"k must be 1 to {n - 1} for {n} turns, got {k}")
    counts = []
    for boundaries in (_checked(reference, n), _checked(predicted, n)):
        before = np.searchsorted(boundaries, np.arange(n), side="right")
        counts.append(before[k:] - before[:-k])
    return counts
