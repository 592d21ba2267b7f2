"""The profile that a sweep makes of its fastest cells, before its report is built."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench import sweep
from bench.options import make_parser


@pytest.fixture
def started(monkeypatch):
    """Commands that the sweep starts, and the status that they end with."""
    found = SimpleNamespace(commands=[], ended=[], status=0)

    class Process:
        def __init__(self, command):
            found.commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            found.ended.append("waited")

        def wait(self):
            return found.status

        def kill(self):
            found.ended.append("killed")

    monkeypatch.setattr(sweep.subprocess, "Popen", Process)
    return found


def test_the_fastest_cells_are_captured_where_they_are_missing(started, tmp_path):
    with sweep.profiling(tmp_path, "auto") as ended:
        assert started.commands  # it runs beside the body
    assert ended == [0]
    (command,) = started.commands
    assert command[:4] == [sys.executable, "-m", "profiles.capture", str(tmp_path)]
    assert {"--fastest", "--missing", "--quiet"} < set(command)
    assert command[command.index("--profiler") + 1] == "auto"


def test_none_starts_nothing(started, tmp_path):
    with sweep.profiling(tmp_path, "none") as ended:
        pass
    assert ended == [0]
    assert started.commands == []


def test_a_failure_is_a_message_with_the_way_to_see_why(started, tmp_path, capsys):
    started.status = 2
    with sweep.profiling(tmp_path, "nsys") as ended:
        pass
    assert ended == [1]
    said = capsys.readouterr().err
    assert "profiles are missing" in said
    assert f"python -m profiles.capture {tmp_path} --fastest --missing --profiler nsys" in said


def test_an_interrupted_capture_interrupts_the_sweep(started, tmp_path):
    started.status = 130
    with pytest.raises(KeyboardInterrupt), sweep.profiling(tmp_path, "torch"):
        pass


def test_an_interrupted_sweep_ends_its_capture(started, tmp_path):
    with pytest.raises(KeyboardInterrupt), sweep.profiling(tmp_path, "torch"):
        raise KeyboardInterrupt
    assert started.ended == ["killed", "waited"]


def test_a_run_without_tables_still_gets_its_page_and_says_what_is_missing(tmp_path, capsys):
    out = Console(file=io.StringIO())
    assert sweep.conclude(tmp_path, out, "none", "none", "page") == 1
    said = capsys.readouterr().err
    assert "its tables cannot be made" in said
    assert "its report cannot be made" in said
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_page_that_is_not_wanted_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "tabulate", lambda path, out: 0)
    monkeypatch.setattr(sweep, "report", None)
    out = Console(file=io.StringIO())
    assert sweep.conclude(tmp_path, out, "none", "none", "none") == 0
    assert f"run: {tmp_path.name}" in out.file.getvalue().replace(str(tmp_path.parent) + "/", "")


def test_the_option_takes_the_profilers_that_mark_ranges():
    parser = make_parser("")
    assert parser.parse_args([]).profile == "torch"
    assert parser.parse_args(["--profile", "none"]).profile == "none"
    with pytest.raises(SystemExit):
        parser.parse_args(["--profile", "ncu"])
