"""The measurement of what ranges cost while nothing is attached."""

import json
import random

import pytest

import bench.measure
from kernels.causal_attention import op as attention
from profiles import overhead, ranges


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The record of two architectures under one implementation, at 16 tokens."""
    out = tmp_path_factory.mktemp("overhead")
    plan, tokens = overhead.planned("tiny", "16")
    setting = overhead.Setting(plan, tokens.ids)
    cells = [
        cell for cell in plan.cells if cell.impl == "torch" and cell.arch in ("mamba", "llama")
    ]
    with ranges.record_with(None):
        ns = overhead.call_ns()
        rows = [overhead.measure(setting, cell, ns, 0.01, random.Random(0)) for cell in cells]
    overhead.write(out, ns, rows, overhead.describe(setting.device, peaks=False))
    return out, ns, {row["cell"]["arch"]: row for row in rows}


def test_every_operator_of_a_forward_is_counted(measured):
    _, ns, rows = measured
    assert rows["mamba"]["ranges"] == 2 * 2  # two layers with a convolution and a scan
    assert rows["llama"]["ranges"] == 2
    for row in rows.values():
        assert row["share"] == pytest.approx(row["ranges"] * ns * 1e-6 / row["ms"])


def test_pairs_have_an_interval_and_a_verdict(measured):
    for row in measured[2].values():
        assert row["pairs"] == len(row["samples_s"]["with"]) == len(row["samples_s"]["without"])
        assert row["pairs"] >= overhead.LEAST_PAIRS
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["verdict"] in ("faster", "slower", "equivalent", "undecided")


def test_the_record_is_for_machines_and_for_people(measured):
    out, ns, rows = measured
    data = json.loads((out / "overhead.json").read_text())
    assert data["annotate_ns"] == ns
    assert len(data["rows"]) == len(rows)
    text = (out / "overhead.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| llama | torch | 16 |" in text
    assert f"takes {ns:.0f} ns" in text


def test_every_user_of_annotate_is_replaced_and_restored():
    with overhead.replaced(overhead.bare):
        assert attention.annotate is overhead.bare
        assert bench.measure.annotate is overhead.bare
        assert ranges.annotate is not overhead.bare
    assert attention.annotate is ranges.annotate
    assert bench.measure.annotate is ranges.annotate


def test_bad_input_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        overhead.main(["--preset", "huge"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "huge" in said
    assert said.count("\n") == 1
