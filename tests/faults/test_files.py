"""Files that are torn, broken, truncated, not writable, or written by two; and clocks that go back."""

import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest

from analysis.report.reading import read
from bench.records import read_run
from tests.faults.sweeping import Run, Sweep, refusal


def test_a_torn_last_line_is_measured_again(run):
    run.finish()
    whole = run.records_file.read_bytes()
    run.records_file.write_bytes(whole[:-40])
    assert len(run.records()) == 7
    run.finish()
    assert run.records_file.read_bytes().startswith(whole[: whole[:-40].rfind(b"\n") + 1])
    assert run.others_ok()


def test_a_broken_line_before_the_last_is_named_and_nothing_is_touched(run):
    run.finish()
    lines = run.records_file.read_bytes().splitlines(True)
    run.records_file.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[3:5]]))
    before = run.records_file.read_bytes()
    status, text = run.sweep().wait()
    assert status == 2
    assert "records.jsonl, line 3: not a record" in refusal(text)
    assert run.records_file.read_bytes() == before
    run.records_file.write_bytes(b"".join([*lines[:2], *lines[3:5]]))  # as the message says
    run.finish()
    assert run.others_ok()


@pytest.mark.parametrize("name", ["plan.json", "machine.json"])
def test_a_truncated_plan_or_machine_is_named(run, name):
    file = run.path / name
    file.write_bytes(file.read_bytes()[:200])
    status, text = run.sweep().wait()
    assert status == 2
    assert f"{file}: not readable" in refusal(text)


@contextmanager
def mounted(folder, *options):
    """A small file system of its own in `folder`; skips where it cannot be had."""
    done = subprocess.run(
        ["mount", *options, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small(run, tmp_path):
    """The run on a file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        yield Run(run.path, folder / "run", tmp_path)


def fill(folder):
    """Take all the room of a file system."""
    with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


def test_a_disk_that_becomes_full_ends_the_sweep_with_whole_records(small):
    small.fault(64, "hang once")
    sweep = small.sweep()
    worker = sweep.worker_in(small, 64)
    before = small.records()
    fill(small.path.parent)
    worker.kill()  # so that the sweep goes on
    status, text = sweep.wait()
    assert status == 1
    last = text.splitlines()[-1]
    assert "No space left on device" in last
    assert last.endswith(f"--out {small.path} --resume")
    assert "Traceback" not in text
    kept = small.records()
    assert kept[: len(before)] == before
    assert small.records_file.read_bytes().endswith(b"}\n")

    status, text = small.sweep().wait()  # nor can it go on as long as nobody makes room
    assert status == 1
    assert "No space left on device" in refusal(text)
    (small.path.parent / "filler").unlink()
    small.finish("--retry", "error")
    assert small.records()[: len(kept)] == kept
    assert {r["status"] for r in read_run(small.path).records} == {"ok"}


def small_files():
    """No file of this process may become larger than 8,000 bytes: what a quota does, without being root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))


def test_a_limit_of_file_sizes_ends_the_sweep_with_whole_records(run):
    run.finish()
    whole = run.records()
    lines = run.records_file.read_bytes().splitlines(True)
    run.records_file.write_bytes(b"".join(lines[:2]))
    status, text = run.sweep(before=small_files).wait()
    assert status == 1
    assert "File too large" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert run.records()[:2] == whole[:2]
    assert run.records_file.read_bytes().endswith(b"}\n")
    run.finish()
    assert run.others_ok()


def test_a_read_only_directory_is_named_and_the_run_resumes_elsewhere(run, tmp_path):
    run.fault(64, "hang once")
    sweep = run.sweep()
    sweep.worker_in(run, 64)
    os.kill(sweep.pid, signal.SIGINT)
    sweep.wait()
    before = run.records_file.read_bytes()
    with mounted(run.path, "--bind", "-o", "ro", str(run.path)):
        status, text = run.sweep().wait()
        assert status == 1
        assert "Read-only file system" in refusal(text)
        status, text = Sweep(tmp_path / "new.txt", "--quick", "--out", run.path / "new").wait()
        assert status == 2
        assert "Read-only file system" in refusal(text)
    assert run.records_file.read_bytes() == before
    run.finish()
    assert run.others_ok()


def clocks_go_back():
    """From now on, the wall clock of this process loses a day with every look at it."""
    import bench.records

    days = iter(range(10_000))
    now = time.time()
    time.time = lambda: now - 86400 * next(days)
    bench.records.now = lambda: f"{2026 - next(days)}-01-01T00:00:00.000+00:00"


def test_a_clock_that_goes_back_changes_neither_order_nor_durations(run):
    run.fault(64, "hang")
    run.fault(32, "kill")
    run.finish("--cell-timeout", "1", before=clocks_go_back)
    assert {s for (n, _), s in run.statuses().items() if n == 64} == {"timeout"}
    stamps = [r["started"] for r in run.records() if r["status"] != "ok"]
    assert stamps == sorted(stamps, reverse=True)
    (run.path / "fault-64").unlink()
    (run.path / "fault-32").unlink()
    run.finish("--retry", "error,timeout")
    assert {r["status"] for r in read_run(run.path).records} == {"ok"}


def test_a_second_sweep_is_refused_while_readers_are_not(run):
    run.fault(64, "hang once")
    sweep = run.sweep()
    sweep.worker_in(run, 64)
    before = run.records()
    status, text = run.sweep().wait()
    assert status == 2
    assert refusal(text).endswith(f"--out {run.path}: another sweep is running in it")
    results, warnings = read(run.path)
    assert len(results.run.records) == len(before)
    assert not warnings
    assert run.records() == before
    os.kill(sweep.pid, signal.SIGINT)
    assert sweep.wait()[0] == 130
    run.finish()
    assert run.others_ok()
