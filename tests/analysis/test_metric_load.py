import json
import math

import numpy as np
import pytest

from analysis import metric_load as load
from bench.records import RecordError
from tests.analysis.metric_simulate import MetricSimulation, record, value


def unit(**changed):
    names = {
        "group": "hidden", "arch": "mamba", "impl": "cpu", "dtype": "fp32", "seqlen": 64, "seed": 0,
        "weights": "initial", "part": "",
    }  # fmt: skip
    return names | changed


def one(layer, metric="norm", number=1.0, instrument="residual stream", **changed):
    return record(unit(**changed), values=[value(layer, instrument, metric, number)])


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_written_is_read(tmp_path):
    simulation = MetricSimulation(seeds=2)
    rows = simulation.records()
    assert load.read(simulation.write(tmp_path / "metrics.jsonl")) == rows
    frame = load.values_frame(rows)
    assert len(frame) == sum(len(row["values"]) for row in rows)
    first = rows[0]["values"][3]
    assert frame.iloc[3][["layer", "metric", "value"]].tolist() == [
        first["layer"],
        first["metric"],
        first["value"],
    ]


def test_no_file_is_no_records(tmp_path):
    assert load.read(tmp_path / "metrics.jsonl") == []
    for frame in (load.values_frame, load.profiles_frame, load.checks_frame):
        assert frame([]).empty
    assert load.with_blocks(load.values_frame([])).empty
    assert load.over_seeds(load.values_frame([])).empty


def test_the_later_record_of_a_unit_counts(tmp_path):
    again = one("block 1", number=2.0)
    path = lines(tmp_path / "m", one("block 1"), one("block 1", seed=1), again)
    assert load.values_frame(load.read(path)).value.tolist() == [2.0, 1.0]


def test_a_torn_last_line_is_skipped_and_a_broken_one_named(tmp_path):
    path = lines(tmp_path / "m", one("block 1"))
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert len(load.read(path)) == 1
    path.write_text(whole + whole[:40] + "\n" + whole)
    with pytest.raises(RecordError, match="line 2: not a record"):
        load.read(path)
    skipped = []
    assert len(load.read(path, skipped)) == 1
    assert len(skipped) == 1
    assert "line 2: not a record" in skipped[0]


@pytest.mark.parametrize("broken", [{"unit": {}}, {"status": "fine"}, {"unit": None}])
def test_a_record_without_its_fields_is_broken(broken, tmp_path):
    with pytest.raises(RecordError, match="line 1"):
        load.read(lines(tmp_path / "m", one("block 1") | broken))


def test_only_what_was_measured_has_values():
    rows = [one("block 1") | {"status": status} for status in load.STATUSES]
    assert len(load.values_frame(rows)) == 1
    assert load.values_frame(rows[1:]).empty


def test_numbers_that_json_lacks():
    rows = [one("block 1", number="nan"), one("block 1", number="inf", seed=1)]
    found = load.values_frame(rows)
    assert math.isnan(found.value[0])
    assert found.value[1] == math.inf
    assert found.low.isna().all()


def test_layers_are_numbered_by_architecture():
    rows = [
        one(layer, arch=arch, part=layer)
        for arch, blocks in (("llama", 2), ("mamba", 3))
        for layer in ("embedding", *(f"block {i + 1}" for i in range(blocks)), "final norm")
    ]
    found = load.values_frame([*rows, one("model", part="x"), one("", arch="llama", part="y")])
    assert found[found.arch == "llama"].layer_index.tolist() == [0, 1, 2, 3, load.NO_LAYER]
    assert found[found.arch == "mamba"].layer_index.tolist() == [0, 1, 2, 3, 4, load.NO_LAYER]
    assert load.of_model(found).layer.tolist() == ["model", ""]


def test_the_mean_over_the_blocks_leaves_out_the_rest():
    rows = [
        one(n, number=v, part=n)
        for n, v in (("embedding", 9.0), ("block 1", 1.0), ("block 2", 3.0), ("final norm", 9.0))
    ]
    for row in rows:
        row["unit"]["part"] = ""
    found = load.with_blocks(load.values_frame(rows))
    assert found[found.layer == load.BLOCKS].value.tolist() == [2.0]


def test_profiles_are_arrays():
    profile = {
        "layer": "block 1", "instrument": "softmax", "metric": "entropy", "positions": [1, 5], "values": ["nan", 2.0],
    }  # fmt: skip
    found = load.profiles_frame([record(unit(), profiles=[profile])]).iloc[0]
    assert found.positions.tolist() == [1.0, 5.0]
    assert np.isnan(found["values"][0])


def test_checks_know_their_bounds():
    row = one("block 1")
    row["parity"] = {
        "baseline": "hf", "passed": False,
        "metrics": {"block 1/residual stream/norm": {"max": [2.0, 1.0], "rms": [0.0, 0.0], "other": ["nan", 1.0]}},
    }  # fmt: skip
    found = load.checks_frame([row])
    assert found.passed.tolist() == [False, True, False]
    assert found.fraction[0] == 2.0
    assert (found.layer[0], found.instrument[0], found.metric[0]) == (
        "block 1",
        "residual stream",
        "norm",
    )


def test_a_failure_without_numbers_is_one_of_every_value():
    row = one("block 1") | {"parity": {"baseline": "hf", "passed": False, "metrics": {}}}
    found = load.checks_frame([row])
    assert found.passed.tolist() == [False]
    assert found.metric.tolist() == ["norm"]


def test_one_implementation_is_one_that_passed():
    broken = MetricSimulation(broken={("mamba", "cpu"): 1.5}, groups=("hidden",)).records()
    found = load.one_implementation(load.values_frame(broken), load.checks_frame(broken))
    assert found[found.arch == "mamba"].impl.unique().tolist() == ["hf"]
    assert found[found.arch == "llama"].impl.unique().tolist() == ["cpu"]  # `reference` is none
    everything = MetricSimulation(
        broken={("mamba", "cpu"): 1.5}, impls=("hf", "cpu"), groups=("hidden",)
    ).records()
    alone = [r for r in everything if r["unit"]["impl"] == "cpu"]
    found = load.one_implementation(load.values_frame(alone), load.checks_frame(alone))
    assert set(found.impl) == {"cpu"}


def test_settings_are_in_the_order_of_people():
    rows = [
        one("block 1", seqlen=n, weights=w)
        for n, w in ((64, "trained"), (64, "initial"), (512, "initial"), (0, "initial"))
    ]
    found = [str(s) for s in load.settings(load.values_frame(rows))]
    assert found == [
        "512 tokens, fp32, initial weights",
        "64 tokens, fp32, initial weights",
        "whole sessions, fp32, initial weights",
        "64 tokens, fp32, trained weights",
    ]
