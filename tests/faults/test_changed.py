"""A run that is resumed with other code or other versions than it was begun with."""

import json

import pytest

from bench.resuming import changes, state
from tests.faults.sweeping import refusal

VERSIONS = {"torch": "2.11.0", "numba": "0.60"}
BEFORE = {"cpu": "x", "gpu": None, "python": "3.11.7", "versions": VERSIONS,
          "code": {"kernels": "a", "bench": "b"}, "git": {"revision": "c3a1a6b0051e", "dirty": True}}  # fmt: skip


def tamper(run, change):
    """Make machine.json say that the run was begun in another state."""
    file = run.path / "machine.json"
    machine = json.loads(file.read_text())
    change(machine)
    file.write_text(json.dumps(machine))


def older_torch(machine):
    machine["versions"]["torch"] = "2.11.0"


def other_kernels(machine):
    machine["code"]["kernels"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "says"), [(older_torch, "torch 2.11.0 -> "), (other_kernels, "the code of kernels/")]
)
def test_changed_code_or_versions_are_refused_and_named(run, change, says):
    tamper(run, change)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    status, text = run.sweep().wait()
    assert status == 2
    assert says in refusal(text)
    assert "--resume-anyway" in text
    assert before == {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def test_resuming_anyway_keeps_both_states_and_the_report_says_so(run):
    first = json.loads((run.path / "machine.json").read_text())
    tamper(run, older_torch)
    run.finish("--resume-anyway")
    machine = json.loads((run.path / "machine.json").read_text())
    assert machine["versions"]["torch"] == "2.11.0"
    (resumed,) = machine.pop("resumed")
    assert resumed["versions"] == first["versions"]
    assert resumed["code"] == first["code"]
    (change,) = resumed["changed"]
    assert change.startswith("torch 2.11.0 -> ")
    assert all(r["started"] > resumed["when"] for r in run.records())
    run.finish()  # no change since the last time: nothing to ask, nothing to note
    assert len(json.loads((run.path / "machine.json").read_text())["resumed"]) == 1

    from analysis.report.reading import read

    (warning,) = read(run.path)[1]
    assert warning == f"Records from {resumed['when']} on were measured after a change: {change}."


def now(**other):
    return state(BEFORE | other)


def test_what_changed_is_said_in_a_phrase_each():
    assert changes(state(BEFORE), now()) == []
    assert changes(state(BEFORE), now(git={"revision": "1234567890", "dirty": False})) == []
    newer = now(versions={"torch": "2.13.0", "scipy": "1.17"}, python="3.12.1")
    assert changes(state(BEFORE), newer) == [
        "numba 0.60 -> none", "python 3.11.7 -> 3.12.1", "scipy none -> 1.17", "torch 2.11.0 -> 2.13.0",
    ]  # fmt: skip
    edited = now(code={"kernels": "z", "bench": "b"}, git={"revision": "1234567890", "dirty": True})
    assert changes(state(BEFORE), edited) == ["the code of kernels/ (revision c3a1a6b -> 1234567)"]


def test_a_run_that_never_recorded_its_code_has_changed():
    old = state({name: value for name, value in BEFORE.items() if name != "code"})
    assert changes(old, now()) == ["the code of kernels/, bench/ (revision c3a1a6b -> c3a1a6b)"]


def test_another_driver_is_a_change():
    gpus = [{"name": "H200", "driver": driver} for driver in ("550.1", "560.2")]
    before, here = (state(BEFORE | {"gpu": gpu}) for gpu in gpus)
    assert changes(before, here) == ["driver 550.1 -> 560.2"]
