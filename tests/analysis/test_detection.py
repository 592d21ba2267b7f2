"""Detection metrics against scikit-learn, brute force and cases whose answers are known."""

import numpy as np
import pytest
from sklearn import metrics

from analysis.detection import (
    Candidates,
    above_cross_threshold,
    above_p75,
    average_precision,
    best_f1,
    circular_shift_p,
    delong,
    delong_paired,
    f1,
    hanley_mcneil,
    interval,
    resampled,
    resampled_f1,
    resamples,
    roc_auc,
    rotated_sums,
    tpr,
)


def random_candidates(seed, sessions=5, ties=False, effect=0.7):
    draw = np.random.default_rng(seed)
    scores, labels = [], []
    for _ in range(sessions):
        y = (draw.random(draw.integers(6, 30)) < 0.25).astype(int)
        y[0], y[1] = 1, 0
        x = draw.normal(size=len(y)) + effect * y
        scores.append(np.round(x) if ties else x)
        labels.append(y)
    return Candidates(scores, labels)


def f1_by_hand(y, predicted, weight=1):
    hits = (weight * (y & predicted)).sum()
    return 2 * hits / ((weight * y).sum() + (weight * predicted).sum())


CASES = pytest.mark.parametrize(("seed", "ties"), [(0, False), (1, True), (2, False), (3, True)])


@CASES
def test_delong_is_its_definition_by_brute_force(seed, ties):
    a = random_candidates(seed, ties=ties)
    b = Candidates([x + np.roll(x, 1) for x in a.scores], a.labels)

    def kernel(c):
        x, y = c.x[c.y][:, None], c.x[~c.y][None]
        return (x > y) + 0.5 * (x == y)

    def variance(psi):
        return psi.mean(1).var(ddof=1) / psi.shape[0] + psi.mean(0).var(ddof=1) / psi.shape[1]

    assert delong(a) == pytest.approx(variance(kernel(a)), rel=1e-12)
    found = delong_paired(a, b)
    assert found.difference == pytest.approx(roc_auc(a) - roc_auc(b))
    assert found.se**2 == pytest.approx(variance(kernel(a) - kernel(b)), rel=1e-12)


def test_paired_test_of_equal_scores_says_no_difference_and_of_perfect_against_useless_a_clear_one():
    a = random_candidates(0)
    assert delong_paired(a, a) == (0, 0, 1)
    perfect, worst = (
        Candidates([s * np.asarray(y) for y in a.labels], a.labels) for s in (1.0, -1.0)
    )
    assert delong_paired(perfect, worst) == (1, 0, 0)
    assert delong_paired(perfect, random_candidates(0, effect=0)).p < 1e-6


def test_paired_p_values_are_uniform_without_a_difference():
    p = []
    for seed in range(200):
        a = random_candidates(seed, effect=0.5)
        noise = np.random.default_rng(seed + 1_000)
        b = Candidates([noise.normal(size=len(y)) + 0.5 * y for y in a.labels], a.labels)
        p.append(delong_paired(a, b).p)
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.12
    assert 0.4 < np.mean(p) < 0.6


def test_hanley_mcneil_gives_the_errors_of_twelve_samples():
    assert hanley_mcneil(0.7834, 6, 6) ** 0.5 == pytest.approx(0.139, abs=5e-4)
    assert hanley_mcneil(0.7123, 6, 6) ** 0.5 == pytest.approx(0.155, abs=5e-4)


@CASES
def test_resampling_weighs_sessions_as_scikit_learn_weighs_samples(seed, ties):
    c = random_candidates(seed, ties=ties)
    times = resamples(5, 20, seed)
    found = resampled(c, times)
    for i, count in enumerate(times):
        weight = count[c.session]
        assert found["auc"][i] == pytest.approx(
            metrics.roc_auc_score(c.y, c.x, sample_weight=weight)
        )
        ap = metrics.average_precision_score(c.y, c.x, sample_weight=weight)
        assert found["ap"][i] == pytest.approx(ap)
        fpr, true, _ = metrics.roc_curve(c.y, c.x, sample_weight=weight, drop_intermediate=False)
        assert found["tpr"][i] == pytest.approx(true[fpr <= 0.1 + 1e-12].max())
        best = max(f1_by_hand(c.y, c.x >= t, weight) for t in np.unique(c.x))
        assert found["f1"][i] == pytest.approx(best)
        fixed = resampled_f1(c, above_p75(c), count[None])
        assert fixed[0] == pytest.approx(f1_by_hand(c.y, above_p75(c), weight))


def test_resampling_nothing_twice_gives_the_metrics_themselves():
    c = random_candidates(4, ties=True)
    found = resampled(c, np.ones((1, 5), dtype=int))
    assert found["auc"][0] == pytest.approx(roc_auc(c))
    assert found["ap"][0] == pytest.approx(average_precision(c))
    assert found["tpr"][0] == pytest.approx(tpr(c))
    assert found["f1"][0] == best_f1(c) >= f1(c, above_p75(c))


def test_resamples_draw_whole_sessions_and_repeat_with_their_seed():
    times = resamples(7, 50, 3)
    assert (times.sum(1) == 7).all()
    assert (times == resamples(7, 50, 3)).all()
    assert (times != resamples(7, 50, 4)).any()


def test_a_resample_of_one_class_is_left_out():
    c = Candidates([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [0, 1]])
    found = resampled(c, np.array([[2, 0], [0, 2], [1, 1]]))["auc"]
    assert np.isnan(found[0])
    assert found[1:].tolist() == [1, 1]
    assert interval(found) == (1, 1)
    assert interval(found[:2]) == (None, None)


def test_bootstrap_of_noise_covers_a_half():
    covered = 0
    for seed in range(40):
        c = random_candidates(seed, sessions=12, effect=0)
        low, high = interval(resampled(c, resamples(12, 200, seed))["auc"])
        covered += low <= 0.5 <= high
    assert covered >= 33


def test_threshold_of_a_session_never_sees_it():
    """Session 2 alone would take 0.1; the others say 0.5, and session 2's own scores and labels change nothing."""
    scores = [[0.5, 0.2, 0.1], [0.6, 0.3], [0.1, 0.7, 0.0]]
    c = Candidates(scores, [[1, 0, 0], [1, 0], [1, 0, 0]])
    assert above_cross_threshold(c)[c.session == 2].tolist() == [False, True, False]
    other = Candidates(scores, [[1, 0, 0], [1, 0], [0, 1, 0]])
    assert above_cross_threshold(other)[c.session == 2].tolist() == [False, True, False]
    assert best_f1(c) > f1(c, above_cross_threshold(c))


@CASES
def test_cross_threshold_by_brute_force(seed, ties):
    c = random_candidates(seed, ties=ties)
    predicted = above_cross_threshold(c)
    for i in range(5):
        inside = c.session == i
        x, y = c.x[~inside], c.y[~inside]
        best = max(np.unique(x)[::-1], key=lambda t: f1_by_hand(y, x >= t))
        assert (predicted[inside] == (c.x[inside] >= best)).all()


def test_cross_threshold_where_the_others_hold_no_shift_predicts_nothing():
    c = Candidates([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [0, 1]])  # only session 1 has one
    assert above_cross_threshold(c).tolist() == [False] * 4
    with pytest.raises(ValueError, match="at least 2 sessions"):
        above_cross_threshold(Candidates([[1.0, 2.0]], [[0, 1]]))


def test_rotation_keeps_spacing():
    values = np.arange(5.0)
    by_hand = [values[0] + values[2], values[1] + values[3], values[2] + values[4]]
    by_hand += [values[3] + values[0], values[4] + values[1]]
    assert rotated_sums(values, np.array([0, 2])).tolist() == by_hand
    assert rotated_sums(values, np.array([], dtype=int)).tolist() == [0] * 5


def test_circular_shift_p_is_small_for_shifts_that_are_found_and_uniform_for_noise():
    assert circular_shift_p(random_candidates(0, sessions=20, effect=2), 500, 0) == 1 / 501
    p = [circular_shift_p(random_candidates(seed, effect=0), 200, seed) for seed in range(150)]
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) <= 0.1) < 0.2
    c = random_candidates(0)
    assert circular_shift_p(c, 300, 1) == circular_shift_p(c, 300, 1)


def test_circular_shift_counts_rotations_exactly():
    """One session of four candidates, the shift at the highest score: one rotation in four is as good."""
    c = Candidates([[1.0, 2.0, 9.0, 3.0]], [[0, 0, 1, 0]])
    assert circular_shift_p(c, 4_000, 0) == pytest.approx(0.25, abs=0.03)


def test_p75_is_of_all_scores_together():
    c = Candidates([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], [[1, 0, 0, 0], [0, 0, 0, 1]])
    assert np.flatnonzero(above_p75(c)).tolist() == [6, 7]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "there are no sessions"),
        ([[1.0]], [[1, 0]], "as many labels"),
        ([[1.0, 2.0]], [[0, 2]], "0 or 1"),
        ([[1.0, 2.0], [1.0, float("nan")]], [[0, 1], [0, 1]], "session 1 are not finite.*candidate 1"),
        ([[1.0] * 4] * 3, [[0] * 4] * 3, "there are no shifts among the 12 candidates of 3 sessions"),
        ([[1.0, 2.0]], [[1, 1]], "only shifts"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_says_why(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        Candidates(scores, labels)


def test_paired_test_needs_identical_candidates():
    with pytest.raises(ValueError, match="identical candidates"):
        delong_paired(random_candidates(0), random_candidates(1))


def test_delong_of_a_single_shift_is_nan():
    assert np.isnan(delong(Candidates([[1.0, 2.0, 3.0]], [[0, 1, 0]])))
