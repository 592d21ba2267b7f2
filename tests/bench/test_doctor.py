import importlib.metadata

import pytest

from bench import doctor


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


def test_an_old_nsight_with_a_new_nvtx_is_told(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nsys")
    monkeypatch.setattr(doctor, "version_of", lambda name: "0.2.17")

    class Done:
        stdout = "NVIDIA Nsight Systems version 2022.4.2.18"

    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **kwargs: Done())
    cells = [cell for column in doctor.profiler_table().columns for cell in column.cells]
    assert any("nvtx==0.2.10" in cell for cell in cells)


def test_help_and_unknown_options(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--nonsense"])
    assert stop.value.code == 2
