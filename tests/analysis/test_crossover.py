import json
import math

import numpy as np
import pandas as pd
import pytest

from analysis.crossover import fitted, interpolated
from analysis.summary import Results
from bench.records import read_run
from tests.analysis.simulate import HALF_OCTAVES, Simulation

L = np.array(HALF_OCTAVES, dtype=float)


def curve(values, rounds=5, noise=0.0, seed=0, lengths=L):
    """A table rounds x seqlen of `values` (a function of the length, or an array) with noise of the logarithm."""
    values = values(lengths) if callable(values) else np.asarray(values, dtype=float)
    factor = np.exp(np.random.default_rng(seed).normal(0, noise, (rounds, len(lengths))))
    return pd.DataFrame(values * factor, columns=[int(n) for n in lengths])


def linear(L):
    return 8 + 0.12 * L


def quadratic(L):
    return 5 + 0.06 * L + 6e-5 * L**2


CROSSING = (0.06 + math.sqrt(0.06**2 + 4 * 6e-5 * 3)) / (2 * 6e-5)  # quadratic = linear


@pytest.mark.parametrize("method", [interpolated, fitted])
@pytest.mark.parametrize(("rounds", "noise"), [(5, 0.01), (10, 0.003)])
def test_known_costs_give_back_their_crossover(method, rounds, noise):
    """Intervals hold the truth in 93 to 99 % of longer simulations; they are not bought by width."""
    hits, errors, widths = [], [], []
    for seed in range(100):
        llama = curve(quadratic, rounds, noise, 2 * seed)
        mamba = curve(linear, rounds, noise, 2 * seed + 1)
        (row,) = method(llama, mamba)
        assert row["answer"] == "crossover"
        assert row["better_above"] == "mamba"
        hits.append(row["low"] <= CROSSING <= row["high"])
        errors.append(row["seqlen"] / CROSSING - 1)
        widths.append(math.log(row["high"] / row["low"]))
    assert np.mean(hits) >= 0.90
    # the delta method: sd(ln L) = sd(ln ratio) / |slope gap|, with t and a gap of 0.5; twice that is too wide
    assert np.median(widths) < 2 * 2 * 2.8 * noise * math.sqrt(2 / rounds) / 0.5
    assert abs(np.mean(errors)) < 0.005


def test_intervals_hold_with_noise_that_rounds_share():
    """A slow process slows both sides: pairing removes it, and the interval stays as narrow as without it."""
    widths = []
    for shared in (0.0, 0.1):
        rng = np.random.default_rng(7)
        factor = np.exp(rng.normal(0, shared, (5, 1)))
        (row,) = interpolated(
            curve(quadratic, 5, 0.005, 1) * factor, curve(linear, 5, 0.005, 2) * factor
        )
        widths.append(row["high"] / row["low"])
    assert widths[0] == pytest.approx(widths[1])


def test_a_fit_knows_that_the_points_scatter_about_it():
    """Lengths that are all a little off in every round: rounds agree, and only the residuals tell.

    90 % in longer simulations: the interval takes the chosen models as given, and AICc sometimes adds a term.
    """
    hits = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        off = [np.exp(rng.normal(0, 0.01, len(L))) for _ in range(2)]
        llama, mamba = (
            curve(quadratic(L) * off[0], noise=1e-4),
            curve(linear(L) * off[1], noise=1e-4, seed=1),
        )
        (row,) = fitted(llama, mamba)
        hits.append(row["low"] <= CROSSING <= row["high"])
    assert np.mean(hits) >= 0.8


def test_exact_data_cross_where_the_functions_do():
    (row,) = interpolated(curve(quadratic), curve(linear))
    assert row["seqlen"] == pytest.approx(CROSSING, rel=1e-3)
    assert row["low"] <= CROSSING <= row["high"]
    assert row["high"] / row["low"] < 1.02
    (row,) = fitted(curve(quadratic), curve(linear))
    assert row["seqlen"] == pytest.approx(CROSSING, rel=1e-4)
    assert row["models"] == "llama a + b L + c L^2, mamba a + b L"


def test_the_other_direction():
    (row,) = interpolated(curve(linear), curve(quadratic))
    assert row["better_above"] == "llama"


def test_none_in_range():
    (row,) = interpolated(
        curve(linear, noise=0.01), curve(lambda L: 2 * linear(L), noise=0.01, seed=1)
    )
    assert (row["answer"], row["better_above"]) == ("none in range", "llama")
    assert math.isnan(row["seqlen"])
    (row,) = fitted(curve(linear, noise=0.01), curve(lambda L: 2 * linear(L), noise=0.01, seed=1))
    assert (row["answer"], row["better_above"]) == ("none in range", "llama")
    assert row["note"] == "nor within 8 times beyond"


def test_several():
    wave = np.exp(0.3 * np.sin(np.linspace(0.5, 2.6 * np.pi, len(L))))
    rows = interpolated(curve(linear(L) * wave, noise=0.003), curve(linear, noise=0.003, seed=1))
    assert [r["answer"] for r in rows] == ["several"] * 2
    assert [r["better_above"] for r in rows] == ["llama", "mamba"]
    assert rows[0]["high"] < rows[1]["low"]


def test_chance_crosses_equal_curves_rarely():
    undecided = 0
    for seed in range(100):
        llama, mamba = (curve(linear, noise=0.02, seed=2 * seed + side) for side in (0, 1))
        undecided += interpolated(llama, mamba)[0]["answer"] == "undecided"
    assert undecided >= 93
    (row,) = interpolated(curve(linear), curve(linear))
    assert (row["answer"], row["note"]) == ("undecided", "equal throughout")


def test_unbounded_interval():
    """Side by side from the middle on: it crosses somewhere, but no length beyond is proven."""
    ratio = np.exp(np.where(L < 500, -0.2, 0.004))
    (row,) = interpolated(
        curve(linear(L) * ratio, noise=0.01, seed=3), curve(linear, noise=0.01, seed=4)
    )
    assert row["answer"] == "crossover"
    assert 256 < row["low"] < row["seqlen"]
    assert row["high"] == math.inf
    assert row["note"] == "interval unbounded above"


def test_out_of_memory_bounds_the_crossover():
    llama = curve(lambda L: 0.5 * linear(L), noise=0.01)
    llama[[1448, 2048]] = math.inf
    (row,) = interpolated(llama, curve(linear, noise=0.01, seed=1))
    assert row["answer"] == "crossover"
    assert (row["low"], row["high"]) == (pytest.approx(1024), pytest.approx(1448))
    assert math.isnan(row["seqlen"])
    assert "llama out of memory at 1,448" in row["note"]


def test_out_of_memory_of_both_says_nothing():
    llama, mamba = curve(lambda L: 0.5 * linear(L)), curve(linear)
    llama[2048] = mamba[2048] = math.inf
    (row,) = interpolated(llama, mamba)
    assert row["answer"] == "none in range"


def test_extrapolation_is_labelled():
    short = L[L <= 724]
    lengths = np.round(64 * 2 ** (np.arange(9) / 2))
    llama, mamba = curve(quadratic, lengths=lengths[:8]), curve(linear, lengths=lengths[:8])
    assert max(llama) < CROSSING
    assert interpolated(llama, mamba)[0]["answer"] == "none in range"
    (row,) = fitted(llama, mamba)
    assert row["extrapolated"]
    assert row["seqlen"] == pytest.approx(CROSSING, rel=1e-3)
    (row,) = fitted(curve(quadratic, lengths=short), curve(linear, lengths=short))
    assert row["answer"] == "unknown"
    assert row["note"] == "llama has 6 lengths, the choice of a model needs 8"


def test_one_round_gives_an_estimate_without_an_interval():
    (row,) = interpolated(curve(quadratic, 1), curve(linear, 1))
    assert row["seqlen"] == pytest.approx(CROSSING, rel=1e-3)
    assert math.isnan(row["low"])
    assert "one round: no interval" in row["note"]


def test_missing_rounds_and_lengths():
    llama, mamba = curve(quadratic, noise=0.005), curve(linear, noise=0.005, seed=1)
    llama.loc[4, [1024, 1448]] = math.nan  # an interrupted round
    mamba[2048] = math.nan
    (row,) = interpolated(llama, mamba)
    assert row["low"] <= CROSSING <= row["high"]
    assert fitted(llama, mamba)[0]["answer"] == "crossover"
    (row,) = interpolated(llama[[128]], mamba[[128]])
    assert row["answer"] == "unknown"


def test_the_table_has_every_pair_and_method(results):
    table = results(Simulation()).crossovers["time"]
    assert len(table) == 2 * 2 * 2
    row = table[
        (table.llama_impl == "hf") & (table.mamba_impl == "cpu") & (table.method == "interpolation")
    ].iloc[0]
    truth = (0.05 + math.sqrt(0.05**2 + 4 * 6e-5 * 2)) / (2 * 6e-5)
    assert row.low <= truth <= row.high
    memory = results(Simulation()).crossovers["memory"]
    row = memory[(memory.llama_impl == "hf") & (memory.mamba_impl == "cpu")].iloc[0]
    assert row.low <= (90_000 - 82_000) / 32 <= row.high  # 20,000 L = 12,000 L + 32 L^2


def test_bytes_counted_in_one_round_hold_in_all(tmp_path):
    """The allocator is counted in the first round on a CPU: that is no lack of an interval."""
    path = Simulation().write(tmp_path)
    rows = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    for row in rows:
        if row["round"]:
            row["memory_bytes"]["peak_allocated"] = None
    (path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    once, always = (
        Results(read_run(path)),
        Results(read_run(Simulation().write(tmp_path / "always"))),
    )
    columns = ["ratio", "low", "high", "winner"]
    assert once.matrix["memory"][columns].equals(always.matrix["memory"][columns])
    assert set(once.matrix["memory"].rounds) == {1}
    assert once.crossovers["memory"].equals(always.crossovers["memory"])
