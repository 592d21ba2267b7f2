import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis import metric_figures
from analysis.metric_panels import COLOURS
from tests.analysis.metric_simulate import MetricSimulation

NAMES = {"metrics_by_layer", "metrics_by_position", "cka", "roc", "context"}
WRITTEN = metric_figures.DPI


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(metric_figures, "DPI", 60)


def drawn(folder, records):
    return {p.stem for p in metric_figures.write(records, folder)}


def test_every_figure_is_drawn(tmp_path):
    simulation = MetricSimulation(
        effects={"velocity": 0.5, "entropy": 0.8, "count": 0.5}, seeds=2, layers=4
    )
    paths = metric_figures.write(simulation.records(), tmp_path)
    assert {p.stem for p in paths} == NAMES
    for path in paths:
        image = matplotlib.image.imread(path)
        assert image.shape[1] >= 600 * metric_figures.DPI / WRITTEN, path
        for arch, colour in COLOURS.items():
            if path.stem != "cka":
                there = np.abs(image[..., :3] - matplotlib.colors.to_rgb(colour)).max(axis=2) < 0.02
                assert there.any(), f"{path}: no {arch}"
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"groups": ("hidden",)}, {"metrics_by_layer", "metrics_by_position"}),
        ({"groups": ("context",), "seeds": 1, "gold": False}, {"context"}),
        ({"groups": ("shifts",), "archs": ("mamba",), "seqlen": 0, "gold": False}, {"roc"}),
        ({"groups": ("similarity",), "archs": ("llama",), "gold": False}, {"cka"}),
        ({"archs": ("mamba",), "seeds": 1, "layers": 2}, NAMES),
        ({"impls": (), "unavailable": {"cuda": "no GPU"}, "gold": False}, set()),
        ({"groups": (), "gold": False}, set()),
    ],
)
def test_partial_records_draw_what_they_can(changed, expected, tmp_path):
    settings = {"seeds": 2, "layers": 3} | changed
    assert drawn(tmp_path, MetricSimulation(**settings).records()) == expected
    assert not plt.get_fignums()


def test_lengths_have_files_of_their_own(tmp_path):
    rows = MetricSimulation(groups=("hidden",), seeds=1, layers=2).records()
    rows += MetricSimulation(groups=("hidden", "shifts"), seeds=1, layers=2, seqlen=1024).records()
    expected = {f"metrics_by_{what}_{n}" for what in ("layer", "position") for n in (512, 1024)}
    assert drawn(tmp_path, rows) == expected | {"roc"}


def test_architectures_of_different_depth(tmp_path):
    rows = MetricSimulation(groups=("hidden",), archs=("llama",), layers=2, seeds=1).records()
    rows += MetricSimulation(groups=("hidden",), archs=("mamba",), layers=12, seeds=1).records()
    assert drawn(tmp_path, rows) == {"metrics_by_layer", "metrics_by_position"}


def test_similarities_that_are_missing(tmp_path):
    rows = MetricSimulation(groups=("similarity",), layers=2, gold=False).records()
    for row in rows:
        row["extra"]["cka"]["values"][0] = ["nan"] * 4
        row["extra"]["cka"]["null"] = [["nan"] * 4] * 4
    assert drawn(tmp_path, rows) == {"cka"}
