import math

import numpy as np
import pytest
from scipy import stats

from bench.verdict import Interval, exact, ratio_interval, statistic, t_interval, unpaired, verdict


def clock(rng, level, rounds, between, within=0.005, samples=9, shared=0.0):
    """Medians of simulated rounds: {round: ms}; `shared` is what both sides of a round have in common."""
    noise = rng.normal(0, between, (rounds, 1)) + rng.normal(0, within, (rounds, samples))
    return dict(enumerate(np.median(level * np.exp(noise + shared), axis=1).tolist()))


def test_paired_interval_is_the_t_interval_of_log_ratios():
    rng = np.random.default_rng(0)
    a, b = (clock(rng, level, 6, 0.02) for level in (3.0, 2.0))
    found = ratio_interval(a, b)
    d = [math.log(a[r] / b[r]) for r in a]
    low, high = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (found.ratio, found.low, found.high) == pytest.approx(
        (math.exp(np.mean(d)), math.exp(low), math.exp(high))
    )
    assert found.n == 6


def test_pairs_by_round_and_not_by_position():
    a = {0: 1.0, 1: 2.0, 2: 4.0, 5: 100.0}
    b = {2: 2.0, 1: 1.0, 0: 0.5, 4: 7.0}
    found = ratio_interval(a, b)
    assert found.n == 3
    assert (found.ratio, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_sequences_are_rounds_in_order_and_must_match():
    assert ratio_interval([2.0, 2.0], [1.0, 1.0]).ratio == pytest.approx(2.0)
    with pytest.raises(ValueError, match="one value a round each, got 2 and 3"):
        ratio_interval([1.0, 1.0], [1.0, 1.0, 1.0])


def test_unpaired_interval_is_welch():
    rng = np.random.default_rng(1)
    a, b = rng.lognormal(1, 0.05, 5), rng.lognormal(0.9, 0.02, 8)
    found = unpaired(a, b)
    low, high = stats.ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))


@pytest.mark.parametrize(
    ("ratio", "low", "high", "expected"),
    [
        (1.10, 1.05, 1.15, "slower"),
        (0.90, 0.85, 0.95, "faster"),
        (1.10, 0.99, 1.22, "undecided"),
        (1.005, 1.001, 1.009, "equivalent"),  # excludes 1, but is less than 1 %
        (1.015, 1.014, 1.016, "slower"),  # within 2 %, but known to differ by more than 1 %
        (1.00, 0.99, 1.01, "equivalent"),
        (1.00, 0.97, 1.03, "undecided"),
        (1.00, 1.00, 1.00, "equivalent"),
        (math.inf, math.inf, math.inf, "slower"),
        (0.0, 0.0, 0.0, "faster"),
        (math.nan, math.nan, math.nan, "undecided"),
        (2.0, math.nan, math.nan, "undecided"),
    ],
)
def test_verdict(ratio, low, high, expected):
    assert verdict(Interval(ratio, low, high, 5)) == expected


def test_swapping_the_sides_swaps_the_verdict():
    swapped = {"faster": "slower", "slower": "faster"}
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(300):
        low, ratio, high = np.exp(np.sort(rng.normal(0, 0.02, 3)))
        said = verdict(Interval(ratio, low, high, 5))
        assert verdict(Interval(1 / ratio, 1 / high, 1 / low, 5)) == swapped.get(said, said)
        seen.add(said)
    assert seen == {"faster", "slower", "equivalent", "undecided"}


@pytest.mark.parametrize("rounds", [5, 10])
@pytest.mark.parametrize(
    ("between", "most"), [(0.001, 0.0), (0.003, 0.005), (0.01, 0.05), (0.05, 0.07)]
)
def test_an_implementation_compared_with_itself(between, rounds, most):
    """Never where the noise is that of a quiet machine; else no oftener than the interval says."""
    rng = np.random.default_rng(3)
    said = []
    for _ in range(600):
        drift = rng.normal(0, 0.03, (rounds, 1))  # a machine that warms up from round to round
        a, b = (clock(rng, 5.0, rounds, between, shared=drift) for _ in range(2))
        said.append(verdict(ratio_interval(a, b)))
    wrong = sum(s in ("faster", "slower") for s in said)
    assert wrong <= most * len(said)


def test_the_same_records_are_equivalent():
    a = clock(np.random.default_rng(4), 5.0, 5, 0.1)
    assert ratio_interval(a, a) == Interval(1.0, 1.0, 1.0, 5)
    assert verdict(ratio_interval(a, a)) == "equivalent"
    assert verdict(unpaired(list(a.values()), list(a.values()))) in ("equivalent", "undecided")


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_coverage(rounds):
    rng = np.random.default_rng(5)
    paired = welch = 0
    trials = 800
    for _ in range(trials):
        drift = rng.normal(0, 0.05, (rounds, 1))
        a, b = (clock(rng, level, rounds, 0.01, shared=drift) for level in (1.3, 1.0))
        found = ratio_interval(a, b)
        paired += found.low <= 1.3 <= found.high
        found = unpaired(
            list(a.values()), list(clock(rng, 1.0, rounds, 0.01, shared=drift).values())
        )
        welch += found.low <= 1.3 <= found.high
    assert 0.93 <= paired / trials <= 0.97
    assert 0.93 <= welch / trials <= 1.0  # wider: it cannot know that the drift was shared


def test_a_true_difference_is_found():
    rng = np.random.default_rng(6)
    said = {
        verdict(ratio_interval(clock(rng, 1.05, 5, 0.003), clock(rng, 1.0, 5, 0.003)))
        for _ in range(50)
    }
    assert said == {"slower"}


def test_out_of_memory():
    inf = math.inf
    assert ratio_interval([inf, inf], [1.0, 1.0]).ratio == inf
    assert verdict(ratio_interval([inf, inf], [1.0, 1.0])) == "slower"
    assert verdict(ratio_interval([1.0, 1.0], [inf, inf])) == "faster"
    both = ratio_interval([inf, inf], [inf, inf])
    assert math.isnan(both.ratio)
    assert both.reason == "both out of memory"
    some = ratio_interval([inf, 1.0], [1.0, 1.0])
    assert math.isnan(some.ratio)
    assert some.reason == "out of memory in some rounds only"
    assert verdict(some) == verdict(both) == "undecided"
    assert verdict(unpaired([inf], [1.0, 1.1])) == "slower"


def test_too_few_rounds_give_no_interval():
    one = ratio_interval([2.0], [1.0])
    assert one.ratio == pytest.approx(2.0)
    assert math.isnan(one.low)
    assert one.reason == "one round gives no interval"
    assert verdict(one) == "undecided"
    none = ratio_interval({0: 1.0}, {1: 1.0})
    assert math.isnan(none.ratio)
    assert none.reason == "no round has both"
    assert math.isnan(t_interval([])[0])
    assert verdict(unpaired([2.0], [1.0, 1.0])) == "undecided"
    assert verdict(unpaired([], [1.0])) == "undecided"


def test_a_single_count_is_exact_and_a_single_time_is_not():
    counted = exact(ratio_interval([300.0], [200.0]))
    assert (counted.ratio, counted.low, counted.high, counted.n) == pytest.approx(
        (1.5, 1.5, 1.5, 1)
    )
    assert verdict(counted) == "slower"
    two = ratio_interval([300.0, 330.0], [200.0, 200.0])
    assert exact(two) == two
    assert math.isnan(exact(ratio_interval([math.inf], [math.inf])).ratio)


def test_values_that_have_no_logarithm():
    assert ratio_interval([0.0, 0.0], [1.0, 1.0]).reason == "a value is not positive"
    missing = ratio_interval([math.nan, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert missing.n == 2


def test_statistic_of_a_record():
    record = {
        "status": "ok",
        "time_ms": {"wall": [3.0, 1.0, 2.0], "device": []},
        "memory_bytes": {"weights": 100, "peak_allocated": 130},
    }
    assert statistic(record, "time") == 2.0
    assert math.isnan(statistic(record, "device_time"))
    assert statistic(record, "memory") == 30.0
    assert statistic(record, "peak_memory") == 130.0
    assert statistic({"status": "oom"}, "memory") == math.inf
    assert math.isnan(statistic({"status": "error"}, "time"))
    assert math.isnan(statistic({"status": "ok", "memory_bytes": None}, "memory"))
    assert math.isnan(
        statistic(
            {"status": "ok", "memory_bytes": {"weights": 1, "peak_allocated": None}}, "memory"
        )
    )
