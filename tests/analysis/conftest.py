import matplotlib.pyplot as plt
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


@pytest.fixture(autouse=True)
def no_open_figures():
    """What a test draws to look at is closed, so that others can ask what the code left open."""
    yield
    plt.close("all")
