"""How well the scores of sessions find the labelled shifts, with intervals over sessions, and against each other.

What is scored, and how, is in `analysis.shifts`; this reads its dicts and knows no model.
"""

import math

import numpy as np

from analysis import detection
from analysis.boundaries import covering, location_errors, margin_agreement, pk, window_diff
from analysis.detection import Candidates
from analysis.shift_baselines import TEXTTILING, TF_IDF
from analysis.shifts import INPUTS, INSTRUMENTS, SHORTEST

MARGIN = 2  # turns that a predicted boundary may be off: one exchange
ROTATIONS = 999  # of the labels, for the null
SEGMENTATION = ("pk", "window_diff", "covering", "margin_f1", "location_error")


def evaluate(sessions, seed=0, bootstrap=1000):
    """How well every score finds the shifts.

    Labels are used only by the metrics. F1 is at three thresholds: `f1` at the best one on these very data (the paper's
    optimum, optimistic), `f1_at_p75` at the paper's 75th percentile of all scores, and `f1_cross` at the best one on
    the other sessions. What that last one predicts is judged as a segmentation into turns (`analysis.boundaries`): the
    mean over sessions, `margin_f1` with MARGIN turns, `location_error` the median over shifts of sessions with
    predictions. Intervals are 95 %, from resampled sessions, with `f1_at_p75`, `f1_cross` and segmentations at their
    thresholds. `p_null` is of the AUC, by rotating labels within sessions.

    Args:
        sessions: dicts of `session_scores`, all with the same scores.
        seed, bootstrap: of the resamples, and how many.

    Returns:
        values: rows {"layer", "instrument", "metric", "value", "low", "high"}; low and high are None where there is no
            interval (a single session, p_null).
        extra: sessions, positives, candidates; left_out {reason: sessions}; unavailable {metric: reason}; skipped, the
            resamples of one class; chance, what a score that knows nothing gets; roc, on a grid of false positives;
            delong_se; against_baselines, where the best layer of each instrument (chosen on the same sessions, which
            flatters it) differs from the input embeddings, TF-IDF and TextTiling.

    Raises:
        ValueError: no session can be evaluated, or all candidates are of one class; the message is one line.
    """
    used, left_out = _usable(sessions)
    values, roc, errors, scored = [], {}, {}, {}
    times = detection.resamples(len(used), bootstrap, seed)
    unavailable = {}
    for key in used[0]["scores"]:
        instrument, _, layer = key.partition("/")
        c = candidates(used, key)
        again = detection.resampled(c, times)
        found, missing = _metrics(c, used, times, again, seed)
        unavailable |= missing
        for metric, (value, resampled) in found.items():
            low, high = (None, None) if len(used) < 2 else detection.interval(resampled)
            values.append(
                {"layer": layer, "instrument": instrument, "metric": metric, "value": value, "low": low, "high": high}
            )  # fmt: skip
        roc[key], errors[key] = _curve(c), math.sqrt(detection.delong(c))
        scored[key] = c, again["auc"]
    share = float(c.y.mean())
    extra = {
        "sessions": len(used), "positives": int(c.y.sum()), "candidates": len(c.y),
        "left_out": left_out, "unavailable": unavailable, "skipped": int(np.isnan(again["auc"]).sum()),
        "chance": {"auc": 0.5, "ap": share, "f1": 2 * share / (1 + share)}, "margin": MARGIN,
        "roc": roc, "delong_se": errors, "against_baselines": _against_baselines(scored),
    }  # fmt: skip
    return values, extra


def compare(sessions_a, sessions_b, key_a, key_b, seed=0, bootstrap=1000):
    """The AUC of score `key_a` of one model minus that of `key_b` of another, on identical candidates.

    Returns:
        dict: auc_a, auc_b, difference; low and high, 95 % from resampled sessions, the same for both (None for a single
        one); se and p by DeLong, which takes candidates for independent; sessions, positives, candidates.

    Raises:
        ValueError: the candidates differ, a key is unknown, or as `evaluate`.
    """
    a, b = _usable(sessions_a)[0], _usable(sessions_b)[0]
    same = ("session", "candidates", "labels")
    if [[s[n] for n in same] for s in a] != [[s[n] for n in same] for s in b]:
        raise ValueError(
            "a comparison needs the same candidates of the same sessions, and they differ"
        )
    times = detection.resamples(len(a), bootstrap, seed)
    sides = []
    for sessions, key in ((a, key_a), (b, key_b)):
        c = candidates(sessions, key)
        sides.append((c, detection.resampled(c, times)["auc"]))
    size = {"sessions": len(a), "positives": int(c.y.sum()), "candidates": len(c.y)}
    return _difference(*sides) | size


def candidates(sessions, key):
    """The `detection.Candidates` of one score; ValueError if a session lacks it."""
    for s in sessions:
        if key not in s["scores"]:
            raise ValueError(
                f"session {s['session']} has no score {key!r}; it has {', '.join(s['scores']) or 'none'}"
            )
    return Candidates([s["scores"][key] for s in sessions], [s["labels"] for s in sessions])


def _usable(sessions):
    """(sessions that can be evaluated, {why not: how many others}); ValueError if there are none."""
    used, left_out = [], {}
    for s in sessions:
        if s["labels"] is None:
            why = "no labels of phases or shifts"
        elif not s["candidates"]:
            why = f"too short: no turn has a window of {max(s['window'], SHORTEST)} tokens on both sides"
        else:
            used.append(s)
            continue
        left_out[why] = left_out.get(why, 0) + 1
    if not used:
        whys = "; ".join(f"{n} with {why}" for why, n in left_out.items()) or "none was given"
        raise ValueError(f"no session can be evaluated ({whys}); give longer or labelled sessions")
    if not used[0]["scores"]:
        raise ValueError(f"session {used[0]['session']} has no scores")
    return used, left_out


def _metrics(c, sessions, times, again, seed):
    """({metric: (value, resampled values)}, {metric: why it is missing})."""
    paper = detection.above_p75(c)
    found = {
        "auc": (detection.roc_auc(c), again["auc"]),
        "ap": (detection.average_precision(c), again["ap"]),
        "f1": (detection.best_f1(c), again["f1"]),
        "f1_at_p75": (detection.f1(c, paper), detection.resampled_f1(c, paper, times)),
        "tpr_at_fpr_10": (detection.tpr(c), again["tpr"]),
        "p_null": (detection.circular_shift_p(c, ROTATIONS, seed), np.zeros(0)),
    }
    try:
        predicted = detection.above_cross_threshold(c)
    except ValueError as error:
        return found, {name: str(error) for name in ("f1_cross", *SEGMENTATION)}
    found["f1_cross"] = (
        detection.f1(c, predicted),
        detection.resampled_f1(c, predicted, times),
    )
    return found | _segmentation(c, sessions, predicted, times), {}


def _segmentation(c, sessions, predicted, times):
    """{metric: (value, resampled values)} of predictions as boundaries between turns."""
    measured, errors = {name: [] for name in SEGMENTATION[:-1]}, []
    for i, s in enumerate(sessions):
        turns = np.asarray(s["candidates"])
        true, found = turns[c.y[c.session == i]], turns[predicted[c.session == i]]
        ends = true, found, s["turns"]
        measured["pk"].append(pk(*ends))
        measured["window_diff"].append(window_diff(*ends))
        measured["covering"].append(covering(*ends))
        measured["margin_f1"].append(margin_agreement(*ends, MARGIN).f1)
        errors.append(location_errors(*ends))
    made = {n: (float(np.mean(v)), times @ v / len(sessions)) for n, v in measured.items()}
    drawn = [
        np.concatenate([np.repeat(e, t) for e, t in zip(errors, row, strict=True)]) for row in times
    ]
    made["location_error"] = _median(np.concatenate(errors)), np.array([_median(e) for e in drawn])
    return made


def _median(errors):
    return float(np.median(errors)) if len(errors) else float("nan")


def _curve(c):
    """The ROC curve at 101 false positive rates."""
    grid = np.linspace(0, 1, 101)
    fpr, tpr = detection.roc(c)
    tpr = tpr[np.searchsorted(fpr, grid, side="right") - 1]
    return {"fpr": grid.round(2).tolist(), "tpr": tpr.round(4).tolist()}


def _against_baselines(scored):
    """For each instrument of a model and each baseline: the best layer, and `_difference` from the baseline."""
    best = {}
    for key, (c, _) in scored.items():
        instrument, auc = key.partition("/")[0], detection.roc_auc(c)
        if instrument in INSTRUMENTS and auc > best.get(instrument, (-1,))[0]:
            best[instrument] = auc, key
    return [
        {"score": key, "baseline": baseline} | _difference(scored[key], scored[baseline])
        for _, key in best.values()
        for baseline in (INPUTS, TF_IDF, TEXTTILING)
        if baseline in scored
    ]


def _difference(a, b):
    """Of two (Candidates, resampled AUCs)."""
    found = detection.delong_paired(a[0], b[0])
    several = len(a[0].scores) > 1
    low, high = detection.interval(a[1] - b[1]) if several else (None, None)
    return {
        "auc_a": detection.roc_auc(a[0]), "auc_b": detection.roc_auc(b[0]),
        "difference": found.difference, "low": low, "high": high, "se": found.se, "p": found.p,
    }  # fmt: skip
