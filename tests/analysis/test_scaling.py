import math

import numpy as np
import pytest
from scipy import optimize

from analysis import scaling
from tests.analysis.simulate import HALF_OCTAVES, Simulation

L = np.array(HALF_OCTAVES, dtype=float)
TRUTHS = {
    "a": lambda L: 7.0 + 0 * L,
    "a + b L": lambda L: 20 + 1.2 * L,
    "a + b L + c L^2": lambda L: 5 + 0.06 * L + 6e-5 * L**2,
    "a + b L^p": lambda L: 3 + 0.2 * L**0.5,
    "b L log L": lambda L: 0.3 * L * np.log2(L),
}


@pytest.mark.parametrize("model", TRUTHS)
def test_recovers_the_coefficients(model):
    values = TRUTHS[model](L)
    fitted = scaling.fit(model, L, values)
    assert fitted.predict(L) == pytest.approx(values, rel=1e-5)
    assert fitted.predict([4096]) == pytest.approx(TRUTHS[model](np.array([4096.0])), rel=1e-3)
    assert fitted.rss < 1e-9


@pytest.mark.parametrize("model", TRUTHS)
def test_chooses_the_true_model(model):
    chosen = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 0.003, len(L))
        chosen.append(scaling.choose(scaling.fit_all(L, TRUTHS[model](L) * np.exp(noise)))[0])
    assert chosen.count(model) >= 28, chosen  # AICc adds a term too many one time in six


@pytest.mark.parametrize("model", ["a + b L", "a + b L + c L^2"])
def test_fit_is_the_least_squares_of_the_logarithm(model):
    """A general optimiser finds nothing better, on data that no model describes."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = np.exp(rng.normal(0, 0.5, len(L))) * L ** rng.uniform(0, 3)
        X = np.stack([scaling.TERMS[term](L, 0) for term in scaling.MODELS[model]], axis=1)
        X /= np.exp(np.log(X / values[:, None]).mean(axis=0))
        residual = lambda theta, X=X, values=values: np.log(X @ np.exp(theta) / values)
        starts = np.array([[0.0, -5.0, -9.0], [-9.0, -5.0, 0.0], [-1.0, -1.0, -1.0]])[
            :, : X.shape[1]
        ]
        best = min(2 * optimize.least_squares(residual, start).cost for start in starts)
        assert scaling.fit(model, L, values).rss <= best * (1 + 1e-6)


def test_no_choice_with_few_lengths():
    fits = scaling.fit_all(L[:5], TRUTHS["a + b L + c L^2"](L[:5]))
    chosen, reason = scaling.choose(fits)
    assert chosen is None
    assert reason == "not chosen, because a choice needs 8 lengths and there are 5"
    assert fits["a + b L + c L^2"].aicc == math.inf  # n - k - 1 = 0
    assert scaling.choose({})[0] is None
    assert scaling.fit_all(L[:1], [1.0]) == {}
    assert set(scaling.fit_all(L[:2], [1.0, 2.0])) == {"a", "b L log L"}


def test_absent_terms_are_no_parameters():
    fitted = scaling.fit("a + b L + c L^2", L, 0.5 * L)
    assert set(fitted.coefficients) == {"L"}
    assert fitted.k == 2


def test_akaike_weights_sum_to_one():
    weights = scaling.akaike_weights(
        scaling.fit_all(L, TRUTHS["a + b L"](L) * (1 + 0.01 * np.sin(L)))
    )
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=weights.get) == "a + b L"


def test_influence_is_the_derivative():
    values = TRUTHS["a + b L^p"](L) * np.exp(np.random.default_rng(1).normal(0, 0.01, len(L)))
    for model in ("a + b L + c L^2", "a + b L^p"):
        fitted = scaling.fit(model, L, values)
        assert len(fitted.coefficients) > 1
        weights = fitted.influence([700.0])[0]
        for i in range(len(L)):
            moved = values.copy()
            moved[i] *= math.exp(1e-3)
            change = math.log(
                scaling.fit(model, L, moved).predict([700.0])[0] / fitted.predict([700.0])[0]
            )
            assert change / 1e-3 == pytest.approx(weights[i], abs=0.02)


def test_r_squared_of_polynomials():
    values = TRUTHS["a + b L + c L^2"](L)
    assert scaling.r_squared(L, values, 2) == (pytest.approx(1.0), 6)
    line, dof = scaling.r_squared(L, values, 1)
    slope, intercept = np.polyfit(L, values, 1)
    expected = (
        1 - ((values - slope * L - intercept) ** 2).sum() / ((values - values.mean()) ** 2).sum()
    )
    assert (line, dof) == (pytest.approx(expected), 7)
    assert math.isnan(scaling.r_squared(L[:3], values[:3], 2)[0])


def test_table_has_shares_and_held_out_error(results):
    table = results(Simulation(between=1e-4, within=1e-4)).fits["time"]
    row = table[(table.arch == "llama") & (table.impl == "hf") & table.chosen].iloc[0]
    assert row.model == "a + b L + c L^2"
    assert (row.a, row.b, row.c) == pytest.approx((6.0, 0.07, 6e-5), rel=0.01)
    assert row.share_c == pytest.approx(
        6e-5 * 2048**2 / (6 + 0.07 * 2048 + 6e-5 * 2048**2), rel=0.01
    )
    assert row.share_a + row.share_b + row.share_c == pytest.approx(1)
    assert abs(row.held_out_error) < 0.01
    wrong = table[(table.arch == "llama") & (table.impl == "hf") & (table.model == "a + b L")].iloc[
        0
    ]
    assert wrong.held_out_error < -0.1


def test_out_of_memory_is_censored_and_noted(results):
    table = results(Simulation(out_of_memory={("llama", "hf"): 2048})).fits["time"]
    row = table[(table.arch == "llama") & (table.impl == "hf") & table.chosen].iloc[0]
    assert (row.lengths, row.censored) == (8, "2048")
    assert row.predicted_at_censored == pytest.approx(6 + 0.07 * 2048 + 6e-5 * 2048**2, rel=0.1)
    assert set(table[table.impl == "cpu"].censored) == {""}


def test_slopes_and_their_coverage(results):
    hits = []
    for seed in range(12):
        table = results(Simulation(seed=seed)).slopes["time"]
        for _, row in table.iterrows():
            low, high = (Simulation().time(row.arch, row.impl, n) for n in (row["from"], row.to))
            truth = math.log(high / low) / math.log(row.to / row["from"])
            hits.append(row.low <= truth <= row.high)
    assert len(hits) == 12 * 4 * 8
    assert 0.92 <= np.mean(hits) <= 0.98
