"""The parent's side with workers that die, hang and never start; they speak the protocol and import no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.engines.node import environment
from bench.memory import write_peaks
from bench.plan import Cell, round_order
from bench.records import NAME
from bench.runner import RunnerError
from tests.bench.fakes import Bench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(*args, **kwargs):
        made.append(Bench(tmp_path, *args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def statuses(records):
    return {record["cell"]["seqlen"]: record["status"] for record in records}


def test_a_round_runs_every_cell_once_in_its_own_order(bench):
    b = bench([1, 2, 3, 4, 5, 6, 7, 8])
    for round_ in (0, 1):
        records = [r for r in b.round(round_) if r["round"] == round_]
        want = [cell.seqlen for cell in round_order(b.cells, 0, round_)]
        assert [r["cell"]["seqlen"] for r in records] == want
        assert [r["order"] for r in records] == list(range(8))
    assert all(seconds is not None for seconds in b.watcher.seconds)


def test_a_dead_worker_costs_one_cell(bench):
    b = bench([1, 2, 666, 3, 4])
    records = b.round()
    assert statuses(records) == {1: "ok", 2: "ok", 666: "error", 3: "ok", 4: "ok"}
    (dead,) = [r for r in records if r["status"] == "error"]
    assert dead["reason"] == "the worker process died (signal 9) during this cell"
    assert dead["order"] == round_order(b.cells, 0, 0).index(Cell("mamba", "hf", "tiny", 666))
    assert len(b.ran()) == 5


def test_a_hanging_cell_is_a_timeout_and_the_rest_goes_on(bench):
    b = bench([1, 777, 2], timeout=1.0)
    records = b.round()
    assert statuses(records) == {1: "ok", 2: "ok", 777: "timeout"}
    (late,) = [r for r in records if r["status"] == "timeout"]
    assert late["reason"] == "the cell took longer than 1 s (--cell-timeout)"


def test_dying_once_in_a_warm_up_costs_nothing(bench, tmp_path):
    b = bench([1, 2])
    (tmp_path / "once-warm").touch()
    assert statuses(b.round()) == {1: "ok", 2: "ok"}


def test_dying_always_in_a_warm_up_costs_that_implementation(bench):
    b = bench([1, 667], impls=["hf", "torch"])
    b.cells = [c for c in b.cells if (c.impl, c.seqlen) != ("torch", 667)]
    records = b.round()
    found = {(r["cell"]["impl"], r["cell"]["seqlen"]): r["status"] for r in records}
    assert found == {("hf", 1): "error", ("hf", 667): "error", ("torch", 1): "ok"}
    assert "died (signal 9) while warming up mamba hf fp32 prefill" in records[0]["reason"]


def test_a_worker_that_never_starts_ends_the_run_with_one_line(bench, tmp_path):
    b = bench([1])
    (tmp_path / "never-start").touch()
    with pytest.raises(RunnerError, match=r"ended with status 1.*log\.txt") as error:
        b.round()
    assert "\n" not in str(error.value)
    assert b.records() == []


def test_a_worker_that_fails_to_start_once_is_forgiven(bench, tmp_path):
    b = bench([1])
    (tmp_path / "once-start").touch()
    assert statuses(b.round()) == {1: "ok"}


def test_a_reference_that_kills_its_process_is_skipped(bench, tmp_path):
    b = bench([1])
    (tmp_path / "no-reference-mamba").touch()
    b.runner.prepare(b.cells, [], [])
    assert b.prepared() == [[["reference", "mamba", "fp32"]], []]


def test_proofs_run_after_the_references_through_the_interpreter(bench, tmp_path):
    b = bench([1, 2])
    b.runner.prepare(b.cells, [], b.cells[:1])
    assert [(r["round"], r["status"]) for r in b.records()] == [(0, "ok")]
    assert b.prepared() == [[], []]
    assert b.environment("prepare") == "1"
    b.round()
    assert b.environment("round") is None


def test_what_was_prepared_is_not_prepared_again(bench, tmp_path):
    b = bench([1, 2, 3])
    (tmp_path / "references").mkdir()
    (tmp_path / "references" / "mamba-fp32.safetensors").touch()
    b.runner.prepare(b.cells, [], [])
    assert not (tmp_path / "prepared").exists()
    write_peaks(tmp_path, {b.cells[1].id: 5})
    b.runner.prepare(b.cells, b.cells, [])
    assert b.prepared() == [[], [0, 2]]


def test_what_is_done_is_not_run_again(bench, tmp_path):
    b = bench([1, 2, 3])
    (tmp_path / "once-start").touch()
    b.round()
    b.round()
    assert len(b.records()) == len(b.ran()) == 3
    with (tmp_path / NAME).open("ab") as file:
        file.truncate(0)
    b.round()
    assert len(b.ran()) == 6


def test_what_turns_out_to_be_unavailable_is_not_tried_in_later_rounds(bench):
    b = bench([1, 999])
    b.round(0)
    records = b.round(1)
    found = [(r["cell"]["seqlen"], r["round"], r["status"]) for r in records]
    assert sorted(found) == [(1, 0, "ok"), (1, 1, "ok"), (999, 0, "unavailable")]


def test_what_workers_print_goes_to_the_log(bench):
    b = bench([888])
    b.round()
    assert "a warning of some library" in b.log()
    assert "round 0: process" in b.log()


def test_the_worker_is_told_threads_and_no_interpreter(bench, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    b = bench([1])
    env = environment(b.runner.settings())
    assert env["NUMBA_NUM_THREADS"] == "1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "TRITON_INTERPRET" not in env
    assert environment(b.runner.settings(TRITON_INTERPRET="1"))["TRITON_INTERPRET"] == "1"


def test_a_worker_ends_with_its_parent_in_the_middle_of_anything():
    code = (
        "import os, time; from bench.worker import follow_parent\n"
        "follow_parent(os.fdopen(0, 'rb', buffering=0)); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=20) == 1
