"""The determinism check sees a difference, and names what cannot run."""

import json

import pytest
import torch

from bench import determinism

CPU = torch.device("cpu")


def test_the_portable_implementation_repeats_itself():
    rows = determinism.check("torch", CPU, 2, progress=False)
    assert len(rows) == 11
    assert {row["different"] for row in rows} == {0}


def test_a_run_that_differs_is_counted(monkeypatch):
    runs = iter(torch.tensor([1.0, 1.0, 2.0, 1.0]))
    monkeypatch.setattr(
        determinism, "cases", lambda *args: [("causal_conv1d", lambda: [next(runs)])]
    )
    (row,) = determinism.check("torch", CPU, 3, progress=False)
    assert row["different"] == 1


def test_what_cannot_run_has_a_reason(capsys):
    rows = determinism.check("cuda", CPU, 1, progress=False)
    assert {row["different"] for row in rows} == {None}
    assert all("unavailable" in row["reason"] for row in rows)


def test_bad_repetitions_are_named(capsys):
    with pytest.raises(SystemExit) as stop:
        determinism.main(["--repetitions", "0"])
    assert stop.value.code == 2
    assert "--repetitions takes a positive number, got 0" in capsys.readouterr().err


def test_operators_and_time_are_limited_and_rows_are_kept(tmp_path, capsys):
    file = tmp_path / "rows.json"
    command = [
        "--impl",
        "torch",
        "--operator",
        "causal_conv1d,causal_conv1d_update",
        "--repetitions",
        "100000",
    ]
    assert (
        determinism.main([*command, "--size", "small", "--seconds", "0.3", "--json", str(file)])
        == 0
    )
    rows = json.loads(file.read_text())
    assert [row["operator"] for row in rows] == [
        "causal_conv1d", "causal_conv1d backward", "causal_conv1d_update",
    ]  # fmt: skip
    assert all(0 < row["repetitions"] < 100_000 for row in rows)
    assert "causal_conv1d_update" in capsys.readouterr().out
