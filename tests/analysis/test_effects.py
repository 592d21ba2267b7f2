import itertools
import math

import numpy as np
import pandas as pd
import pytest

from analysis.effects import decompose, largest_grid
from analysis.load import cells
from tests.analysis.planted import factors, results, world


def effect(found, contrast, measure="time"):
    table = found.effects
    (row,) = table[(table.contrast == contrast) & (table.measure == measure)].itertuples()
    return row


def test_planted_effects_lie_within_their_intervals():
    """Architecture 2x, implementation 5x and their interaction, under noise between rounds."""
    truths = {
        "llama / mamba": 2.0,
        "hf / cuda": 5.0,
        "(llama / mamba) x (hf / cuda)": 1.3**2,
    }
    hits = []
    for seed in range(20):
        found = results(world(factors(2.0, 5.0, 1.3), between=0.03, seed=seed))
        for contrast, truth in truths.items():
            row = effect(found, contrast)
            hits.append(row.low <= truth <= row.high)
            assert row.factor == pytest.approx(truth, rel=0.1)
            assert row.verdict == "raises"
            assert row.rounds == 5
    assert 0.88 <= np.mean(hits) <= 1.0


def test_a_world_of_equals_has_no_effect():
    costs = dict.fromkeys(factors(), 0.1)
    verdicts = []
    for seed in range(20):
        table = results(world(costs, between=0.01, seed=seed)).effects
        verdicts += list(table[(table.measure == "time") & table.effect.notna()].verdict)
    assert len(verdicts) == 60
    assert np.mean([v in ("raises", "lowers") for v in verdicts]) <= 0.05


def test_effects_on_memory_are_exact():
    row = effect(results(world(factors(2.0, 5.0), rounds=1)), "llama / mamba", "memory")
    assert row.low == row.factor == row.high
    assert row.factor > 1.9
    assert row.verdict == "raises"


def test_memory_counted_in_one_round_serves_all():
    simulation = world(factors(), rounds=3)
    found = results(simulation)
    for record in found.run.records:
        if record["round"] > 0:
            record["memory_bytes"] = None
    assert effect(found, "llama / mamba", "memory").rounds == 3


def test_decomposition_is_least_squares():
    """Of a 2 x 3 x 2 grid, against numpy's solver with sum-to-zero columns."""
    values = np.random.default_rng(0).normal(size=(2, 3, 2, 4))
    found = decompose(values)
    coding = [
        np.array([[1.0], [-1.0]]),
        np.array([[1.0, 0], [0, 1.0], [-1.0, -1.0]]),
        np.array([[1.0], [-1.0]]),
    ]
    columns, names = [np.ones((12, 1))], [()]
    for term in [t for n in (1, 2, 3) for t in itertools.combinations(range(3), n)]:
        parts = [coding[a] if a in term else np.ones((len(coding[a]), 1)) for a in range(3)]
        block = np.kron(np.kron(parts[0], parts[1]), parts[2])
        columns.append(block)
        names += [term] * block.shape[1]
    solved = np.linalg.lstsq(np.hstack(columns), values.reshape(12, 4), rcond=None)[0]
    of = lambda term: solved[[name == term for name in names]]
    # a factor with two levels: their difference, twice the coefficient; one with three: each against the mean
    np.testing.assert_allclose(found[0,][0][0], 2 * of((0,))[0])
    first, second = of((1,))
    np.testing.assert_allclose(found[1,][0], [first, second, -first - second])
    np.testing.assert_allclose(found[0, 2][0][0, 0], 4 * of((0, 2))[0])
    first, second = of((0, 1))
    np.testing.assert_allclose(found[0, 1][0][0], 2 * np.array([first, second, -first - second]))
    assert sum(share for _, share in found.values()) == pytest.approx(1)


def test_shares_name_what_the_times_hang_on():
    table = results(world(factors(1.2, 5.0), between=0.005)).effects
    time = table[(table.measure == "time")].set_index("term").share
    assert time.sum() == pytest.approx(1)
    expected = math.log(5) ** 2 / (math.log(5) ** 2 + math.log(1.2) ** 2)
    assert time["impl"] == pytest.approx(expected, abs=0.01)
    assert time["residual"] + time["rounds"] < 0.01


def test_launch_and_dtype_are_factors():
    eager, graph = (
        world(factors(), seed=1),
        world({k: v / 1.5 for k, v in factors().items()}, seed=2),
    )
    both = [eager, (graph, {"launch": "graph"})]
    both += [(world({k: v / 3 for k, v in factors().items()}, seed=3), {"dtype": "bf16"})]
    both += [
        (
            world({k: v / 4.5 for k, v in factors().items()}, seed=4),
            {"dtype": "bf16", "launch": "graph"},
        )
    ]
    found = results(*both)
    for contrast, truth in (("eager / graph", 1.5), ("fp32 / bf16", 3.0), ("llama / mamba", 2.0)):
        assert effect(found, contrast).factor == pytest.approx(truth, rel=0.02)
    assert effect(found, "(eager / graph) x (fp32 / bf16)").factor == pytest.approx(1, abs=0.04)
    assert "arch x impl x launch x dtype" in set(found.effects.term)


def test_three_implementations_stand_against_their_mean():
    costs = factors() | {("llama", "torch"): 0.4, ("mamba", "torch"): 0.2}
    found = results(world(costs))
    levels = [effect(found, f"{impl} / mean") for impl in ("hf", "cuda", "torch")]
    assert sum(level.effect for level in levels) == pytest.approx(0, abs=1e-12)
    mean = (5 * 1 * 2) ** (1 / 3)
    assert [level.factor for level in levels] == pytest.approx(
        [5 / mean, 1 / mean, 2 / mean], rel=0.02
    )


def test_missing_cells_are_left_out_and_said():
    costs = factors() | {("llama", "torch"): 0.4, ("mamba", "torch"): 0.2}
    found = results(
        world(costs, unavailable={"triton": "no GPU"}), drop={("mamba", "torch", "eager", "fp32")}
    )
    table = found.effects
    assert set(table.levels) == {"arch: llama, mamba; impl: hf, cuda; launch: eager; dtype: fp32"}
    (text,) = set(table.left_out)
    assert "impl torch, because mamba torch was not planned" in text
    assert "impl triton, because llama triton is unavailable" in text
    assert effect(found, "llama / mamba").factor == pytest.approx(2, rel=0.03)


def test_out_of_memory_leaves_an_implementation_out():
    found = results(world(factors(), seqlens=(512, 1024), out_of_memory={("llama", "hf"): 1024}))
    table = found.effects[found.effects.measure == "time"]
    short, long = table[table.seqlen == 512], table[table.seqlen == 1024]
    assert set(short.left_out) == {""}
    assert set(long.left_out) == {"impl hf, because llama hf ran out of memory"}
    assert set(long.term) == {"rounds", "arch", "residual"}


def test_a_round_that_lacks_a_cell_is_left_out():
    found = results(world(factors(), rounds=4))
    found.run.records[0]["status"] = "timeout"
    row = effect(found, "llama / mamba")
    assert row.rounds == 3
    assert row.left_out == "1 of 4 rounds, because a cell lacks a value in them"


def test_one_round_has_no_interval():
    row = effect(results(world(factors(), rounds=1)), "llama / mamba")
    assert row.factor == pytest.approx(2, rel=0.1)
    assert math.isnan(row.low)
    assert row.verdict == "undecided"


def test_one_architecture_still_has_implementations():
    found = results(world({k: v for k, v in factors().items() if k[0] == "mamba"}))
    assert effect(found, "hf / cuda").factor == pytest.approx(5, rel=0.03)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"costs": {("mamba", "hf"): 0.1}}, "a single cell has nothing to be compared with"),
        (
            {"costs": factors(), "out_of_memory": dict.fromkeys(factors(), 1)},
            "nothing was measured",
        ),
        ({"costs": factors(), "rounds": 0, "unavailable": {"hf": "no"}}, "nothing was measured"),
    ],
)
def test_nothing_to_compare_is_a_row_with_the_reason(changed, reason):
    table = results(world(**changed)).effects
    assert set(table.reason) == {reason}
    assert table.factor.isna().all()


def test_no_record_no_row():
    found = results(world(factors(), rounds=0))
    assert isinstance(cells(found.records), pd.DataFrame)
    assert found.effects.empty


def test_largest_grid_prefers_both_architectures_and_whole_rounds():
    measured = np.ones((2, 3, 4), dtype=bool)
    assert largest_grid(measured)[0] == ((0, 1), (0, 1, 2))
    measured[1, 1] = measured[1, 2] = False  # six cells of one architecture against two of both
    assert largest_grid(measured)[0] == ((0, 1), (0,))
    measured[1, 0, 2:] = False
    grid, rounds = largest_grid(measured)
    assert grid == ((0, 1), (0,))
    assert rounds.tolist() == [0, 1]
    assert largest_grid(np.zeros((2, 2, 3), dtype=bool)) is None
