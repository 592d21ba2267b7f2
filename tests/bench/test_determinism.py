"""The determinism check sees a difference, and names what cannot run."""

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
    monkeypatch.setattr(determinism, "cases", lambda *args: [("noise", lambda: [next(runs)])])
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
