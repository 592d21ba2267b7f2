"""Workers that hang, lose their device, and eat the memory of the machine."""

import os
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

MIB = 1 << 20


def test_a_hung_worker_is_a_timeout_and_the_others_go_on(run):
    run.fault(64, "hang")
    run.finish("--cell-timeout", "1")
    assert run.others_ok((64, 0), (64, 1))
    late = [r for r in run.records() if r["status"] == "timeout"]
    assert {r["reason"] for r in late} == {"the cell took longer than 1 s (--cell-timeout)"}


def test_a_device_whose_error_sticks_gets_a_fresh_process(run):
    run.fault(64, "vanish once")
    run.finish()
    ((_, round_),) = [pair for pair, status in run.statuses().items() if status != "ok"]
    assert run.others_ok((64, round_))
    (lost,) = [r for r in run.records() if r["status"] == "error"]
    assert lost["reason"] == "the worker process ended with status 3 during this cell"
    assert "CUDA error: an illegal memory access" in (run.path / "log.txt").read_text()


def test_a_device_that_is_gone_ends_the_sweep_and_not_the_run(run):
    run.fault(64, "vanish once")
    run.finish("--rounds", "2")
    kept = run.records()
    run.records_file.write_bytes(b"".join(run.records_file.read_bytes().splitlines(True)[:3]))
    run.fault("start", "")
    status, text = run.sweep().wait()
    assert status == 1
    assert text.splitlines()[-1].startswith("error: ")
    assert "log.txt" in text
    assert "Traceback" not in text
    assert run.records() == kept[:3]
    (run.path / "fault-start").unlink()
    run.finish()
    assert run.records()[:3] == kept[:3]
    assert len(run.statuses()) == 8


@contextmanager
def memory_group(limit):
    """The file of a control group that takes processes, which get `limit` bytes together; skips where there is none."""
    root = Path("/sys/fs/cgroup")
    new = (root / "cgroup.controllers").exists()
    group = root / ("" if new else "memory") / f"crossover-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if new else "memory.limit_in_bytes")).write_text(str(limit))
        swap = group / ("memory.swap.max" if new else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if new else str(limit))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"control groups of memory cannot be made here: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def test_when_memory_runs_out_the_kernel_takes_the_worker_and_not_the_parent(run):
    run.fault(64, "hang once")
    sweep = run.sweep()
    worker = sweep.worker_in(run, 64)
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"
    held = psutil.Process(sweep.pid).memory_info().rss
    with memory_group(held + 512 * MIB) as processes:
        processes.write_text(str(sweep.pid))
        run.fault(64, "eat once")
        worker.kill()
        status, text = sweep.wait()
        assert status == 0, text
    reasons = [r["reason"] for r in run.records() if r["status"] == "error"]
    assert reasons == ["the worker process died (signal 9) during this cell"] * 2
    assert run.others_ok((64, 0), (64, 1))
