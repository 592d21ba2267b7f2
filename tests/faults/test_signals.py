"""Processes that are killed, interrupted and asked to end."""

import os
import signal

import pytest

from tests.faults.sweeping import began


def test_a_killed_parent_takes_its_worker_along_and_the_run_resumes(run):
    run.fault(64, "hang once")
    sweep = run.sweep()
    worker = sweep.worker_in(run, 64)
    before = run.records()
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    worker.wait(timeout=20)
    assert run.records() == before
    run.finish()
    assert run.records()[: len(before)] == before
    assert run.others_ok()


def test_a_killed_worker_costs_the_cell_that_it_was_in(run):
    run.fault(64, "kill once")
    run.finish()
    ((seqlen, round_),) = [pair for pair, status in run.statuses().items() if status != "ok"]
    assert run.others_ok((64, round_))
    (dead,) = [r for r in run.records() if r["status"] == "error"]
    assert dead["reason"] == "the worker process died (signal 9) during this cell"
    assert seqlen == 64
    run.finish("--retry", "error")
    assert run.records()[-1]["status"] == "ok"


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 5], ids=str
)
def test_an_interrupt_leaves_records_and_no_orphan(run, signals):
    run.fault(64, "hang once")
    sweep = run.sweep()
    worker = sweep.worker_in(run, 64)
    for number in signals:
        os.kill(sweep.pid, number)
    status, text = sweep.wait()
    assert status == 130
    assert not worker.is_running()
    lines = text.splitlines()
    assert "Traceback" not in text
    assert lines[-1].startswith("interrupted with ")
    assert lines[-1].endswith(f"--out {run.path} --resume")
    before = run.records()
    run.finish()
    assert run.records()[: len(before)] == before
    assert run.others_ok()
    assert len(began(run.path)) == 8 + 1  # the cell that was interrupted, twice
