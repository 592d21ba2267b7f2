import itertools
import math

import numpy as np
import pytest

from analysis.shapley import END, START, other_logits, shapley, shapley_table
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


def two_runs(last=0.8, llama=2.0, **changed):
    """(logits of all positions, of the last): the last takes `last` of the time, and of LLaMA's `llama` times less."""
    costs = {c: v * last / (llama if c[0] == "llama" else 1) for c, v in COSTS.items()}
    options = {"seed": 0, "preset": "paper-50m"}
    everywhere = results(world(COSTS, options=options | {"logits": "all"}))
    return everywhere, results(world(costs, seed=1, options=options | {"logits": "last"} | changed))


@pytest.mark.parametrize("swapped", [False, True])
def test_logits_are_a_switch_between_two_runs(swapped):
    """The last position alone is planted to halve LLaMA / Mamba; the start is the paper's, of all positions."""
    runs = two_runs()[:: -1 if swapped else 1]
    assert other_logits(runs[0].run, runs[1].run) == ""
    table = shapley_table(*runs).set_index("switch")
    assert table.factor["logits"] == pytest.approx(1 / 2, rel=0.03)
    assert table.low["logits"] < 1 / 2 < table.high["logits"]
    assert (table.before["logits"], table.after["logits"]) == ("all", "last")
    assert table.factor["llama mixer"] == pytest.approx(1 / 5, rel=0.03)
    assert table.after[START] == "llama hf, mamba cuda, fp32, eager, logits all"
    assert table.after[END] == "llama cuda, mamba cuda, fp32, eager, logits last"
    turned = table.effect.drop([START, END]).dropna().sum()
    assert table.effect[START] + turned == pytest.approx(table.effect[END], abs=1e-12)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"logits": "all"}, "both computed the logits of the same positions (all)"),
        ({"seed": 3}, "their models differ (seed 0 and 3)"),
        (
            {"checkpoint": {"mamba": "x"}},
            "their models differ (checkpoint None and {'mamba': 'x'})",
        ),
    ],
)
def test_runs_that_differ_in_more_make_no_switch(changed, reason):
    a, b = two_runs(**changed)
    assert other_logits(a.run, b.run) == reason


def test_another_machine_or_other_tokens_make_no_switch():
    a, b = (found.run for found in two_runs())
    b.plan["tokens"] = {"sha256": "1"}
    assert other_logits(a, b) == "their tokens differ"
    b.machine["cpu"] = "other"
    assert other_logits(a, b).startswith("their machines differ (cpu simulated -> other")
