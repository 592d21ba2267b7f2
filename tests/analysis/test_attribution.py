import math

import pytest

from analysis.attribution import attribution, parity_failures
from analysis.metric_load import BLOCKS
from tests.analysis.metric_simulate import MetricSimulation


def verdicts(layer=BLOCKS, **changed):
    table = attribution(MetricSimulation(**{"layers": 3} | changed).records())
    return table[table.layer == layer].set_index(["instrument", "metric"])


def test_a_planted_effect_is_the_architecture():
    found = verdicts(effects={"velocity": 0.5, "entropy": 1.2}, noise=0.03)
    row = found.loc["residual stream", "velocity"]
    assert (row.verdict, row.scale, row.seeds) == ("architecture", "ratio", 5)
    assert row.low < 0.5 < row.high
    assert row["mamba against llama"] == pytest.approx(0.5, rel=0.1)
    assert row.reason.startswith("implementations agree to ")
    for instrument in ("implicit, per channel", "implicit, per state"):
        assert found.loc[f"softmax | {instrument}", "entropy"].verdict == "architecture"
    assert found.loc["contribution", "entropy"].verdict == "architecture"


def test_noise_alone_is_rarely_an_effect():
    found = [
        row.verdict
        for seed in range(20)
        for row in verdicts(noise=0.2, seed=seed, layers=1, groups=("hidden",)).itertuples()
    ]
    assert len(found) == 200
    assert found.count("architecture") <= 20  # 5 % of intervals miss
    assert found.count("undecided") >= 176


def test_equal_architectures_do_not_differ():
    row = verdicts(noise=0.001).loc["residual stream", "velocity"]
    assert row.verdict == "no difference"
    assert "within 2 %" in row.reason


def test_a_difference_within_the_spread_over_implementations_is_none():
    row = verdicts(noise=0.0, effects={"velocity": 1 + 1e-9}).loc["residual stream", "velocity"]
    assert row.verdict == "no difference"
    same = verdicts(noise=0.0).loc["residual stream", "velocity"]
    assert same.verdict == "no difference"


def test_a_broken_implementation_is_a_parity_failure():
    simulation = MetricSimulation(broken={("mamba", "cpu"): 1.01}, effects={"velocity": 0.5})
    found = attribution(simulation.records())
    row = found[(found.metric == "velocity") & (found.layer == "block 2")].iloc[0]
    assert (row.verdict, row.parity) == ("implementation", "FAILED")
    assert row.reason == "parity failed, mamba cpu: error 10,000 times its bound"
    assert row["mamba impl"] == "hf"  # the one that passed is compared
    assert row["mamba spread over impls"] == pytest.approx(0.0099, rel=0.01)
    failures = parity_failures(simulation.records())
    assert set(zip(failures.arch, failures.impl, failures.baseline, strict=True)) == {
        ("mamba", "cpu", "hf")
    }
    worst = failures[failures.group == "hidden"].iloc[0]
    assert (worst.failed, worst.compared) == (100, 100)
    assert worst.error / worst.bound == pytest.approx(1e4, rel=0.01)


def test_only_the_broken_metric_fails():
    rows = MetricSimulation(groups=("hidden",)).records()
    broken = next(r for r in rows if r["unit"]["impl"] == "cpu")
    name = "block 3/residual stream/norm"
    broken["parity"]["metrics"][name]["max"] = ["inf", 1.0]
    broken["parity"]["passed"] = False
    found = attribution(rows).set_index(["metric", "layer"])
    assert found.loc["norm", "block 3"].verdict == "implementation"
    assert found.loc["norm", BLOCKS].verdict == "implementation"
    assert found.loc["norm", "block 4"].verdict != "implementation"
    assert found.loc["norm", "block 3"].reason.endswith("error beyond its bound")
    assert found.loc["velocity", "block 3"].parity == "passed"
    assert parity_failures(rows)["worst metric"].tolist() == ["block 3, residual stream, norm"]


def test_one_architecture_says_so():
    row = verdicts(archs=("mamba",)).loc["residual stream", "velocity"]
    assert (row.verdict, row.reason) == ("undecided", "mamba only")
    assert math.isnan(row.llama)
    assert row.mamba > 0
    assert verdicts().loc["ssm state", "velocity"].reason == "mamba only"


def test_one_seed_says_so():
    row = verdicts(seeds=1, effects={"velocity": 0.5}).loc["residual stream", "velocity"]
    assert (row.verdict, row.reason) == ("undecided", "1 seed of both: no interval")
    assert math.isnan(row.low)
    assert math.isnan(row["llama sd over seeds"])


def test_one_implementation_cannot_be_told_from_its_architecture():
    row = verdicts(impls=("cpu",), effects={"velocity": 0.5}).loc["residual stream", "velocity"]
    assert row.verdict == "undecided"
    assert "llama cpu was not compared with another implementation" in row.reason


def test_without_a_parity_check_the_spread_decides():
    rows = MetricSimulation(effects={"velocity": 0.5}, groups=("hidden",)).records()
    for row in rows:
        row["parity"] = None
    found = attribution(rows).set_index(["metric", "layer"])
    assert found.loc["velocity", BLOCKS].verdict == "architecture"
    assert found.loc["velocity", BLOCKS].parity == "not checked"
    rows = MetricSimulation(
        effects={"velocity": 0.5}, groups=("hidden",), broken={("mamba", "cpu"): 1.2}
    ).records()
    for row in rows:
        row["parity"] = None
    found = attribution(rows).set_index(["metric", "layer"])
    assert found.loc["velocity", BLOCKS].reason.startswith("differs, but mamba's implementations")


def test_metrics_that_are_not_positive_have_a_difference():
    rows = MetricSimulation(groups=("hidden",)).records()
    for row in rows:
        for value in row["values"]:
            value["value"] -= 3.0 if row["unit"]["arch"] == "mamba" else 1.5
    found = attribution(rows).set_index(["metric", "layer"])
    row = found.loc["velocity_relative", BLOCKS]
    assert (row.scale, row.verdict) == ("difference", "architecture")
    assert row["mamba against llama"] == pytest.approx(-1.5, abs=0.1)


def test_the_papers_own_instruments_are_not_compared():
    row = verdicts("model").loc["asymmetric (paper)", "count"]
    assert row.verdict == "undecided"
    assert row.scale == ""
    assert (
        verdicts("model", effects={"count": 2}).loc["hutchinson", "count"].verdict == "architecture"
    )


def test_spreads_and_seeds():
    row = verdicts(noise=0.1, seeds=8).loc["residual stream", "norm"]
    assert row["llama sd over seeds"] / row.llama == pytest.approx(0.1, rel=0.7)
    assert 0 < row["llama spread over impls"] < 1e-6
    assert 0 < row["error / bound"] < 1
    assert row.seeds == 8


def test_the_gold_in_float64_and_baselines_are_no_contenders():
    table = attribution(MetricSimulation().records())
    assert set(table["llama impl"].dropna()) == {"cpu"}
    assert set(table["dtype"]) == {"fp32"}
    assert not set(table.instrument) & {"texttiling", "position", "tf-idf", "input embeddings"}
    assert "p_null" not in set(table.metric)


def test_other_lengths_are_not_mixed():
    rows = MetricSimulation(groups=("hidden",)).records()
    rows += MetricSimulation(groups=("hidden",), seqlen=1024, seeds=1).records()
    table = attribution(rows)
    assert table.groupby("tokens").seeds.max().to_dict() == {512: 5, 1024: 1}
    assert attribution([]).empty
    assert parity_failures([]).empty
