"""The preflight: every kernel has a line, also one whose process dies."""

import json
import subprocess

import pytest
import torch

from bench import preflight
from bench.kernel_problems import MODES
from bench.records import Appender
from kernels.implementations import interpreted

CPU = torch.device("cpu")


def test_every_operator_and_mode_has_a_small_problem():
    for operator, modes in MODES.items():
        for mode in modes:
            for device_type in ("cpu", "cuda"):
                problem = preflight.small_problem(operator, mode, device_type)
                assert problem.bytes(torch.float32) < 1 << 24
    assert preflight.small_problem("causal_attention", "decode", "cuda").seqlen_q == 1
    assert len(preflight.cases(MODES, ("forward",), ("bf16", "fp32"))) == 12


@pytest.mark.skipif(not interpreted(), reason="through the interpreter")
def test_a_kernel_is_compared_with_pytorch(monkeypatch):
    row = preflight.check("causal_conv1d_update", "decode", "fp32", CPU)
    assert (row["status"], row["reason"]) == ("ok", "")
    assert 0 <= row["error_over_bound"] <= 1
    monkeypatch.setattr(preflight.kernels, "causal_conv1d_update", lambda x, impl, **rest: x * 2)
    row = preflight.check("causal_conv1d_update", "decode", "fp32", CPU)
    assert row["status"] == "error"
    assert "fails the accuracy rule: output" in row["reason"]


@pytest.mark.skipif(not interpreted(), reason="through the interpreter")
def test_problems_of_a_grid_are_launched_as_far_as_they_are_small(monkeypatch):
    sizes = [preflight.ConvUpdateProblem(b, 8) for b in (1, 2, 4)]
    monkeypatch.setattr(preflight, "problems", lambda *where: sizes)
    monkeypatch.setattr(preflight, "WARM_BYTES", sizes[2].bytes(torch.float32) - 1)
    assert preflight.check("causal_conv1d_update", "decode", "fp32", CPU, "scan")["launched"] == 2
    assert (
        preflight.check("causal_conv1d_update", "decode", "fp32", CPU, "scan", 0)["launched"] == 0
    )


def test_a_process_that_dies_or_hangs_is_a_line(monkeypatch, tmp_path):
    def run(command, **how):
        case = command[command.index("--child") + 1]
        if case.endswith("bf16"):
            return subprocess.CompletedProcess(command, -11, "", "one\nSegmentation fault")
        if case.endswith("fp16"):
            raise subprocess.TimeoutExpired(command, how["timeout"])
        operator, mode, dtype = case.split("/")
        row = {"operator": operator, "mode": mode, "dtype": dtype, "status": "ok", "reason": ""}
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(row)}\n", "")

    monkeypatch.setattr(preflight.subprocess, "run", run)
    out = Appender(tmp_path / preflight.NAME)
    todo = [("causal_conv1d", "forward", dtype) for dtype in ("bf16", "fp16", "fp32")]
    list(preflight.check_all(todo, out, limit=1.0, workers=1, progress=False))
    out.close()
    rows = preflight.read(tmp_path)
    assert {case[2]: row["status"] for case, row in rows.items()} == {
        "bf16": "died", "fp16": "timeout", "fp32": "ok",
    }  # fmt: skip
    assert rows[todo[0]]["reason"] == "ended with -11: Segmentation fault"
    assert list(preflight.failing(tmp_path)) == [("causal_conv1d", "forward")]
    lines = list(preflight.lines(rows.values()))
    assert len({line.count("|") for line in lines}) == 1


def test_what_passed_is_not_run_again(monkeypatch, tmp_path, capsys):
    asked = []

    def check_all(todo, out, *rest, **how):
        asked.append(todo)
        for operator, mode, dtype in todo:
            row = {"operator": operator, "mode": mode, "dtype": dtype, "reason": "", "seconds": 1.0}
            row["status"] = "error" if len(asked) == 1 and dtype == "fp32" else "ok"
            out.append(row)
            yield row

    monkeypatch.setattr(preflight, "check_all", check_all)
    command = [
        "--operator",
        "causal_conv1d",
        "--mode",
        "forward",
        "--dtype",
        "bf16,fp32",
        "--out",
        str(tmp_path),
    ]
    assert preflight.main(command) == 1
    assert preflight.main(command) == 0
    assert asked[1] == [("causal_conv1d", "forward", "fp32")]
    assert preflight.failing(tmp_path) == {}
