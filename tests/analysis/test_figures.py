import matplotlib.image
import numpy as np
import pytest

from analysis import figures
from analysis.figure_labels import apart
from tests.analysis.simulate import Simulation

NAMES = {f"{kind}{measure}" for kind in ("", "ratio_", "slopes_") for measure in ("time", "memory")}


def test_every_figure_is_drawn(results, tmp_path):
    found = results(Simulation(out_of_memory={("llama", "hf"): 1448}))
    paths = figures.write(found, tmp_path / "figures")
    assert {p.stem for p in paths} == NAMES
    for path in paths:
        image = matplotlib.image.imread(path)
        assert image.shape[1] >= 600, path
        assert len(np.unique(image[..., :3].sum(axis=2).round(3))) > 20, f"{path} is blank"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rounds": 1}, NAMES),
        ({"seqlens": (128,)}, NAMES - {"slopes_time", "slopes_memory"}),
        ({"costs": {("mamba", "cpu"): (8.0, 0.12, 0.0)}}, NAMES - {"ratio_time", "ratio_memory"}),
        ({"rounds": 0}, set()),
        ({"out_of_memory": dict.fromkeys(Simulation().costs, 128)}, set()),
    ],
)
def test_partial_runs_draw_what_they_can(changed, expected, results, tmp_path):
    paths = figures.write(results(Simulation(**changed)), tmp_path / "figures")
    assert {p.stem for p in paths} == expected


def test_labels_at_line_ends_do_not_touch():
    heights = apart([0.10, 0.11, 0.12, 0.50, 0.90], 0.05)
    assert np.diff(heights).min() >= 0.05 - 1e-12
    assert heights[3:] == [0.50, 0.90]
    assert np.mean(heights[:3]) == pytest.approx(0.11)


def test_two_settings_have_files_of_their_own(results, tmp_path):
    found = results(Simulation(seqlens=(128, 256), costs={("mamba", "cpu"): (8.0, 0.12, 0.0)}))
    for record in list(found.run.records):
        found.run.records.append({**record, "cell": {**record["cell"], "dtype": "bf16"}})
    names = {p.stem for p in figures.write(found, tmp_path / "figures")}
    assert {"time_fp32", "time_bf16"} <= names


def test_axes_say_what_is_timed(results, tmp_path):
    costs = {("mamba", "cpu"): (8.0, 0.12, 0.0)}
    found = results(Simulation(seqlens=(128, 256), costs=costs, modes=("decode", "train")))
    assert {p.stem for p in figures.write(found, tmp_path)} >= {"time_decode", "time_train"}
    labels = {}
    for setting in {key[0] for key in found.curves["time"]}:
        curves = {
            key[1:]: curve for key, curve in found.curves["time"].items() if key[0] == setting
        }
        axes = figures.curves(curves, "time", setting).axes[0]
        labels[setting.mode] = axes.get_ylabel(), axes.get_xlabel()
    assert labels["decode"] == ("time of a token, ms", "context L, tokens")
    assert labels["train"] == ("time of forward + backward, ms", "tokens")
