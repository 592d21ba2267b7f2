import pytest

from analysis.summary import Results
from bench.records import read_run
from tests.analysis.simulate import Simulation


@pytest.fixture
def results(tmp_path):
    """Write a `Simulation` to disk and read it back: (simulation) -> Results."""

    def read(simulation=None):
        return Results(read_run((simulation or Simulation()).write(tmp_path / "run")))

    return read
