"""Any plan.json, machine.json, records.jsonl and metrics.jsonl: named errors or warnings, whoever reads them."""

import json
import shutil
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import export, metric_load, metrics
from analysis.report import __main__ as report
from analysis.report import page
from bench import compare, sweep
from bench.plan import PlanError, read_plan
from bench.records import RecordError, read_run
from tests.analysis.metric_simulate import MetricSimulation
from tests.analysis.simulate import Simulation
from tests.fuzz.commands import check_command
from tests.fuzz.examples import check_one_line, examples
from tests.fuzz.mutate import altered, as_bytes, damaged

NAMES = ("plan.json", "machine.json", "records.jsonl", "metrics.jsonl")


class Files(dict):
    """{file: its bytes}; Hypothesis prints the arguments of what fails, and its warning of a long one is an error."""

    def __repr__(self):
        return f"the files {', '.join(self)}"


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """The files of a small run."""
    folder = tmp_path_factory.mktemp("run")
    Simulation(seqlens=(128, 256, 512), rounds=2, samples=3).write(folder)
    MetricSimulation(groups=("hidden", "shifts"), seeds=2, layers=2).write(folder / "metrics.jsonl")
    return Files({name: (folder / name).read_bytes() for name in NAMES})


@pytest.fixture(scope="module")
def begun(right, tmp_path_factory):
    """The files of a run that bench.sweep planned, with records and metrics."""
    run = tmp_path_factory.mktemp("begun") / "run"
    argv = [
        "--quick",
        "--impl",
        "torch",
        "--metrics",
        "none",
        "--profile",
        "none",
        "--out",
        str(run),
    ]
    check_command(sweep.main, argv, (0,), work=("bench.sweep.estimate",))
    made = {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*") if f.is_file()}
    return Files(right | made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("changed")


@st.composite
def changed(draw, files):
    """(name, bytes) of one file that is changed: its bytes, or a value in its JSON."""
    name = draw(st.sampled_from(sorted(files)))
    if not name.endswith((".json", ".jsonl")) or draw(st.booleans()):
        return name, draw(damaged(files[name]))
    if name.endswith(".json"):
        return name, as_bytes(draw(altered(json.loads(files[name]))))
    lines = files[name].splitlines()
    at = draw(st.integers(0, min(len(lines) - 1, 5)))
    lines[at] = as_bytes(draw(altered(json.loads(lines[at]))))
    return name, b"\n".join(lines) + b"\n"


def write(folder, files, name, content):
    """A run directory with one file changed, and nothing in it from before."""
    shutil.rmtree(folder, ignore_errors=True)
    for each, right_content in files.items():
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(content if each == name else right_content)
    return folder


READERS = {
    "run": (read_run, RecordError),
    "plan": (lambda run: read_plan(run / "plan.json"), PlanError),
    "metrics": (lambda run: metric_load.read(run / metric_load.NAME), RecordError),
    "metrics, broken lines left out": (
        lambda run: metric_load.read(run / metric_load.NAME, []),
        RecordError,
    ),
    "run, broken lines left out": (lambda run: read_run(run, []), RecordError),
}


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
@examples(60)
def test_readers(reader, right, folder, data):
    read, refusal = READERS[reader]
    run = write(folder / "run", right, *data.draw(changed(right)))
    said = None
    try:
        read(run)
    except refusal as error:
        said = str(error)
    if said is not None:
        check_one_line(said)
        assert str(run) in said


@given(data=st.data(), what=st.sampled_from(export.WHAT))
@examples(40)
def test_export(right, folder, data, what):
    run = write(folder / "run", right, *data.draw(changed(right)))
    check_command(export.main, [str(run), "--format", "csv", "--what", what], (0, 2))


@given(data=st.data())
@examples(40)
def test_metrics(begun, folder, data):
    """Up to the first forward."""
    run = write(folder / "run", begun, *data.draw(changed(begun)))
    check_command(metrics.main, [str(run), "--quiet"], (0, 2), work=("analysis.metrics.Metrics",))


@given(data=st.data())
@examples(25)
def test_resume(begun, folder, data):
    run = write(folder / "run", begun, *data.draw(changed(begun)))
    argv = ["--resume", "--resume-anyway", "--dry-run", "--out", str(run)]
    check_command(sweep.main, argv, (0, 2), work=("bench.listing.calibrated",))


@given(data=st.data())
@examples(25)
def test_compare(right, folder, data):
    other = write(folder / "other", right, "", b"")
    run = write(folder / "run", right, *data.draw(changed(right)))
    runs = data.draw(st.permutations([str(run), str(other)]))
    check_command(compare.main, runs, (0, 1, 2))


@given(data=st.data())
@examples(3)
def test_report(right, folder, data):
    run = write(folder / "run", right, *data.draw(changed(right)))
    # a picture takes seconds, and none is made of what is broken
    blank = mock.patch.object(
        page, "_draw", lambda figures, folder: dict.fromkeys((f.id for f in figures), "")
    )
    with blank:
        status = check_command(report.main, [str(run)], (0, 2))
    if status == 0:
        assert "Traceback" not in (run / "report.html").read_text(encoding="utf-8")
