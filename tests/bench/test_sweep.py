"""The command line, in this process for bad input and in processes of its own for whole runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from bench.plan import Cell, Plan, read_plan
from bench.records import STATUSES, Appender, make_record, read_records, read_run, statuses, untimed
from bench.sweep import main, settle

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--preset",
    "tiny",
    "--seqlens",
    "16,32",
    "--arch",
    "mamba",
    "--impl",
    "hf",
    "--device",
    "cpu",
    "--metrics",
    "none",
    "--profile",
    "none",
]


def start(*options, cwd=ROOT):
    """A sweep in a process of its own, with both streams in pipes."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "bench.sweep", *map(str, options)]
    return subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def refused(capsys, *options):
    """The one line with which the sweep refuses `options`."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, options)))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("python -m bench.sweep: error: ")
    return line


BAD = [
    (["--impl", "tritn"], ["--impl", "'tritn'", "triton"]),
    (["--impl", "hf,"], ["--impl", "''"]),
    (["--arch", "gpt"], ["--arch", "'gpt'", "mamba"]),
    (["--preset", "huge"], ["--preset", "'huge'", "tiny"]),
    (["--dtype", "fp8"], ["--dtype", "'fp8'", "bf16"]),
    (["--launch", "turbo"], ["--launch", "'turbo'"]),
    (["--mode", "prefil"], ["--mode", "'prefil'", "decode"]),
    (["--mode", "decode,"], ["--mode", "''"]),
    (["--mode", "prefill,train", "--protocol", "paper"], ["--mode prefill,train", "--protocol"]),
    (["--mode", "decode", "--logits", "all"], ["--logits all", "prefill"]),
    (["--mode", "train", "--seqlens", "1,64"], ["--seqlens 1", "--mode train"]),
    (["--mode", "decode", "--seqlens", "32768"], ["--seqlens 32768", "decoded after 32,768"]),
    (["--protocol", "rough"], ["--protocol", "'rough'"]),
    (["--logits", "some"], ["--logits", "'some'"]),
    (["--tokenizer", "bert"], ["--tokenizer", "'bert'"]),
    (["--seqlens", "0"], ["--seqlens", "0 is less than 1"]),
    (["--seqlens", "64,x"], ["--seqlens", "'x'"]),
    (["--seqlens", ""], ["--seqlens", "''"]),
    (["--seqlens", "40000"], ["--seqlens 40000", "32,768 positions"]),
    (["--batch", "-1"], ["--batch", "-1"]),
    (["--rounds", "0"], ["--rounds", "0 is less than 1"]),
    (["--rounds", "2.5"], ["--rounds", "'2.5'"]),
    (["--seed", "x"], ["--seed", "'x'"]),
    (["--threads", "0"], ["--threads", "0"]),
    (["--budget", "nan"], ["--budget", "'nan'"]),
    (["--cell-timeout", "0"], ["--cell-timeout", "'0'"]),
    (["--cell-timeout", "auto"], ["--cell-timeout", "'auto'"]),
    (["--checkpoint", "mamba"], ["--checkpoint", "'mamba'", "mamba=DIR"]),
    (["--checkpoint", "gpt=here"], ["--checkpoint", "'gpt=here'"]),
    (["--checkpoint", "mamba=missing"], ["missing"]),
    (["--checkpoint", "mamba=a", "--checkpoint", "mamba=b"], ["--checkpoint mamba", "twice"]),
    (["--checkpoint", "llama=a", "--arch", "mamba"], ["--checkpoint llama", "--arch mamba"]),
    (["--sessions", "missing.json"], ["missing.json"]),
    (["--sessions", "empty.json"], ["empty.json"]),
    (["--sessions", "short.txt", "--seqlens", "4096"], ["sessions", "4,096 tokens", "--seqlens"]),
    (["--retry", "often"], ["--retry", "'often'"]),
    (["--retry", "error"], ["--retry", "--resume"]),
    (["--resume-anyway"], ["--resume-anyway", "--resume"]),
    (["--resume"], ["--resume", "--out"]),
    (["--resume", "--out", "nowhere"], ["--resume", "nowhere"]),
    (["--resume", "--out", "full"], ["full", "plan.json"]),
    (["--resume", "--out", "broken"], ["plan.json", "JSON"]),
    (["--out", "full"], ["--out full"]),
    (["--out", "empty.json"], ["--out empty.json"]),
    (["--out", "empty.json/run"], ["--out empty.json/run"]),
    (["--out", "broken"], ["--out broken", "--resume"]),
    (["--impls", "hf"], ["--impls"]),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=lambda value: " ".join(value))
def test_bad_input_is_one_line_that_names_it_and_leaves_nothing(
    options, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").touch()
    (tmp_path / "short.txt").write_text("Therapist: How are you?\nClient: Fine, I think.\n")
    for folder, name in (("full", "letter.txt"), ("broken", "plan.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{")
    before = sorted(map(str, tmp_path.rglob("*")))
    defaults = ["--preset", "tiny", "--arch", "mamba,llama"]
    line = refused(capsys, *defaults, *options)
    for word in says:
        assert word in line
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_gpu_that_is_not_there_is_named(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda" in refused(capsys, *TINY, "--device", "cuda")


def test_the_other_package_called_kernels_is_named_first(capsys, monkeypatch):
    monkeypatch.setattr(
        "bench.sweep.clash", lambda: "the package kernels is installed; remedy: remove it"
    )
    assert "remedy" in refused(capsys, *TINY)


def test_what_could_not_be_timed_stays_so_unless_it_is_asked_for_again(tmp_path, monkeypatch):
    cells = [Cell("mamba", impl, "tiny", 16) for impl in ("cuda", "triton", "hf")]
    plan = Plan(cells, 1, 0, "lab", "tiny", options={"device": "cpu"})
    last = statuses(
        [
            make_record(cells[0], 0, 0, "unavailable"),
            make_record(cells[1], 0, 1, "interpreted"),
            make_record(cells[2], 0, 2, "error"),
        ]
    )
    monkeypatch.setattr("bench.sweep.fate", lambda cell, device: ("measured", ""))
    appender = Appender(tmp_path / "records.jsonl")
    assert settle(plan, untimed(last, ()), appender) == (cells[2:], [])
    assert settle(plan, untimed(last, ["unavailable"]), appender) == ([cells[0], cells[2]], [])
    monkeypatch.setattr("bench.sweep.fate", lambda cell, device: ("unavailable", "no luck"))
    assert settle(plan, set(), appender) == ([], [])
    assert [r["reason"] for r in read_records(tmp_path / "records.jsonl")] == ["no luck"] * 3
    appender.close()


def test_list_and_dry_run_write_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--dry-run",
                *TINY,
                "--impl",
                "triton,hf,cuda",
                "--dtype",
                "fp32,bf16",
                "--launch",
                "eager,graph",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "24 cells, 5 rounds" in text
    for word in (
        "measured",
        "interpreted",
        "unavailable",
        "CUDA graphs need a CUDA device",
        "rough estimate",
    ):
        assert word in text
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    for word in ("paper-50m", "53,748,224", "29,946,368", "selective_scan", "tf32", "graph"):
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["-h"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in (
        "(default: triton,cuda,torch,cpu,hf)",
        "(default: 300.0)",
        "(default: runs/<timestamp>)",
    ):
        assert default in text


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """(directory, stdout, stderr) of a small run of both architectures, in pipes."""
    path = tmp_path_factory.mktemp("sweep") / "run"
    process = start(
        "--preset", "tiny", "--seqlens", "24,80", "--rounds", 2, "--impl", "triton,cuda,torch,hf",
        "--budget", 0.02, "--device", "cpu", "--metrics", "none", "--profile", "none", "--out", path,
    )  # fmt: skip
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return path, out, err


@pytest.mark.slow
def test_a_run_holds_a_record_of_every_cell_and_round(complete):
    path, _, _ = complete
    run = read_run(path)
    plan = read_plan(path / "plan.json")
    assert len(plan.cells) == 2 * 4 * 2
    found = Counter((Cell(**r["cell"]), r["round"]) for r in run.records)
    assert set(found.values()) == {1}
    for cell in plan.cells:
        statuses = {
            r: s["status"] for s in run.records if Cell(**s["cell"]) == cell for r in [s["round"]]
        }
        want = {"triton": {0: "interpreted"}, "cuda": {0: "unavailable"}}.get(
            cell.impl, {0: "ok", 1: "ok"}
        )
        assert statuses == want
    assert all(record["status"] in STATUSES for record in run.records)


@pytest.mark.slow
def test_measured_records_are_complete(complete):
    records = [r for r in read_run(complete[0]).records if r["status"] == "ok"]
    for record in records:
        assert record["parity"]["passed"]
        assert record["parity"]["baseline"] == "hf"
        assert record["parity"]["seqlen"] == record["cell"]["seqlen"]
        assert record["parity"]["outputs"].keys() == {"hidden", "logits"}
        assert all(t > 0 for t in record["time_ms"]["wall"])
        assert record["stopped_by"] in ("converged", "budget")
        assert record["memory_bytes"]["weights"] > 1 << 20
        if record["round"] == 0:
            assert record["memory_bytes"]["peak_allocated"] > record["memory_bytes"]["weights"]
        assert record["clocks"].keys() == {"before", "after"}
        assert record["kernels"]
    for round_ in (0, 1):
        orders = [r["order"] for r in records if r["round"] == round_]
        assert sorted(orders) == list(range(8))


@pytest.mark.slow
def test_the_other_records_say_why(complete):
    for record in read_run(complete[0]).records:
        if record["status"] == "unavailable":
            assert "no CUDA device" in record["reason"]
        if record["status"] == "interpreted":
            proven = min(64, record["cell"]["seqlen"])
            assert record["time_ms"] is None
            assert record["parity"]["passed"]
            assert record["parity"]["seqlen"] == proven
            assert f"first {proven} tokens" in record["reason"]


@pytest.mark.slow
def test_output_is_readable_in_a_pipe(complete):
    path, out, err = complete
    assert "\x1b" not in out + err
    assert max(map(len, out.splitlines())) <= 140
    assert f"run: {path}" in out
    assert "left" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_complete_run_is_refused_and_resumed_without_measuring(complete, capsys):
    path, _, _ = complete
    before = (path / "records.jsonl").read_bytes()
    assert "--resume" in refused(capsys, *TINY, "--out", path)
    assert "--seqlens" in refused(capsys, "--out", path, "--resume", "--seqlens", "24")
    assert "--rounds" in refused(capsys, "--out", path, "--resume", "--rounds", "1")
    assert main(["--out", str(path), "--resume", "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["--out", str(path), "--resume", "--seqlens", "80,24"]) == 0
    assert (path / "records.jsonl").read_bytes() == before


def until(condition, process, seconds=120):
    """Wait for `condition()`; fails if the sweep ends first."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the sweep got nowhere"
        time.sleep(0.02)
    return found


def worker_of(process):
    children = psutil.Process(process.pid).children()
    return next((c for c in children if "bench.worker" in " ".join(c.cmdline())), None)


def count(path):
    return len(read_records(path / "records.jsonl"))


@pytest.mark.slow
def test_kill_interrupt_and_resume_lose_one_cell_and_repeat_none(tmp_path, capsys):
    """One run with everything that can happen to it, because each process takes seconds to start."""
    path = tmp_path / "run"
    lengths = "1200,1300,1400,1500,1600,1700"  # half a second each: what happens does so in a cell
    options = [*TINY, "--rounds", 1, "--budget", 0.05, "--seqlens", lengths, "--out", path]

    sweep = start(*options)
    until(lambda: count(path) >= 1, sweep)
    worker = until(lambda: worker_of(sweep), sweep)
    worker.send_signal(signal.SIGKILL)  # a dead worker costs one cell, and another one goes on
    until(lambda: count(path) >= 3, sweep)  # the first, the lost one, one of the next process
    assert "another sweep is running" in refused(capsys, "--out", path, "--resume")
    worker = until(lambda: worker_of(sweep), sweep)
    sweep.send_signal(signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert f"--out {path} --resume" in err
    assert "Traceback" not in err
    assert not worker.is_running()

    before = count(path)
    sweep = start("--out", path, "--resume", "--metrics", "none", "--profile", "none")
    until(lambda: count(path) > before, sweep)
    worker = until(lambda: worker_of(sweep), sweep)
    sweep.kill()  # the worker notices that the parent is gone
    sweep.communicate()
    worker.wait(timeout=20)

    with (path / "records.jsonl").open("ab") as file:
        file.write(b'{"cell": {"arch": "mam')
    assert main(["--out", str(path), "--resume", "--metrics", "none", "--profile", "none"]) == 0
    lines = (path / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    pairs = Counter((Cell(**r["cell"]), r["round"]) for r in records)
    assert pairs == Counter({(cell, 0): 1 for cell in read_plan(path / "plan.json").cells})
    (lost,) = [r for r in records if r["status"] != "ok"]
    assert lost["status"] == "error"
    assert lost["reason"] == "the worker process died (signal 9) during this cell"
