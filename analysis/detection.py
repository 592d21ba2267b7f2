"""How well scores tell shifts from other candidates, where candidates of a session belong together.

`Candidates` holds scores and labels session by session; a higher score says shift. Sessions and not candidates are
independent, so intervals come from resampling sessions. DeLong's variance, which takes candidates for independent, is
there for the paired test on identical candidates.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata
from sklearn import metrics

FALSE_POSITIVES = 0.1  # the rate at which `tpr` is read, as in arXiv 2601.01237


@dataclass(frozen=True)
class Candidates:
    """Scores and labels of the candidates of several sessions, each in the order of the turns.

    Attributes:
        scores: a list of (candidates of the session,) numbers, one for each session.
        labels: the same with 1 at a shift and 0 elsewhere.

    Raises:
        ValueError: no sessions, lists of other lengths, labels that are not 0 or 1, scores that are not finite, or
            candidates that are all of one class, for which nothing below is defined.
    """

    scores: list
    labels: list

    def __post_init__(self):
        sizes = [len(s) for s in self.scores]
        if not sizes:
            raise ValueError("there are no sessions; give at least one with labelled candidates")
        if sizes != [len(y) for y in self.labels]:
            raise ValueError("every session needs as many labels as scores")
        for i, (scores, labels) in enumerate(zip(self.scores, self.labels, strict=True)):
            if not set(np.asarray(labels).tolist()) <= {0, 1}:
                raise ValueError(f"labels must be 0 or 1, and session {i} has others")
            finite = np.isfinite(np.asarray(scores, dtype=np.float64))
            if not finite.all():
                raise ValueError(
                    f"{(~finite).sum()} of the {len(finite)} scores of session {i} are not finite, "
                    f"the first at candidate {int(np.argmin(finite))}"
                )
        among = f"among the {sum(sizes)} candidates of {len(sizes)} sessions, so AUC is undefined"
        if not self.y.any():
            raise ValueError(f"there are no shifts {among}; give labelled sessions")
        if self.y.all():
            raise ValueError(
                f"there are only shifts {among}; give turns without a shift as candidates too"
            )

    @cached_property
    def x(self):
        """(candidates,) float64 scores."""
        return np.concatenate([np.asarray(s, dtype=np.float64) for s in self.scores])

    @cached_property
    def y(self):
        """(candidates,) bool labels."""
        return np.concatenate([np.asarray(y, dtype=bool) for y in self.labels])

    @cached_property
    def session(self):
        """(candidates,) the index of the session of each."""
        return np.repeat(np.arange(len(self.scores)), [len(s) for s in self.scores])


def roc_auc(c):
    """The probability that a shift scores higher than another candidate, ties counting half."""
    return float(metrics.roc_auc_score(c.y, c.x))


def average_precision(c):
    """Mean precision over recall, without interpolation."""
    return float(metrics.average_precision_score(c.y, c.x))


def roc(c):
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    fpr, tpr, _ = metrics.roc_curve(c.y, c.x, drop_intermediate=False)
    return fpr, tpr


def tpr(c, at=FALSE_POSITIVES):
    """The true positive rate at the largest false positive rate that is at most `at`."""
    false, true = roc(c)
    return float(true[np.searchsorted(false, at, side="right") - 1])


def f1(c, predicted):
    """F1 of (candidates,) bool predictions, all sessions together."""
    return float(metrics.f1_score(c.y, predicted))


def above_p75(c):
    """Predictions by the paper's rule: a score of at least the 75th percentile of all scores."""
    return c.x >= np.percentile(c.x, 75)


def best_f1(c):
    """F1 at the threshold that is best on these very data: the paper's optimum, optimistic by construction."""
    return resampled(c, np.ones((1, len(c.scores)), dtype=np.int64))["f1"].item()


def above_cross_threshold(c):
    """Predictions of each session by the threshold that has the best F1 on all the other sessions.

    Where the others hold no shift nothing is predicted. Raises ValueError for a single session.
    """
    if len(c.scores) < 2:
        raise ValueError("a threshold from the other sessions needs at least 2 sessions, got 1")
    order, ends = _thresholds(c)
    positive, session = c.y[order], c.session[order]
    predicted = np.zeros(len(c.x), dtype=bool)
    for i in range(len(c.scores)):
        others = session != i
        true, false = np.cumsum(positive & others)[ends], np.cumsum(~positive & others)[ends]
        if true[-1]:
            best = np.argmax(true / (true + false + true[-1]))
            predicted |= (c.session == i) & (c.x >= c.x[order[ends[best]]])
    return predicted


def resamples(sessions, rounds, seed):
    """(rounds, sessions) how often each session is drawn when as many are drawn with replacement."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(sessions, np.full(sessions, 1 / sessions), size=rounds)


def resampled(c, times):
    """auc, ap, f1 (at the best threshold) and tpr of every resample: (rounds,) each, nan for one of a single class.

    Sorting once serves all resamples, since a session that is drawn k times is one whose candidates count k-fold.

    Args:
        times: (rounds, sessions), from `resamples`.
    """
    order, ends = _thresholds(c)
    session = c.session[order]
    shifts = np.flatnonzero(c.y[order])
    before = np.searchsorted(shifts, ends, side="right")  # shifts down to each threshold
    found = np.full((4, len(times)), np.nan)
    for i, count in enumerate(times):
        count = count[session]
        true = np.concatenate([[0], np.cumsum(count[shifts])])[before].astype(np.float64)
        marked = np.cumsum(count)[ends]
        false = marked - true
        if true[-1] == 0 or false[-1] == 0:
            continue
        gained = np.diff(true, prepend=0)
        auc = np.dot(np.diff(false, prepend=0), true - gained / 2) / (true[-1] * false[-1])
        ap = np.dot(gained, true / np.maximum(marked, 1)) / true[-1]
        f1 = np.max(2 * true / (marked + true[-1]))
        few = np.searchsorted(false / false[-1], FALSE_POSITIVES, side="right")
        found[:, i] = auc, ap, f1, true[few - 1] / true[-1] if few else 0
    return dict(zip(("auc", "ap", "f1", "tpr"), found, strict=True))


def resampled_f1(c, predicted, times):
    """(rounds,) F1 of fixed predictions in every resample; nan where nothing is true and nothing predicted."""
    per_session = lambda kind: np.bincount(c.session, kind, minlength=len(c.scores))
    hits, total = times @ per_session(c.y & predicted), times @ per_session(c.y * 1.0 + predicted)
    return np.divide(2 * hits, total, out=np.full(len(times), np.nan), where=total > 0)


def interval(values):
    """The 2.5th and 97.5th percentile of resampled values, nan left out; (None, None) if fewer than two are left."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None, None
    return tuple(np.percentile(values, [2.5, 97.5]).tolist())


def circular_shift_p(c, rounds, seed):
    """p value of the AUC when labels have no place: each session's are rotated by a random number of candidates.

    Rotation keeps how many shifts there are and how far apart, which a free permutation would not.
    """
    ranks = rankdata(c.x)
    draw = np.random.default_rng(seed)
    drawn, observed = np.zeros(rounds), 0.0
    for i in range(len(c.scores)):
        here = ranks[c.session == i]
        if len(here) == 0:
            continue
        turned = rotated_sums(here, np.flatnonzero(c.y[c.session == i]))
        observed += turned[0]
        drawn += turned[draw.integers(len(here), size=rounds)]
    # sums of midranks are exact multiples of a half
    return float((1 + (drawn >= observed).sum()) / (1 + rounds))


def rotated_sums(values, marked):
    """(n,) sums of `values` at the `marked` indexes, moved on by 0, 1, ... n - 1 and around the end."""
    n = len(values)
    return values[(np.arange(n)[:, None] + marked) % n].sum(1)


class Difference(NamedTuple):
    """Of two AUCs on identical candidates: a - b, its standard error and the two-sided p value of no difference."""

    difference: float
    se: float
    p: float


def delong(c):
    """Variance of the AUC (DeLong, DeLong and Clarke-Pearson 1988, with the midranks of Sun and Xu 2014).

    nan with a single shift, or a single other candidate.
    """
    return _variance(*_placements(c))


def delong_paired(a, b):
    """`Difference` of two scores of identical candidates; ValueError if the labels differ."""
    if [list(y) for y in a.labels] != [list(y) for y in b.labels]:
        raise ValueError("a paired test needs identical candidates, and the labels differ")
    (a1, a0), (b1, b0) = _placements(a), _placements(b)
    difference = float(np.mean(a1) - np.mean(b1))
    se = float(np.sqrt(_variance(a1 - b1, a0 - b0)))
    if se == 0:
        return Difference(difference, se, 1.0 if difference == 0 else 0.0)
    return Difference(difference, se, float(2 * norm.sf(abs(difference) / se)))


def hanley_mcneil(auc, positives, negatives):
    """Variance of an AUC from its value and the sizes alone (Hanley and McNeil 1982), to plan how many are needed."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return spread / (positives * negatives)


def _thresholds(c):
    """Candidates by falling score, and where each run of equal scores ends in that order."""
    order = np.argsort(-c.x, kind="stable")
    return order, np.append(np.flatnonzero(np.diff(c.x[order])), len(order) - 1)


def _placements(c):
    """For each shift the share of the others below it, and for each of the others the share of shifts above it."""
    ranks, positives, negatives = rankdata(c.x), c.x[c.y], c.x[~c.y]
    below = (ranks[c.y] - rankdata(positives)) / len(negatives)
    above = 1 - (ranks[~c.y] - rankdata(negatives)) / len(positives)
    return below, above


def _variance(below, above):
    if min(len(below), len(above)) < 2:
        return float("nan")
    return float(below.var(ddof=1) / len(below) + above.var(ddof=1) / len(above))
