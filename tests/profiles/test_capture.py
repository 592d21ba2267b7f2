"""Captures of tiny cells with torch.profiler, and what becomes of those that fail."""

import csv
import gzip
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from bench import profilers
from bench.plan import Plan
from bench.tokens import Tokens
from profiles import capture, nsight, session
from profiles.nsight import CaptureError
from profiles.session import Session

CELLS = ("mamba/cpu/prefill/32", "llama/torch/decode/32", "mamba/cpu/train/32")
PREFILL = "mamba-cpu-tiny-32-b1-fp32-prefill-eager"
DECODE = "llama-torch-tiny-32-b1-fp32-decode-eager"
TRAIN = "mamba-cpu-tiny-32-b1-fp32-train-eager"
TORCH = profilers.Profiler("torch", "2.0")


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Three tiny cells captured in one process: where they lie."""
    out = tmp_path_factory.mktemp("profiles")
    named = [word for cell in CELLS for word in ("--cell", cell)]
    argv = [
        *named,
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--profiler",
        "torch",
        "--reps",
        "2",
        "--memory",
    ]
    assert capture.main([*argv, "--threads", "1", "--quiet", "--out", str(out)]) == 0
    return out


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def rows(folder, name="timeline.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def paths(folder):
    """{path without the cell: ranges per repetition}."""
    return {row["path"].partition(" > ")[2]: float(row["count"]) for row in rows(folder)}


@pytest.mark.parametrize("id", [PREFILL, DECODE, TRAIN])
def test_a_manifest_says_what_was_recorded(captured, id):
    found = manifest(captured / f"{id}.torch")
    assert found["id"] == id
    assert found["status"] == "ok"
    assert found["reason"] == ""
    assert found["profiler"] == "torch"
    assert found["device"] == "cpu"
    assert found["reps"] == len(found["wall_ms"]) == 2
    assert all(ms > 0 for ms in found["wall_ms"])
    assert "profiles.captured" in found["command"]
    assert found["machine"]["versions"]["torch"] == found["profiler_version"]
    assert any("never for comparison" in note for note in found["notes"])
    for name in found["files"].values():
        assert (captured / f"{id}.torch" / name).stat().st_size > 0
    assert {"trace", "timeline", "work", "memory", "memory_by_range"} == set(found["files"])


def test_the_kernels_are_those_that_ran(captured):
    assert manifest(captured / f"{PREFILL}.torch")["kernels"] == {
        "causal_conv1d": "numba.causal_conv1d",
        "selective_scan": "numba.selective_scan",
    }
    assert "causal_attention" in manifest(captured / f"{DECODE}.torch")["kernels"]


def test_ranges_of_a_prefill_are_nested_and_only_of_the_steady_state(captured):
    assert paths(captured / f"{PREFILL}.torch") == {
        "": 0.5,
        "rep": 1,
        **{f"rep > layer/{i}": 1 for i in range(2)},
        **{f"rep > layer/{i} > op/causal_conv1d": 1 for i in range(2)},
        **{f"rep > layer/{i} > op/selective_scan": 1 for i in range(2)},
    }


def test_a_decoded_token_has_one_range_a_layer(captured):
    found = paths(captured / f"{DECODE}.torch")
    assert found["rep > layer/1 > op/causal_attention"] == 1
    assert set(found) == {
        "",
        "rep",
        *(f"rep > layer/{i}{op}" for i in range(2) for op in ("", " > op/causal_attention")),
    }


def test_training_has_ranges_of_its_gradients(captured):
    found = paths(captured / f"{TRAIN}.torch")
    assert found["rep > op/selective_scan.backward"] == 2
    assert found["rep > op/causal_conv1d.backward"] == 2
    assert found["rep > layer/1 > op/selective_scan"] == 1


def test_what_ran_under_a_range_is_told(captured):
    work = rows(captured / f"{DECODE}.torch", "work.csv")
    attention = [
        row["name"] for row in work if row["path"].endswith("layer/0 > op/causal_attention")
    ]
    assert any("attention" in name for name in attention)


def test_the_trace_opens_elsewhere(captured):
    with gzip.open(captured / f"{PREFILL}.torch" / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]


def test_memory_is_told_by_range(captured):
    found = {row["path"]: row for row in rows(captured / f"{TRAIN}.torch", "memory_by_range.csv")}
    whole = found[f"cell/{TRAIN}"]
    assert int(whole["count"]) == 1
    assert int(whole["peak_bytes"]) > 0
    assert f"cell/{TRAIN} > rep > op/selective_scan.backward" in found
    timeline = rows(captured / f"{TRAIN}.torch", "memory.csv")
    assert max(int(row["allocated_bytes"]) for row in timeline) == int(whole["peak_bytes"])


def test_nothing_unfinished_lies_around(captured):
    names = {path.name for path in captured.iterdir()}
    assert names == {"log.txt", *(f"{id}.torch" for id in (PREFILL, DECODE, TRAIN))}


def make_session(out, profiler=TORCH):
    parser = capture.make_parser()
    args = parser.parse_args(["--cell", CELLS[0], "--preset", "tiny"])
    plan, tokens, _ = capture.chosen(args, parser)
    assert isinstance(plan, Plan)
    assert isinstance(tokens, Tokens)
    return Session(None, plan, tokens, out, profiler, asked="by a test"), plan.cells


def run(made, cells):
    return list(made.capture(cells, lambda cell, text: None))


def test_a_process_that_dies_leaves_a_manifest_with_the_reason(tmp_path, monkeypatch, capsys):
    dies = tmp_path / "dies"
    dies.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    dies.chmod(0o755)
    argv = [
        "--preset",
        "tiny",
        "--cell",
        CELLS[0],
        "--profiler",
        "torch",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "executable", str(dies))
    assert capture.main(argv) == 1
    said = capsys.readouterr().err
    assert "error: mamba-cpu-tiny-32-b1-fp32-prefill-eager: the process ended before" in said
    found = manifest(tmp_path / "out" / f"{PREFILL}.torch")
    assert found["status"] == "error"
    assert "out of luck" in found["reason"]
    assert found["files"] == {}


def test_a_cell_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    made, cells = make_session(tmp_path / "out")
    started = []

    def followed(command, env, log):
        started.append(command)
        into = tmp_path / "answers"
        into.mkdir(exist_ok=True)
        yield from ()

    monkeypatch.setattr(session, "followed", followed)
    found = dict(run(made, [cells[0], replace(cells[0], seqlen=16)]))
    assert [m["status"] for m in found.values()] == ["error", "error"]
    assert len(started) == 2  # the second cell got a process of its own
    assert cells[0].id in started[0]
    assert cells[0].id not in started[1]


def test_an_interrupted_capture_leaves_nothing(tmp_path, monkeypatch):
    made, cells = make_session(tmp_path / "out")

    def interrupted(command, env, log):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(session, "followed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(made, cells)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.txt"]


def test_what_was_captured_is_not_captured_again(tmp_path, captured, monkeypatch):
    monkeypatch.setattr(session, "followed", lambda *args: pytest.fail("a process was started"))
    argv = ["--preset", "tiny", "--cell", CELLS[0], "--profiler", "torch", "--missing", "--quiet"]
    assert capture.main([*argv, "--out", str(captured)]) == 0
    made, cells = make_session(tmp_path)
    assert not made.holds(cells[0])
    made.folder(cells[0]).mkdir()
    (made.folder(cells[0]) / "manifest.json").write_text('{"status": "error"}')
    assert not made.holds(cells[0])


def timeline_of(levels, reps):
    path = f"cell/{PREFILL}"
    ranges = pd.DataFrame({"level": levels, "path": [path] * len(levels)})
    return SimpleNamespace(ranges=ranges, reps={path: reps} if levels else {})


@pytest.mark.parametrize(
    ("levels", "reps", "named"),
    [
        ([], 0, "no named range"),
        (["cell"], 1, "no named range"),
        (["cell", "rep"], 2, "2 of 3 rep"),
    ],
)
def test_a_profile_without_all_of_its_ranges_is_an_error(levels, reps, named):
    with pytest.raises(CaptureError, match=named):
        session.check(timeline_of(levels, reps), SimpleNamespace(id=PREFILL), 3)
    session.check(timeline_of(["cell", "rep"], 3), SimpleNamespace(id=PREFILL), 3)


@pytest.mark.parametrize(
    ("profiler", "named"), [("nsys", "apt-get install"), ("ncu", "CUDA toolkit")]
)
def test_an_absent_profiler_is_told_with_the_way_to_it(
    tmp_path, monkeypatch, capsys, profiler, named
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        capture.main(["--preset", "tiny", "--cell", CELLS[0], "--profiler", profiler])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"--profiler {profiler}: unavailable, because {profiler} is not on the PATH" in said
    assert named in said
    assert ("--profiler torch" in said) == (profiler == "nsys")


def test_nsys_is_refused_with_an_nvtx_that_it_does_not_see(monkeypatch):
    monkeypatch.setattr(profilers, "_answer", lambda program: "version 2022.4.2.18")
    monkeypatch.setattr(profilers, "version_of", lambda name: "0.2.12")
    with pytest.raises(capture.PlanError, match=r"nvtx 0\.2\.12: pip install nvtx==0\.2\.10"):
        capture.usable("nsys", "cpu")


def test_auto_takes_nsight_only_where_it_records_a_gpu(monkeypatch):
    good = profilers.Profiler("nsys", "2025.1")
    monkeypatch.setattr(profilers, "nsys", lambda: good)
    assert capture.usable("auto", "cuda") is good
    assert capture.usable("auto", "cpu").name == "torch"
    monkeypatch.setattr(profilers, "nsys", lambda: profilers.Profiler("nsys", "", "absent"))
    assert capture.usable("auto", "cuda").name == "torch"


def test_proton_says_why_it_cannot(monkeypatch):
    monkeypatch.setattr(profilers, "_has_gpu", lambda: False)
    with pytest.raises(capture.PlanError, match="records GPU kernels only"):
        capture.usable("proton", "cpu")


def test_the_command_lines_of_nvidias_profilers(tmp_path, monkeypatch):
    monkeypatch.setattr(nsight.shutil, "which", lambda name: f"/opt/{name}")
    gpu = nsight.nsys_command(tmp_path, True, ["python", "x"])
    assert gpu[:2] == ["/opt/nsys", "profile"]
    assert gpu[-2:] == ["python", "x"]
    for flag in (
        "cuda,nvtx",
        "cudaProfilerApi",
        "--capture-range-end=stop",
        "--cuda-graph-trace=node",
    ):
        assert flag in gpu
    cpu = nsight.nsys_command(tmp_path, False, ["python"])
    assert "cudaProfilerApi" not in cpu
    assert cpu[cpu.index("-t") + 1] == "nvtx"
    assert "crossover@rep/" in nsight.ncu_command(tmp_path, ["python"])


def test_an_nsys_that_left_nothing_is_an_error(tmp_path):
    with pytest.raises(CaptureError, match="left no report"):
        nsight.complete(tmp_path)


def fake_tool(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_an_unfinished_recording_is_one_clear_error(tmp_path, monkeypatch):
    fake_tool(tmp_path / "bin" / "nsys", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    (tmp_path / "capture.qdstrm").write_bytes(b"half")
    with pytest.raises(CaptureError, match="no host-linux-x64/QdstrmImporter beside"):
        nsight.complete(tmp_path)
    fake_tool(tmp_path / nsight.IMPORTER, "echo File is corrupted. >&2; exit 1")
    with pytest.raises(CaptureError, match="cannot import it: File is corrupted"):
        nsight.complete(tmp_path)
    fake_tool(tmp_path / nsight.IMPORTER, 'cp "$2" "$4"')
    with pytest.raises(CaptureError, match="cannot export it: it said nothing"):
        nsight.complete(tmp_path)
    fake_tool(tmp_path / "bin" / "nsys", 'while [ "$1" != -o ]; do shift; done; cp "$3" "$2"')
    assert nsight.complete(tmp_path) == {"report": "capture.nsys-rep", "trace": "capture.sqlite"}
    assert not (tmp_path / "capture.qdstrm").exists()
