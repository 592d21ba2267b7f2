import pytest

from tests.faults.sweeping import PLAN, Run, Sweep


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A run directory as it is after planning, without records."""
    folder = tmp_path_factory.mktemp("prepared")
    path = folder / "run"
    status, text = Sweep(folder / "out.txt", *PLAN, "--out", path).wait()
    assert status == 0, text
    (path / "records.jsonl").unlink()
    (path / "began").unlink()
    return path


@pytest.fixture
def run(prepared, tmp_path):
    """A copy of that run, to be finished under trouble."""
    return Run(prepared, tmp_path / "run", tmp_path)
