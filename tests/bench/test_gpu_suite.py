"""The suite's own logic: stages, resuming and the record; its figures need a GPU."""

import json
import subprocess

import pytest
import torch

from bench import gpu_suite, profilers, suite_record

CPU = torch.device("cpu")
KERNEL_ROW = {
    "operator": "selective_scan", "mode": "forward", "problem": "b1-l8-d4-n2", "dtype": "fp32", "impl": "torch",
    "status": "ok", "reason": "", "kernel": "torch.chunked", "error_over_bound": 0.5, "samples_ms": [[1.0], [3.0]],
    "flops": 2e9, "bytes": 4e6, "floor_ms": 0.25, "bound": "exponential", "floor_missing": [],
}  # fmt: skip
SWEEP_ROW = {
    "arch": "mamba", "impl": "hf", "dtype": "bf16", "mode": "decode", "seqlen": 512, "status": "oom",
    "reason": "out of | memory", "ms": None, "memory_bytes": None,
}  # fmt: skip


DETERMINISM_ROW = {
    "operator": "causal_conv1d", "dtype": "float32", "repetitions": 7, "different": None, "reason": "no | reason",
}  # fmt: skip


PROFILE_ROW = {
    "arch": "mamba", "impl": "triton", "profiler": "torch", "status": "ok", "reason": "", "launches": 300.0,
    "busy_ms": 4.5, "gap_ms": 0.25, "operators": 0.5, "launch_bound": "true",
}  # fmt: skip


@pytest.fixture
def stages(monkeypatch):
    """The stages as functions that only say that they ran."""
    ran = []

    def stage(name):
        kind = name.split("-")[0]
        results = {"kernels": [KERNEL_ROW], "sweep": [SWEEP_ROW], "determinism": [DETERMINISM_ROW]}
        results["profiles"] = [PROFILE_ROW]
        result = results.get(kind, {"passed": True, "summary": "9 passed"})
        return lambda left: ran.append(name) or result

    todo = {name: stage(name) for name in gpu_suite.STAGES}
    monkeypatch.setattr(gpu_suite, "work", lambda out, device, peaks: todo)
    return ran, todo


def test_every_stage_has_its_work(tmp_path):
    assert tuple(gpu_suite.work(tmp_path, CPU, {})) == gpu_suite.STAGES


def test_the_record_holds_every_stage(tmp_path, stages, capsys):
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 100, CPU) == 0
    assert tuple(stages[0]) == gpu_suite.STAGES
    result = json.loads((tmp_path / "suite.json").read_text())
    assert tuple(result["stages"]) == gpu_suite.STAGES
    assert "revision" in result["machine"]["git"]
    table = (tmp_path / "suite.md").read_text()
    assert "9 passed" in table
    assert "| b1-l8-d4-n2 | fp32 | torch | 2 | 1 | 2 | 12.5 % exponential | 1 | 0.50 |" in table
    assert "| mamba | hf | bf16 | decode | 512 |  |  |  | oom: out of / memory |" in table
    assert "| causal_conv1d | float32 | 7 | unavailable, because no / reason |" in table
    assert "| mamba | triton | torch | 300 | 4.500 | 0.250 | 50.0% | true | ok |" in table
    assert table in capsys.readouterr().out


def test_every_line_has_the_columns_of_its_head():
    ok = SWEEP_ROW | {"ms": 1.5, "memory_bytes": {"peak_allocated": 2**21, "cache": 2**20}}
    lines = list(suite_record.sweep_lines([SWEEP_ROW, ok | {"status": "ok", "reason": ""}]))
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].endswith("| 1.500 | 2.0 | 1.0 | ok |")
    lines = list(
        suite_record.determinism_lines([DETERMINISM_ROW, DETERMINISM_ROW | {"different": 0}])
    )
    assert len({line.count("|") for line in lines}) == 1


def test_a_second_call_runs_only_what_is_missing(tmp_path, stages):
    def out_of_time(left):
        raise subprocess.TimeoutExpired("bench.sweep", 1)

    ran, todo = stages
    ready, todo["sweep-train"] = todo["sweep-train"], out_of_time
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 100, CPU) == 1
    assert "sweep-train: not measured, because" in (tmp_path / "suite.md").read_text()
    others = [name for name in gpu_suite.STAGES if name != "sweep-train"]
    assert ran == others
    todo["sweep-train"] = ready
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 100, CPU) == 0
    assert ran == [*others, "sweep-train"]


def test_without_a_sanitizer_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "SANITIZERS", ("no-such-sanitizer",))
    found = gpu_suite.run_sanitizer(tmp_path, 10)
    assert found == {
        "passed": None,
        "summary": "unavailable, because compute-sanitizer is not installed",
    }


def test_no_stage_starts_without_time(tmp_path, stages):
    assert gpu_suite.run_suite(tmp_path, gpu_suite.STAGES, 0, CPU) == 1
    assert stages[0] == []
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


def test_metrics_are_summed_up_with_the_failures_of_parity(tmp_path):
    unit = {"group": "hidden", "arch": "mamba", "impl": "triton"}
    records = [
        {"unit": unit, "status": "ok", "parity": {"passed": False}},
        {"unit": unit | {"group": "state"}, "status": "ok", "parity": {"passed": True}},
        {"unit": unit, "status": "error", "parity": None},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert suite_record.metrics_line(path) == (
        "2 ok, 1 error; parity of 2 proven but for mamba under triton (hidden)"
    )


def test_metrics_need_the_sweep_before_them(tmp_path):
    with pytest.raises(RuntimeError, match="sweep-prefill has not run"):
        gpu_suite.run_metrics(tmp_path, 1)


def test_profiles_are_of_what_can_run_there():
    cells = gpu_suite.profile_cells("cpu")
    assert "mamba/cpu/prefill/4096/bf16" in cells
    assert "llama/torch/prefill/4096/bf16" in cells
    assert not [cell for cell in cells if "/triton/" in cell or "/cuda/" in cell]


def planted_capture(folder, **fields):
    """What profiles.capture leaves of one cell, with the numbers of a GPU."""
    cell = {"arch": "mamba", "impl": "torch", "seqlen": 4096}
    manifest = {"cell": cell, "profiler": "torch", "status": "ok", "reason": "", "kernels": {}}
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    if "status" not in fields:
        (folder / "timeline.csv").write_text(
            "level,launches,busy_ms,gap_ms,host_ms,share,launch_bound\n"
            "cell,40,5,1,7,,true\nrep,40,5,1,6,0.25,true\nop,3,2,0,1,0.5,false\nop,3,1,0,1,0.25,false\n"
        )


def test_a_capture_is_one_row(tmp_path, monkeypatch):
    planted_capture(tmp_path / "profiles" / "a.torch")
    planted_capture(tmp_path / "profiles" / "b.torch", status="error", reason="no | luck")
    commands = []
    monkeypatch.setattr(gpu_suite, "_logged", lambda *args: commands.append(args[0]) or (0, ""))
    monkeypatch.setattr(gpu_suite, "profile_cells", lambda device: ["mamba/torch"])
    monkeypatch.setattr(
        gpu_suite.profilers, "find", lambda name: profilers.Profiler(name, "1", name == "nsys" and "absent")
    )  # fmt: skip
    good, bad = gpu_suite.run_profiles(tmp_path, 10)
    assert (good["launches"], good["busy_ms"], good["operators"]) == (40, 5, 0.75)
    assert "busy_ms" not in bad
    assert len(commands) == 1
    assert commands[0][-4:] == ["--cell", "mamba/torch", "--profiler", "torch"]
    assert "--missing" in commands[0]
    lines = list(suite_record.profile_lines([good, bad]))
    assert len({line.count("|") for line in lines}) == 1
    assert "trace.json.gz" in (tmp_path / "profiles" / ".gitignore").read_text()


def test_captures_that_fail_fail_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "_logged", lambda *args: (1, "it is gone"))
    with pytest.raises(RuntimeError, match=r"profiles.capture ended with 1: it is gone"):
        gpu_suite.run_profiles(tmp_path, 10)
