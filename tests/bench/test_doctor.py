import importlib.metadata
import json

import pytest

from bench import doctor, profilers
from kernels import tuning


def test_it_names_every_implementation_and_ends_well(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in ("triton", "cuda", "torch", "cpu", "hf"):
        assert name in out
    assert "The lab can run here" in out


def test_what_is_piped_has_no_escape_codes(capsys):
    doctor.main([])
    assert "\x1b" not in capsys.readouterr().out


def test_hugging_faces_kernels_is_one_clear_problem(monkeypatch, capsys):
    real = importlib.metadata.distribution

    class Distribution:
        version = "0.17.2"

    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: Distribution() if name == "kernels" else real(name),
    )
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "pip uninstall kernels" in out
    assert "The lab can run here" not in out


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, capsys):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "numba" else real(name))
    assert doctor.main([]) == 1
    assert "numba is not installed: make venv" in capsys.readouterr().out


def test_it_says_which_configurations_a_gpu_uses(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "kernels" / "configurations")
    assert doctor.configurations(None) == "static defaults, as there is no GPU"
    assert "nobody measured this GPU; python -m bench.tune" in doctor.configurations("Toy 1")
    tuning.FOLDER.mkdir(parents=True)
    entries = [{"configuration": {}}, {"configuration": {"BLOCK": 1}}]
    table = {"date": "2031-02-03T04:05:06+00:00", "entries": entries}
    (tuning.FOLDER / "toy-1.json").write_text(json.dumps(table))
    assert doctor.configurations("Toy 1") == (
        "kernels/configurations/toy-1.json: 2 measured, 1 of them better than the default, 2031-02-03"
    )
    (tuning.FOLDER / "toy-1.json").write_text("{")
    assert "is no JSON" in doctor.configurations("Toy 1")
    doctor.main([])
    assert "configurations" in capsys.readouterr().out


def profiler_cells():
    return [cell for column in doctor.profiler_table().columns for cell in column.cells]


def nsight(monkeypatch, version, nvtx):
    """There is an nsys of this version and an nvtx of that one, and no GPU."""

    class Done:
        stdout, stderr = version, ""

    monkeypatch.setattr(profilers.shutil, "which", {"nsys": "/usr/bin/nsys"}.get)
    monkeypatch.setattr(profilers.subprocess, "run", lambda *args, **kwargs: Done())
    real = profilers.version_of
    monkeypatch.setattr(
        profilers, "version_of", lambda name: nvtx if name == "nvtx" else real(name)
    )
    monkeypatch.setattr(profilers, "_has_gpu", lambda: False)


OLD = "NVIDIA Nsight Systems version 2022.4.2.18-32044700v0"
NEW = "NVIDIA Nsight Systems version 2025.1.1.131-251135540420v0"


def test_an_old_nsight_with_a_new_nvtx_is_told(monkeypatch):
    nsight(monkeypatch, OLD, "0.2.17")
    assert any("nvtx==0.2.10" in cell for cell in profiler_cells())


@pytest.mark.parametrize(("version", "nvtx"), [(OLD, "0.2.11"), (NEW, "0.2.17")])
def test_an_nsight_that_records_is_said_to(monkeypatch, version, nvtx):
    nsight(monkeypatch, version, nvtx)
    assert profilers.nsys().reason == ""
    assert bool(profilers.nsys().note) == (version == OLD)  # its importer is not found


def test_every_profiler_has_a_row_with_what_helps(monkeypatch):
    nsight(monkeypatch, OLD, "0.2.10")
    monkeypatch.setattr(profilers.shutil, "which", lambda name: None)
    cells = profiler_cells()
    for name in ("nsys", "torch", "ncu", "proton"):
        assert name in cells
    assert any("apt-get install nsight-systems" in cell and "--profiler torch" in cell for cell in cells)  # fmt: skip
    assert any("ncu is not on the PATH" in cell for cell in cells)
    assert any("GPU kernels only" in cell for cell in cells)


def test_an_nsys_that_does_not_answer_is_no_profiler(monkeypatch):
    nsight(monkeypatch, "cannot execute", "0.2.10")
    assert "cannot execute" in profilers.nsys().reason


def test_help_and_unknown_options(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--nonsense"])
    assert stop.value.code == 2
