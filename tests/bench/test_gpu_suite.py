"""The suite's own logic: plans, resuming, what is left out, the record; its figures need a GPU."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import contenders, gpu_suite, kernel_rows, options, preflight, profilers
from bench.kernel_problems import problems
from bench.kernels import CONTEXT_LOST
from bench.suite import models, page, plans, stages
from bench.suite import pack as packing
from bench.suite.pack import ARCHIVE, FILES, pack, unpack
from bench.suite.plans import PLANS, Stage
from bench.suite.sweeps import ANSWER, GENERAL, LATER, Sweep
from kernels.tuning import KERNELS

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
STAGES = [stage for plan in PLANS.values() for stage in plan]
KERNEL_STAGES = [s for s in STAGES if getattr(s.run, "func", None) is stages.run_kernels]


def suite_at(folder):
    return stages.Suite(folder, CPU)


def made(impl, ms, problem="b1-l512-d64", **fields):
    return {
        "operator": "selective_scan", "mode": "forward", "problem": problem, "dtype": "bf16", "impl": impl,
        "status": "ok", "reason": "", "kernel": "k", "error_over_bound": 0.5, "flops": 1, "bytes": 1,
        "floor_ms": 0.5, "bound": "memory", "floor_missing": [], "samples_ms": [[ms], [ms]],
    } | fields  # fmt: skip


def stage(name, ran, found=None, seconds=50, least=15):
    def run(suite, seconds):
        ran.append((name, round(seconds)))
        if isinstance(found, Exception):
            raise found
        return found or {"complete": True, "summary": f"{name} is done"}

    return Stage(name, seconds, run, least)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """The machine without a measurement of its peaks, and without tables of configurations of its own."""
    monkeypatch.setattr(gpu_suite, "FOLDER", tmp_path / "installed")
    monkeypatch.setattr(kernel_rows, "measure_peaks", lambda device: {"copy_bytes_per_s": 1e10})


def test_every_plan_names_its_stages_once_and_the_same_name_is_the_same_work():
    assert list(PLANS) == ["all", "scan", "attention", "answer"]
    for plan in PLANS.values():
        assert len({s.name for s in plan}) == len(plan)
        assert plan[0].name.startswith("preflight")
        assert all(s.least < s.seconds for s in plan)
    by_name = {s.name: s for s in STAGES}
    assert all(by_name[s.name] == s for s in STAGES)


def test_stages_of_operators_name_what_there_is():
    assert {s.run.keywords["mode"] for s in KERNEL_STAGES} == {"forward", "backward", "decode"}
    for found in KERNEL_STAGES:
        asked = found.run.keywords
        grid = [
            p for o in asked["operators"] for p in problems(o, asked["mode"], "cuda", asked["grid"])
        ]
        assert grid, found.name
    for found in STAGES:
        if getattr(found.run, "func", None) is stages.run_tune:
            assert set(found.run.keywords["kernels"]) <= set(KERNELS)
    for path in (*plans.SCAN_TESTS, *plans.ATTENTION_TESTS, *plans.MODEL_TESTS):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("sweep", [*ANSWER, *LATER, *GENERAL], ids=lambda sweep: sweep.name)
def test_sweeps_are_command_lines_that_bench_sweep_takes(sweep):
    parser = options.make_parser("")
    argv = [a if a != "cuda" else "cpu" for a in sweep.arguments()]
    said = options.given(parser, argv)
    resolved = options.resolve(parser.parse_args(argv), said)
    assert resolved["rounds"] == sweep.rounds >= 3
    assert resolved["preset"] == sweep.preset
    assert "hf" not in resolved["impl"] or max(resolved["seqlens"]) <= 8192


def test_the_record_holds_every_stage_and_a_second_call_what_is_missing(tmp_path, capsys):
    ran = []
    first = [
        stage("a", ran),
        stage("b", ran, {"complete": False, "summary": "out of time"}),
        stage("c", ran, RuntimeError("it broke |")),
    ]
    assert gpu_suite.run_suite(suite_at(tmp_path), first, 100) == 1
    result = json.loads((tmp_path / "suite.json").read_text())
    assert [found["complete"] for found in result["stages"].values()] == [True, False, False]
    assert result["machine"]["peaks"] == {"copy_bytes_per_s": 1e10}
    page = (tmp_path / "suite.md").read_text()
    assert "| a | yes | a is done |" in page
    assert "| c | no | failed: RuntimeError: it broke / |" in page
    # b once more, with the time that was left; c failed, and waits for the next call
    assert [name for name, _ in ran] == ["a", "b", "c", "b"]
    assert [seconds > 90 for _, seconds in ran] == [False] * 3 + [True]
    ran.clear()
    again = [stage("a", ran), stage("b", ran), stage("c", ran)]
    assert gpu_suite.run_suite(suite_at(tmp_path), again, 100) == 0
    assert ran == [("b", 50), ("c", 50)]


def test_a_stage_that_failed_is_told_by_the_status(tmp_path):
    failed = stage("tests", [], {"complete": True, "passed": False, "summary": "1 failed"})
    assert gpu_suite.run_suite(suite_at(tmp_path), [failed], 100) == 1


def test_a_folder_of_other_kernels_is_refused(tmp_path, monkeypatch, capsys):
    gpu_suite.run_suite(suite_at(tmp_path), [stage("a", [])], 100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite, "run_suite", lambda suite, *rest: int(suite.resume_anyway))
    assert gpu_suite.main(["--out", str(tmp_path)]) == 0
    monkeypatch.setattr(gpu_suite, "kernels_code", lambda: "0" * 64)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "was measured with other kernels" in line
    assert "here 0000000" in line
    assert gpu_suite.main(["--out", str(tmp_path), "--resume-anyway"]) == 1


def test_no_stage_starts_without_time(tmp_path):
    ran = []
    plan = [stage("long", ran, least=30), stage("short", ran, least=5)]
    assert gpu_suite.run_suite(suite_at(tmp_path), plan, 20) == 1
    assert ran == [("short", 20)]
    failed = json.loads((tmp_path / "suite.json").read_text())["failed"]
    assert failed == {"long": "no time left: call again with the same --out"}


def test_the_page_tells_version_idea_predicted_measured(tmp_path):
    rows = [
        made("triton", 1.0), made("mamba-ssm", 2.0), made("triton", 2.0, "b1-l1024-d64"),
        made("mamba-ssm", 1.0, "b1-l1024-d64"), made("copy", 0.1),
        made("triton", 6.0, "b1-h8-l64-d64", operator="attention_statistics"),
        made("triton", 2.0, "b1-h8-l64-d64", operator="causal_attention"),
    ]  # fmt: skip
    keep = kernel_rows.Rows(tmp_path / "kernels")
    keep.add(rows)
    keep.close()
    (tmp_path / "configurations-nvidia-h200.json").write_text('{"entries": [{}, {}]}')
    (tmp_path / "counters").mkdir()
    (tmp_path / "counters" / "scan.md").write_text("# scan\n\n| x |\n")
    gpu_suite.run_suite(suite_at(tmp_path), [stage("tests", [])], 100)
    text = (tmp_path / "suite.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["## Version", "## Idea", "## Predicted", "## Measured"]
    assert "selective_scan_fwd-bf16" in text
    assert "2 measured entries in configurations-nvidia-h200.json" in text
    # 2 and 1/2
    assert (
        "| selective_scan | forward | bf16 | mamba-ssm | 2 | 1.00 | 0.50 | b1-l1024-d64 | 1.5 |"
        in text
    )
    assert "| b1-h8-l64-d64 | bf16 | 6 | 2 | 3.00 |" in text
    assert "#### scan" in text
    assert (tmp_path / "kernels" / "ratios-selective_scan.png").stat().st_size > 10_000
    assert {line.count("|") for line in page.against_peers(rows)} == {10}


def test_the_page_is_made_again_without_a_gpu(tmp_path):
    gpu_suite.run_suite(suite_at(tmp_path), [stage("tests", [])], 100)
    before = (tmp_path / "suite.md").read_text()
    (tmp_path / "suite.md").unlink()
    assert gpu_suite.main(["--out", str(tmp_path), "--page"]) == 0
    assert (tmp_path / "suite.md").read_text() == before


def test_what_comes_back_makes_the_folder_again(tmp_path):
    out, packed = tmp_path / "out", tmp_path / "packed"
    gpu_suite.run_suite(suite_at(out), [stage("tests", [])], 100, packed)
    assert {p.name for p in packed.iterdir()} == {ARCHIVE, "suite.json", "suite.md"}
    (out / "sweep-x" / "references").mkdir(parents=True)
    (out / "sweep-x" / "references" / "mamba-fp32.safetensors").write_bytes(bytes(5 << 20))
    (out / "sweep-x" / "records.jsonl").write_bytes(bytes(5 << 20))
    (out / "sweep-x" / "report.html").write_text("made again")
    for n in range(9):
        (out / f"configurations-{n}.json").write_text("{}")
    behind = pack(out, packed)
    assert len(list(packed.iterdir())) == FILES
    assert sum("one too many" in sentence for sentence in behind) == 4
    assert any("mamba-fp32.safetensors has 5 MiB" in sentence for sentence in behind)
    assert unpack(packed, tmp_path / "again")
    assert (tmp_path / "again" / "suite.json").read_text() == (out / "suite.json").read_text()
    assert (tmp_path / "again" / "sweep-x" / "records.jsonl").stat().st_size == 5 << 20
    assert {p.name for p in (tmp_path / "again" / "sweep-x").iterdir()} == {
        "references",
        "records.jsonl",
    }
    assert not list((tmp_path / "again").rglob("*.safetensors"))
    assert not unpack(tmp_path, tmp_path / "nothing")


def test_an_archive_that_is_too_large_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "LARGEST", 1000)
    out, packed = tmp_path / "out", tmp_path / "packed"
    out.mkdir()
    noise = torch.randint(256, (1900,), dtype=torch.uint8).numpy().tobytes()
    (out / "noise.json").write_bytes(noise)
    (out / "suite.json").write_text("{}")
    pack(out, packed)
    assert {p.name for p in packed.iterdir()} == {f"{ARCHIVE}.{i}" for i in range(3)} | {
        "suite.json"
    }
    assert unpack(packed, tmp_path / "again")
    assert (tmp_path / "again" / "noise.json").read_bytes() == noise
    (out / "noise.json").unlink()
    pack(out, packed)
    assert {p.name for p in packed.iterdir()} == {ARCHIVE, "suite.json"}


def test_configurations_of_an_earlier_call_are_installed(tmp_path, monkeypatch):
    folder = tmp_path / "configurations"
    monkeypatch.setattr(gpu_suite, "FOLDER", folder)
    (tmp_path / "configurations-nvidia-h200.json").write_text('{"entries": [1]}')
    gpu_suite.install_configurations(tmp_path)
    assert (folder / "nvidia-h200.json").read_text() == '{"entries": [1]}'
    (folder / "nvidia-h200.json").write_text("newer")
    gpu_suite.install_configurations(tmp_path)
    assert (folder / "nvidia-h200.json").read_text() == "newer"


def plant_failure(folder, operator="selective_scan", mode="forward"):
    row = {
        "operator": operator,
        "mode": mode,
        "dtype": "bf16",
        "status": "died",
        "reason": "signal 11",
    }
    (folder / preflight.NAME).write_text(json.dumps(row) + "\n")


def test_an_operator_that_failed_is_left_out_and_the_rest_goes_on(tmp_path, monkeypatch):
    plant_failure(tmp_path)
    commands = []
    monkeypatch.setattr(
        stages, "logged", lambda command, *rest: commands.append(command) or (0, "")
    )
    found = stages.run_kernels(
        suite_at(tmp_path), 50, ("selective_scan", "causal_conv1d"), "forward", ("fp32",), "scan"
    )
    asked = dict(zip(commands[0], commands[0][1:], strict=False))
    assert asked["--operator"] == "causal_conv1d"
    assert not found["complete"]  # nothing was measured
    assert (
        "selective_scan is left out, because it failed the preflight: bf16: signal 11"
        in found["summary"]
    )
    kept = models.without_triton(Sweep("x", 1), suite_at(tmp_path).excluded())
    assert kept == ["--impl", "cuda,torch"]
    assert models.without_triton(Sweep("x", 1, arch="llama"), suite_at(tmp_path).excluded()) == []


def test_only_the_modes_that_failed_are_left_out(tmp_path):
    plant_failure(tmp_path, "causal_attention", "backward")
    excluded = suite_at(tmp_path).excluded()
    assert models.without_triton(Sweep("x", 1), excluded) == []
    assert models.without_triton(Sweep("x", 1, mode="train"), excluded)
    plant_failure(tmp_path, "causal_conv1d_update", "decode")
    excluded = suite_at(tmp_path).excluded()
    assert models.without_triton(Sweep("x", 1, mode="decode"), excluded)
    assert models.without_triton(Sweep("x", 1, mode="decode", arch="llama"), excluded) == []


def test_a_lost_context_is_tried_again_as_long_as_there_is_time(monkeypatch, tmp_path):
    codes = iter([CONTEXT_LOST, CONTEXT_LOST, 0])
    tried = []
    monkeypatch.setattr(
        stages, "logged", lambda command, *rest: tried.append(command) or (next(codes), "x")
    )
    assert stages.again(["c"], tmp_path / "log", time.monotonic() + 50) == (0, "x")
    assert len(tried) == 3
    assert stages.again(["c"], tmp_path / "log", time.monotonic() - 1) == (None, "")


def test_a_command_out_of_time_may_save_what_it_has(tmp_path):
    save = "import time\ntry:\n print('begun', flush=True)\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('saved')"
    start = time.monotonic()
    assert stages.logged([sys.executable, "-c", save], tmp_path / "log", 3) == (None, "saved")
    assert time.monotonic() - start < 30
    assert stages.logged(
        [sys.executable, "-c", "print(7); raise SystemExit(4)"], tmp_path / "l", 20
    ) == (4, "7")


def test_one_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE_S", 1)
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(60)"
    )
    assert stages.logged([sys.executable, "-c", deaf], tmp_path / "log", 2) == (None, "deaf")


def test_tests_that_were_cut_short_are_counted(tmp_path, monkeypatch):
    def cut(command, log, seconds):
        log.write_text(
            "[gw0] PASSED tests/a.py::one\n[gw1] FAILED tests/a.py::two\n[gw0] PASSED tests/a.py::three[x]\n"
        )
        return None, ""

    monkeypatch.setattr(stages, "logged", cut)
    found = stages.run_tests(suite_at(tmp_path), 10, "tests/kernels")
    assert found == {
        "complete": False,
        "summary": "out of time; until then 2 passed, 1 failed: tests/a.py::two",
    }


def test_without_a_tool_a_stage_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "SANITIZERS", ("no-such-sanitizer",))
    found = stages.run_sanitizer(suite_at(tmp_path), 10)
    assert found["summary"] == "unavailable, because compute-sanitizer is not installed"
    monkeypatch.setattr(profilers, "ncu", lambda: profilers.Profiler("ncu", "", "it is not here"))
    found = stages.run_counters(suite_at(tmp_path), 10, "selective_scan/forward/bf16/triton")
    assert found["summary"] == "unavailable, because it is not here"
    assert found["complete"]


def test_what_is_not_installed_is_said_with_what_it_costs(monkeypatch):
    monkeypatch.setattr(contenders, "_installed", lambda module: module == "torch")
    monkeypatch.setattr(profilers, "ncu", lambda: profilers.Profiler("ncu", "", "it is not here"))
    monkeypatch.setattr(stages, "SANITIZERS", ("no-such-sanitizer",))
    said = list(stages.lacking(("selective_scan", "causal_attention")))
    assert (
        said[0] == "tables lack mamba-ssm, flash-attn-2, flash-attn-3, flash-attn-4: not installed"
    )
    assert said[-2:] == ["no counters: it is not here", "no compute-sanitizer: not installed"]
    monkeypatch.setattr(contenders, "_installed", lambda module: True)
    assert not any("tables lack" in sentence for sentence in stages.lacking(("selective_scan",)))


def test_metrics_need_the_sweep_before_them(tmp_path):
    found = models.run_metrics(suite_at(tmp_path), 1, "paper")
    assert found == {"complete": False, "summary": "the stage sweep-paper has not run"}


def test_profiles_are_of_what_can_run_there():
    cells = models.profile_cells("cpu")
    assert "mamba/cpu/prefill/4096/bf16" in cells
    assert "llama/torch/prefill/4096/bf16" in cells
    assert not [cell for cell in cells if "/triton/" in cell or "/cuda/" in cell]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "X"], "no CUDA device"),
        ([], "--out"),
        (["--out", "X", "--stages", "tests,lunch"], "'lunch'"),
        (["--out", "X", "--plan", "lunch"], "'lunch'"),
        (["--out", "X", "--previous", "nowhere"], "--previous nowhere"),
        (["--out", "X", "--page"], "holds no suite.json"),
    ],
)
def test_bad_arguments_are_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not Path("X").exists()


def test_a_plan_can_be_looked_at(capsys):
    assert gpu_suite.main(["--plan", "scan", "--list"]) == 0
    assert "scan-backward" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_plan_runs_on_a_cpu(tmp_path):
    """The commands of the stages for real: preflight through the interpreter, operators, determinism, a sweep."""
    sweep = Sweep(
        "tiny", 60, impl="torch", arch="mamba", preset="tiny", seqlens="16", dtype="fp32", rounds=1, budget=0.01,
        device="cpu",
    )  # fmt: skip
    operators = ("causal_conv1d_update",)
    plan = [
        Stage("preflight", 60, lambda s, left: stages.run_preflight(s, left, operators, ("decode",), ("fp32",))),
        Stage("kernels", 60, lambda s, left: stages.run_kernels(
            s, left, operators, "decode", ("fp32",), "scan", ("torch", "copy"), 0.02)),
        Stage("sweep", 120, lambda s, left: models.run_sweep(s, left, sweep)),
    ]  # fmt: skip
    assert gpu_suite.run_suite(suite_at(tmp_path), plan, 200) == 0
    found = json.loads((tmp_path / "suite.json").read_text())["stages"]
    assert found["preflight"]["summary"].startswith("1 of 1 kernels were tried")
    assert found["kernels"]["summary"] == "3 of 3 problems"
    assert found["sweep"]["summary"] == "1 records of 1 cells in 1 rounds (at most 1)"
    page = (tmp_path / "suite.md").read_text()
    assert "| mamba | torch | fp32 | prefill | 16 |" in page
    assert "| causal_conv1d_update | decode | fp32 | ok |" in page
