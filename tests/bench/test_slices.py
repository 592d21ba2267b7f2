"""Slices: which cells they make, where their references lie, and what is extrapolated from them."""

from types import SimpleNamespace

import numpy as np
import pytest

from analysis import sliced
from analysis.load import frame
from bench import slices
from bench.cost import sizes
from bench.forward import Models
from bench.options import given, make_parser, resolve
from bench.plan import Cell, PlanError
from bench.planning import make_plan
from models.build import outline, parameter_counts
from models.presets import PRESETS

COMMON = ["--preset", "paper-50m", "--impl", "torch", "--seqlens", "24", "--device", "cpu"]


def planned(*argv):
    parser = make_parser("")
    said = given(parser, [*COMMON, *argv])
    plan, _ = make_plan(resolve(parser.parse_args([*COMMON, *argv]), said))
    return plan


@pytest.mark.parametrize(("text", "presets"), [
    ("2", ["paper-50m@2", "paper-50m@4"]),
    ("1,3", ["paper-50m@1", "paper-50m@3"]),
    ("1,whole", ["paper-50m@1", "paper-50m@2", "paper-50m"]),
])  # fmt: skip
def test_every_depth_has_its_cells(text, presets):
    plan = planned("--slice", text, "--arch", "llama")
    assert [cell.preset for cell in plan.cells] == presets
    assert plan.architectures["llama"]["sizes"]["layers"] == 8  # of the whole
    assert (
        "config" not in plan.architectures["llama"]
    )  # or a floor of the whole would stand beside a slice
    assert plan.preset not in PRESETS


@pytest.mark.parametrize(("argv", "says"), [
    (["--slice", "4"], "--slice 4,8: mamba has 8 layers"),
    (["--slice", "2", "--metrics", "small"], "--metrics small"),
    (["--slice", "2", "--profile", "torch"], "--profile torch"),
    (["--preset", "llama-2-7b"], "--preset llama-2-7b: it has no mamba; add --arch llama"),
])  # fmt: skip
def test_what_cannot_be_sliced_is_said(argv, says):
    with pytest.raises(PlanError) as wrong:
        planned(*argv)
    assert str(wrong.value).startswith(says)


@pytest.mark.parametrize("text", ["0", "two", "1,2,3", ",whole"])
def test_bad_slices_are_refused(text, capsys):
    with pytest.raises(SystemExit) as stop:
        make_parser("").parse_args(["--slice", text])
    assert stop.value.code == 2
    assert "--slice" in capsys.readouterr().err


def test_a_large_preset_is_planned_without_its_weights():
    plan = planned("--preset", "llama-2-70b", "--arch", "llama", "--slice", "1")
    assert plan.architectures["llama"]["total"] == 68_976_648_192


def test_labels_tell_slices_apart(tmp_path):
    assert slices.label("tiny", 2) == "tiny@2"
    assert slices.layers_of("tiny@2") == 2
    assert slices.layers_of("tiny") is None
    assert slices.whole_of("tiny+checkpoint@12") == "tiny+checkpoint"
    assert slices.folder(tmp_path, "tiny") == tmp_path
    assert slices.folder(tmp_path, "tiny@2") != slices.folder(tmp_path, "tiny@4")


@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_sizes_of_a_slice_are_those_of_its_model(arch):
    size = lambda layers: (
        lambda model: sizes(model.config, parameter_counts(model))
    )(outline(arch, "paper-50m", layers))  # fmt: skip
    assert slices.sliced_sizes(size(None), 3) == size(3)


def test_models_of_slices_stand_beside_the_whole_one():
    options = {"checkpoint": {}, "preset": "tiny", "vocabulary": 300, "seed": 0}
    models = Models(options, "cpu")
    part = models.of(1)
    assert models.of(None) is models
    assert len(part.get("llama", "fp32").base_model.layers) == 1
    assert len(models.get("llama", "fp32").base_model.layers) == 2
    assert part.weight_bytes("llama", "fp32") < models.weight_bytes("llama", "fp32")


def record(preset, round_, ms, peak, status="ok", reason=""):
    cell = vars(Cell("llama", "torch", preset, 64))
    measured = {
        "time_ms": {"wall": [ms], "device": []},
        "memory_bytes": {"weights": 0, "peak_allocated": peak},
    }
    found = {"cell": cell, "round": round_, "status": status, "reason": reason}
    return found | (measured if status == "ok" else {})


PLAN = SimpleNamespace(architectures={"llama": {"sizes": {"layers": 10}}})


def extrapolated(records):
    return sliced.extrapolate(PLAN, frame(SimpleNamespace(records=records))).to_dict("records")


def test_a_planted_cost_of_a_layer_is_found():
    """Layers of 3 ms and 100 bytes on ends of 5 ms + a round's own offset and 50 bytes."""
    records = []
    for round_, offset in enumerate((0.0, 1.0, 2.0)):
        for depth in (2, 4):
            records.append(record(f"m@{depth}", round_, 5 + offset + 3 * depth, 50 + 100 * depth))
        records.append(record("m", round_, 40.0, 1050))
    (row,) = extrapolated(records)
    assert row["per_layer_ms"] == pytest.approx(3)
    assert row["extrapolated_ms"] == pytest.approx(36)  # 5 + 1 + 30
    assert row["low_ms"] < 36 < row["high_ms"]
    assert row["extrapolated_bytes"] == pytest.approx(1050)
    assert (row["measured_ms"], row["error"]) == (40, pytest.approx(-0.1))
    assert (row["model"], row["slices"], row["layers"], row["rounds"]) == ("m", "2, 4", 10, 3)


def test_the_round_is_paired():
    """The offsets of rounds cancel in the cost of a layer, so it has no spread."""
    records = [record(f"m@{d}", r, 100.0 * r + 3 * d, 0) for r in range(3) for d in (1, 2)]
    records.append(record("m@1", 9, 1e6, 0))  # a round with one slice says nothing
    (row,) = extrapolated(records)
    assert row["per_layer_ms"] == pytest.approx(3)
    assert row["rounds"] == 3
    assert np.isnan(row["measured_ms"])


def test_what_is_missing_has_a_reason():
    records = [record("m@1", 0, 1.0, 0), record("m@2", 0, 0, 0, "oom", "predicted 9 GiB")]
    (row,) = extrapolated(records)
    assert row["reason"] == "predicted 9 GiB"
    assert extrapolated([record("m", 0, 1.0, 0)]) == []


def test_extrapolated_numbers_say_so():
    records = [record(f"m@{d}", r, 3.0 * d, 0) for r in range(2) for d in (1, 2)]
    table = sliced.table(sliced.extrapolate(PLAN, frame(SimpleNamespace(records=records))))
    assert "not measured" in table.title
    assert list(table.columns[8].cells) == ["30"]


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        sliced.main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
