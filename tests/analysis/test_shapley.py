import itertools
import math

import numpy as np
import pytest

from analysis.shapley import END, START, shapley
from bench.verdict import Interval, verdict
from tests.analysis.planted import factors, results, world

COSTS = factors() | {("mamba", "hf"): 2.0}
SCALES = {("graph", "fp32"): 0.5, ("eager", "bf16"): 0.25, ("graph", "bf16"): 0.1}


def everything(seed=0, llama_graph=1.0, **options):
    """COSTS under both launches and dtypes; llama gains `llama_graph` more from a graph."""
    simulations = [world(COSTS, seed=seed, **options)]
    for i, ((launch, dtype), scale) in enumerate(SCALES.items(), 1):
        gain = llama_graph if launch == "graph" else 1.0
        costs = {c: v * scale / (gain if c[0] == "llama" else 1) for c, v in COSTS.items()}
        simulations.append(
            (world(costs, seed=seed + i, **options), {"launch": launch, "dtype": dtype})
        )
    return simulations


def walk(found):
    return found.shapley.set_index("switch")


def test_contributions_add_up_exactly():
    for seed in range(3):
        table = walk(results(*everything(10 * seed, llama_graph=2.0, between=0.1)))
        turned = table.effect.drop([START, END]).dropna()
        assert set(turned.index) == {"llama mixer", "launch", "dtype"}
        assert table.effect[START] + turned.sum() == pytest.approx(table.effect[END], abs=1e-12)


def test_planted_contributions_are_returned():
    """LLaMA's mixer is planted as 5x, and a graph speeds LLaMA up 2x more than Mamba."""
    truths = {"llama mixer": 1 / 5, "launch": 1 / 2, "dtype": 1.0, START: 10.0, END: 1.0}
    hits = []
    for seed in range(8):
        table = walk(results(*everything(10 * seed, llama_graph=2.0)))
        hits += [table.low[name] <= truth <= table.high[name] for name, truth in truths.items()]
        assert [table.factor[name] for name in truths] == pytest.approx(
            list(truths.values()), rel=0.05
        )
    assert np.mean(hits) >= 0.85
    assert table.after[START] == "llama hf, mamba cuda, fp32, eager"
    assert table.after[END] == "llama cuda, mamba cuda, bf16, graph"


def test_a_world_of_equals_has_no_contributions():
    verdicts = []
    for seed in range(20):
        table = walk(results(world(dict.fromkeys(factors(), 0.1), seed=seed)))
        for row in table.drop([START, END]).dropna(subset="effect").itertuples():
            verdicts.append(verdict(Interval(row.factor, row.low, row.high, row.rounds)))
    assert len(verdicts) > 10
    assert np.mean([said in ("faster", "slower") for said in verdicts]) <= 0.1


def test_what_a_switch_adds_is_its_mean_over_all_orders():
    rng = np.random.default_rng(0)
    values = {
        frozenset(s): rng.normal(size=3)
        for n in range(4)
        for s in itertools.combinations(range(3), n)
    }
    expected = np.zeros((3, 3))
    for order in itertools.permutations(range(3)):
        for position, i in enumerate(order):
            before = frozenset(order[:position])
            expected[i] += (values[before | {i}] - values[before]) / 6
    np.testing.assert_allclose(shapley(values, 3), expected)


def test_what_was_not_varied_is_said():
    table = walk(results(world(COSTS)))
    assert table.reason["launch"] == table.reason["dtype"] == "not varied in this run"
    assert table.reason["mamba mixer"] == "cuda is the best one as well"
    assert table.reason["logits"] == "not varied in this run: an option of all its cells"
    assert table.before["logits"] == "last"


def test_a_switch_needs_all_combinations():
    """A graph was measured for the fused mixers alone: the way from eager attention to it is unknown."""
    fused = {cell: cost / 2 for cell, cost in COSTS.items() if cell[1] == "cuda"}
    table = walk(results(world(COSTS), (world(fused, seed=1), {"launch": "graph"})))
    assert math.isnan(table.effect["launch"])
    assert table.reason["launch"] == (
        "not varied in this run: graph is faster, but not all combinations with it were measured"
    )
    assert table.factor["llama mixer"] == pytest.approx(1 / 5, rel=0.05)
    assert table.after[END] == "llama cuda, mamba cuda, fp32, eager"


def test_the_start_without_eager_attention_is_unknown():
    for costs, options in (
        ({c: v for c, v in COSTS.items() if c != ("llama", "hf")}, {}),
        (COSTS, {"out_of_memory": {("llama", "hf"): 1}}),
        (COSTS, {"dtype": "bf16"}),
    ):
        table = walk(results(world(costs, **options)))
        assert list(table.index) == [START, "logits"]
        assert "needs a time of llama under hf and of mamba in fp32" in table.reason[START]


def test_modes_without_a_choice_of_logits_have_no_such_row():
    assert "logits" not in walk(results(world(COSTS, modes=("decode",)))).index


def test_one_round_has_no_interval():
    table = walk(results(world(COSTS, rounds=1)))
    assert math.isnan(table.low["llama mixer"])
    assert table.factor["llama mixer"] == pytest.approx(1 / 5, rel=0.1)
