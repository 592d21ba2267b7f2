"""Any arguments of any command: help, work, or one line that says what is wrong, with exit status 2."""

import contextlib
import importlib
import io
import re
import shutil
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.simulate import Simulation
from tests.fuzz.commands import check_command
from tests.fuzz.examples import examples


@dataclass(frozen=True)
class Command:
    """A command line; `work` is what its arguments lead to, `takes` how many positional arguments it has."""

    module: str
    work: tuple = ()
    takes: int = 0
    right: tuple = ()  # values that some option of it accepts
    statuses: tuple = (0, 2)


COMMANDS = [
    Command("bench.sweep", ("bench.sweep.create", "bench.sweep.make_plan", "bench.listing.choices"), right=(
        "cpu", "torch,cpu", "mamba", "tiny", "64", "64,128", "fp32,bf16", "prefill", "eager", "last", "bytes", "paper",
        "0.1", "full", "error,timeout", "mamba=/nowhere")),
    Command("bench.doctor", ("bench.doctor.package_table",)),
    Command("bench.sessions.__main__", ("bench.sessions.__main__.stream",), right=("1", "couple", "bytes", "0")),
    Command("bench.kernels", ("bench.kernels.known_peaks",), right=(
        "causal_conv1d", "forward", "fp32", "quick", "64,128")),
    Command("bench.compare", takes=2, right=("0.9",), statuses=(0, 1, 2)),
    Command("bench.determinism", ("bench.determinism.check",), right=("cpu", "2")),
    Command("analysis.metrics", ("analysis.metrics.compute",), takes=1, right=("full", "hidden,shifts", "2", "0")),
    Command("analysis.report.__main__", ("analysis.report.__main__.build",), takes=1),
    Command("analysis.export", takes=1, right=("csv", "cells", "samples", "metrics")),
    Command("profiles.static", ("profiles.static.all_cases", "profiles.candidates.listed"), right=("sm_90", "scan")),
    Command("profiles.timeline", takes=1, right=("2", "diff", "crossover", ".*")),
    Command("profiles.capture", ("profiles.capture.make_plan", "profiles.capture.capture"), takes=1, right=(
        "torch", "mamba-cpu-tiny-64", "1", "tiny", "64")),
]  # fmt: skip
WRONG = (
    "", " ", "x", "-1", "0", "1.5", "nan", "-inf", "1e999", "9" * 400, ",", "1,,2", "a=b", "=", "[", "(", "\x00",
    "\ud800", "🦓", "%s", "{0}", "--", "-", "/nowhere", "/dev/null", "@file", "[red]",
)  # fmt: skip


@cache
def options(module):
    """The options of a command, as its help names them."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help"])
    assert ended.value.code == 0
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown.getvalue())) - {"--help"})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Paths that people may name: a run, an empty folder, a file that is something else."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no transcript, no run\n")
    Simulation(seqlens=(128, 256, 512), rounds=2, samples=2).write(folder / "run")
    return folder


@st.composite
def arguments(draw, command, names, places):
    """Options of the command in any order, with values that fit some option or none, and positional arguments."""
    paths = [str(places / name) for name in ("run", "empty", "file", "new")]
    value = st.sampled_from((*command.right, *command.right, *WRONG, *paths)) | st.text(max_size=6)
    argv = []
    for name in draw(st.lists(st.sampled_from(names or ["--help"]), max_size=4)):
        argv.append(name)
        if draw(st.integers(0, 9)):
            argv.append(draw(value))
    usual = command.takes if draw(st.integers(0, 5)) else draw(st.integers(0, 3))
    where = st.sampled_from((*paths[:1] * 3, *paths)) | value
    positional = [draw(where) for _ in range(usual)]
    return [*argv, *positional] if draw(st.booleans()) else [*positional, *argv]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.module)
@given(data=st.data())
@examples(60)
def test_any_arguments(command, places, monkeypatch, data):
    main = importlib.import_module(command.module).main
    argv = data.draw(arguments(command, options(command.module), places))
    monkeypatch.chdir(places / "empty")
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    check_command(main, argv, command.statuses, command.work)
    shutil.rmtree(places / "new", ignore_errors=True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.module)
def test_help_is_no_error(command):
    main = importlib.import_module(command.module).main
    assert check_command(main, ["-h"], (0,)) == 0
