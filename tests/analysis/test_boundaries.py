"""Boundary metrics against nltk, ruptures and their definitions by brute force."""

from itertools import combinations

import numpy as np
import pytest
import ruptures.metrics
from nltk.metrics import segmentation

from analysis.boundaries import (
    covering,
    hausdorff,
    location_errors,
    margin_agreement,
    pk,
    window_diff,
    window_size,
)


def random_pair(seed):
    """(n, reference, predicted) of random sizes, boundaries at either end and none at all among them."""
    draw = np.random.default_rng(seed)
    n = int(draw.integers(3, 60))
    pick = lambda: sorted(
        draw.choice(np.arange(1, n), draw.integers(0, min(n - 1, 12)), replace=False).tolist()
    )
    return n, pick(), pick()


def as_string(boundaries, n):
    """nltk's form: a character for each gap between neighbours."""
    return "".join("1" if turn in boundaries else "0" for turn in range(1, n))


@pytest.mark.parametrize("seed", range(40))
def test_pk_and_window_diff_are_nltks(seed):
    n, reference, predicted = random_pair(seed)
    for k in {1, 2, n // 2, n - 1} - {0}:
        ours, theirs = as_string(reference, n), as_string(predicted, n)
        assert pk(reference, predicted, n, k) == pytest.approx(segmentation.pk(ours, theirs, k))
        assert window_diff(reference, predicted, n, k) == pytest.approx(
            segmentation.windowdiff(ours, theirs, k)
        )


def test_k_is_half_the_mean_segment_but_at_least_two_and_below_n():
    assert window_size([10, 20, 30], 40) == 5
    assert window_size([], 40) == 20
    assert window_size(list(range(1, 40)), 40) == 2
    assert window_size([1], 2) == 1
    assert pk([10, 20, 30], [10], 40) == pk([10, 20, 30], [10], 40, k=5)


def largest_matching(reference, predicted, margin):
    """Size of the largest one-to-one matching, by trying all subsets in order."""
    for size in range(min(len(reference), len(predicted)), 0, -1):
        for a in combinations(reference, size):
            for b in combinations(predicted, size):
                if all(abs(x - y) <= margin for x, y in zip(a, b, strict=True)):
                    return size
    return 0


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("margin", [0, 1, 3])
def test_matching_is_the_largest_one_to_one(seed, margin):
    draw = np.random.default_rng(seed)
    reference, predicted = (
        sorted(draw.choice(np.arange(1, 16), draw.integers(1, 6), replace=False).tolist())
        for _ in range(2)
    )
    found = margin_agreement(reference, predicted, 16, margin)
    matched = largest_matching(reference, predicted, margin)
    assert found.precision == pytest.approx(matched / len(predicted))
    assert found.recall == pytest.approx(matched / len(reference))
    assert found.f1 == pytest.approx(2 * matched / (len(reference) + len(predicted)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("margin", [0, 2, 4])
def test_ruptures_agrees_where_no_boundary_has_two_partners(seed, margin):
    """Its margin is strict, so one more; it matches one to many, so boundaries lie farther apart than two margins."""
    draw = np.random.default_rng(seed)
    reference = np.cumsum(draw.integers(2 * margin + 1, 20, size=6))
    predicted = np.cumsum(draw.integers(2 * margin + 1, 20, size=5))
    n = int(max(reference[-1], predicted[-1])) + 1
    found = margin_agreement(reference, predicted, n, margin)
    precision, recall = ruptures.metrics.precision_recall(
        [*reference.tolist(), n], [*predicted.tolist(), n], margin=margin + 1
    )
    assert (found.precision, found.recall) == pytest.approx((precision, recall))


def test_two_predictions_beside_one_boundary_count_once():
    assert margin_agreement([10], [9, 11], 20, 2) == (0.5, 1.0, pytest.approx(2 / 3))
    assert margin_agreement([9, 11], [10], 20, 2) == (1.0, 0.5, pytest.approx(2 / 3))


def test_nothing_true_or_nothing_predicted():
    assert margin_agreement([], [], 5, 1) == (1, 1, 1)
    assert margin_agreement([2], [], 5, 1) == (0, 0, 0)
    assert margin_agreement([], [2], 5, 1) == (0, 0, 0)
    assert covering([], [], 5) == 1
    assert pk([], [], 5) == window_diff([], [], 5) == 0
    assert len(location_errors([2], [], 5)) == 0
    with pytest.raises(ValueError, match="one has none"):
        hausdorff([2], [], 5)


@pytest.mark.parametrize("seed", range(20))
def test_covering_by_its_definition(seed):
    n, reference, predicted = random_pair(seed)
    cut = lambda b: [set(range(i, j)) for i, j in zip([0, *b], [*b, n], strict=True)]
    expected = sum(
        len(a) * max(len(a & b) / len(a | b) for b in cut(predicted)) for a in cut(reference)
    )
    assert covering(reference, predicted, n) == pytest.approx(expected / n)
    assert covering(reference, reference, n) == 1


@pytest.mark.parametrize("seed", range(20))
def test_hausdorff_is_that_of_ruptures(seed):
    n, reference, predicted = random_pair(seed)
    if not (reference and predicted):
        return
    expected = ruptures.metrics.hausdorff([*reference, n], [*predicted, n])
    assert hausdorff(reference, predicted, n) == expected


def test_location_errors_are_turns_to_the_nearest_prediction():
    assert location_errors([5, 10, 20], [6, 30], 40).tolist() == [1, 4, 10]
    assert location_errors([20, 5, 10], [30, 6], 40).tolist() == [1, 4, 10]


@pytest.mark.parametrize(
    ("reference", "n", "message"),
    [([0], 5, "turns 1 to 4"), ([5], 5, "turns 1 to 4"), ([2, 2], 5, "must differ")],
)
def test_wrong_boundaries_raise(reference, n, message):
    for function in (pk, window_diff, covering, location_errors):
        with pytest.raises(ValueError, match=message):
            function(reference, [1], n)


def test_wrong_options_raise():
    with pytest.raises(ValueError, match="k must be 1 to 4"):
        pk([2], [2], 5, k=5)
    with pytest.raises(ValueError, match="margin"):
        margin_agreement([2], [2], 5, -1)
    with pytest.raises(ValueError, match="at least 2 turns"):
        pk([], [], 1)
