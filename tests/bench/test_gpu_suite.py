"""The suite's own logic: stages, resuming and the record; its figures need a GPU."""

import json
import subprocess

import pytest
import torch

from bench import gpu_suite

CPU = torch.device("cpu")
KERNEL_ROW = {
    "operator": "selective_scan", "problem": "b1-l8-d4-n2", "dtype": "fp32", "impl": "torch", "status": "ok",
    "reason": "", "kernel": "torch.chunked", "error_over_bound": 0.5, "samples_ms": [[1.0], [3.0]],
    "flops": 2e9, "bytes": 4e6, "floor_ms": 0.25, "bound": "exponential", "floor_missing": [],
}  # fmt: skip
SWEEP_ROW = {
    "arch": "mamba", "impl": "hf", "dtype": "bf16", "seqlen": 512, "status": "oom", "reason": "out of | memory",
    "ms": None, "memory_bytes": None,
}  # fmt: skip


@pytest.fixture
def stages(monkeypatch):
    """The three stages as functions that only say that they ran."""
    ran = []

    def stage(name, result):
        def run(*args):
            ran.append(name)
            return result

        return run

    monkeypatch.setattr(
        gpu_suite, "run_tests", stage("tests", {"passed": True, "summary": "9 passed"})
    )
    monkeypatch.setattr(gpu_suite, "run_kernels", stage("kernels", [KERNEL_ROW]))
    monkeypatch.setattr(gpu_suite, "run_sweep", stage("sweep", [SWEEP_ROW]))
    return ran


def test_the_record_holds_every_stage(tmp_path, stages, capsys):
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 100, CPU) == 0
    result = json.loads((tmp_path / "suite.json").read_text())
    assert list(result["stages"]) == list(gpu_suite.STAGES)
    assert "revision" in result["machine"]["git"]
    table = (tmp_path / "suite.md").read_text()
    assert "9 passed" in table
    assert (
        "| b1-l8-d4-n2 | fp32 | torch | 2.0000 | 1.0 | 2 | 12.5 % exponential | 0.50 | torch.chunked |"
        in table
    )
    assert "out of / memory" in table
    assert table in capsys.readouterr().out


def test_every_kernel_line_has_the_columns_of_the_head():
    failed = KERNEL_ROW | {"samples_ms": [], "status": "oom", "reason": "out of | memory"}
    lines = list(gpu_suite.kernel_lines([KERNEL_ROW, failed]))
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 4


def test_the_kernels_stage_gets_the_peaks_of_the_record(tmp_path, stages, monkeypatch):
    given = []
    monkeypatch.setattr(gpu_suite, "run_kernels", lambda *args: given.append(args[-1]) or [])
    assert gpu_suite.run_suite(tmp_path, ["kernels"], 100, CPU) == 0
    (peaks,) = given
    assert json.loads((tmp_path / "suite.json").read_text())["machine"]["peaks"] == peaks


def test_a_second_call_runs_only_what_is_missing(tmp_path, stages, monkeypatch):
    def out_of_time(*args):
        raise subprocess.TimeoutExpired("bench.sweep", 1)

    ready = gpu_suite.run_sweep
    monkeypatch.setattr(gpu_suite, "run_sweep", out_of_time)
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 100, CPU) == 1
    assert stages == ["tests", "kernels"]
    monkeypatch.setattr(gpu_suite, "run_sweep", ready)
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 100, CPU) == 0
    assert stages == ["tests", "kernels", "sweep"]


def test_no_stage_starts_without_time(tmp_path, stages):
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 0, CPU) == 1
    assert stages == []
    assert "no time left" in json.loads((tmp_path / "suite.json").read_text())["failed"]["tests"]


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(["--out", str(tmp_path / "suite")])
    assert stop.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "suite").exists()


def test_an_unknown_stage_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path), "--stages", "tests,lunch"])
    assert "lunch" in capsys.readouterr().err
