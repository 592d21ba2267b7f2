"""The profile that a sweep makes of its fastest cells, before its report is built."""

import sys
from types import SimpleNamespace

import pytest

from bench import sweep
from bench.options import make_parser


@pytest.fixture
def started(monkeypatch):
    """Commands that the sweep starts, and the status that they end with."""
    found = SimpleNamespace(commands=[], status=0)

    def run(command, check):
        found.commands.append(command)
        return SimpleNamespace(returncode=found.status)

    monkeypatch.setattr(sweep.subprocess, "run", run)
    return found


def test_the_fastest_cells_are_captured_where_they_are_missing(started, tmp_path):
    assert sweep.profile(tmp_path, "auto") == 0
    (command,) = started.commands
    assert command[:4] == [sys.executable, "-m", "profiles.capture", str(tmp_path)]
    assert {"--fastest", "--missing", "--quiet"} < set(command)
    assert command[command.index("--profiler") + 1] == "auto"


def test_none_starts_nothing(started, tmp_path):
    assert sweep.profile(tmp_path, "none") == 0
    assert started.commands == []


def test_a_failure_is_a_message_with_the_way_to_see_why(started, tmp_path, capsys):
    started.status = 2
    assert sweep.profile(tmp_path, "nsys") == 1
    said = capsys.readouterr().err
    assert "profiles are missing" in said
    assert f"python -m profiles.capture {tmp_path} --fastest --missing --profiler nsys" in said


def test_an_interrupted_capture_interrupts_the_sweep(started, tmp_path):
    started.status = 130
    with pytest.raises(KeyboardInterrupt):
        sweep.profile(tmp_path, "torch")


def test_the_option_takes_the_profilers_that_mark_ranges():
    parser = make_parser("")
    assert parser.parse_args([]).profile == "torch"
    assert parser.parse_args(["--profile", "none"]).profile == "none"
    with pytest.raises(SystemExit):
        parser.parse_args(["--profile", "ncu"])
