"""The benchmark of the operators: its rows are checked before they are timed, and kept."""

import json

import pytest
import torch

from bench import contenders, kernels
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.implementations import interpreted
from kernels.selective_scan.problem import SelectiveScanProblem

CPU = torch.device("cpu")
SCAN = SelectiveScanProblem(batch=1, seqlen=33, dim=16, dstate=4)
PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e11}, "exp_per_s": 1e9}


@pytest.fixture
def small_grids(monkeypatch):
    """One small problem an operator and two contenders, so that a run takes a moment."""
    grids = {
        "selective_scan": {"cpu": (SCAN,)},
        "causal_attention": {
            "cpu": (CausalAttentionProblem(batch=1, nheads=2, nheads_kv=1, seqlen=17, headdim=16),)
        },
    }
    monkeypatch.setattr(kernels, "GRIDS", grids)
    monkeypatch.setattr(
        kernels,
        "contenders",
        lambda *where: [c for c in contenders.contenders(*where) if c[0] in ("torch", "hf")],
    )
    return grids


def test_every_implementation_has_a_row_checked_or_explained():
    rows = kernels.measure_problem("selective_scan", SCAN, "fp32", CPU, PEAKS, blocks=2, samples=2)
    by_name = {row["impl"]: row for row in rows}
    assert set(by_name) == {"triton", "cuda", "torch", "cpu", "hf"}
    for name in ("torch", "cpu", "hf"):
        row = by_name[name]
        assert row["status"] == "ok"
        assert row["error_over_bound"] <= 1
        assert [len(block) for block in row["samples_ms"]] == [2, 2]
    assert by_name["cuda"]["status"] == "unavailable"
    assert "no CUDA device" in by_name["cuda"]["reason"]
    assert by_name["cpu"]["kernel"] == "numba.selective_scan"
    triton = by_name["triton"]
    assert triton["samples_ms"] == []
    if interpreted():
        assert triton["status"] == "interpreted"
        assert triton["error_over_bound"] <= 1


def test_a_wrong_kernel_is_never_timed(monkeypatch):
    def wrong(**inputs):
        return inputs["u"] * 2

    monkeypatch.setattr(kernels, "contenders", lambda operator, device: [("wrong", wrong)])
    (row,) = kernels.measure_problem("selective_scan", SCAN, "fp32", CPU, PEAKS, blocks=2)
    assert row["status"] == "error"
    assert "accuracy rule" in row["reason"]
    assert row["samples_ms"] == []


def test_a_peer_that_breaks_is_a_row(monkeypatch):
    def broken(**inputs):
        raise RuntimeError("CUDA error: no kernel image")

    monkeypatch.setattr(kernels, "contenders", lambda operator, device: [("broken", broken)])
    (row,) = kernels.measure_problem("selective_scan", SCAN, "fp32", CPU, PEAKS, blocks=2)
    assert (row["status"], row["samples_ms"]) == ("error", [])
    assert "no kernel image" in row["reason"]


def test_rows_have_the_floor_of_their_problem():
    rows = kernels.measure_problem("selective_scan", SCAN, "fp32", CPU, PEAKS, blocks=1, samples=1)
    for row in rows:
        # 33 tokens of 16 channels with 4 states, 2 for softplus, 2 for the gate
        assert row["floor_ms"] == pytest.approx(1e3 * 33 * 16 * 8 / 1e9)
        assert (row["bound"], row["floor_missing"]) == ("exponential", [])
    timed = dict(rows[0], samples_ms=[[0.008448, 9.0, 0.0], [0.008448]])
    assert kernels.share_of_floor(timed) == "50 % exponential"
    assert kernels.share_of_floor(dict(timed, samples_ms=[])) == ""
    assert kernels.left_out(rows) == ""
    assert "leave out the matrix term" in kernels.left_out([dict(timed, floor_missing=["matrix"])])
    assert (
        kernels.share_of_floor({"samples_ms": [[1.0]]}) == ""
    )  # a file from before there were floors


def test_a_second_call_measures_only_what_is_missing(tmp_path, small_grids, monkeypatch):
    first = kernels.run(["selective_scan"], ["fp32"], CPU, PEAKS, tmp_path, progress=False)
    measured = []
    real = kernels.measure_problem
    monkeypatch.setattr(
        kernels,
        "measure_problem",
        lambda operator, *rest: measured.append(operator) or real(operator, *rest),
    )
    both = kernels.run(list(small_grids), ["fp32"], CPU, PEAKS, tmp_path, progress=False)
    assert measured == ["causal_attention"]
    assert both[: len(first)] == first
    lines = (tmp_path / "kernels.jsonl").read_text().splitlines()
    assert [row for line in lines for row in json.loads(line)["rows"]] == both


def test_a_torn_last_line_is_left_out(tmp_path, small_grids):
    kernels.run(["selective_scan"], ["fp32"], CPU, PEAKS, tmp_path, progress=False)
    file = tmp_path / "kernels.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"rows": [{"oper')
    rows = kernels.read_rows(file)
    assert {row["operator"] for row in rows} == {"selective_scan"}


def test_the_command_prints_a_table(small_grids, capsys):
    assert kernels.main(["--operator", "selective_scan"]) == 0
    out = capsys.readouterr().out
    assert str(SCAN) in out
    assert "a copy moves" in out
    assert "floors leave out the exponential term" in out
    assert "share of floor" in out
    assert "% memory" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--operator", "mlp"], "mlp"), (["--dtype", "int8"], "int8"), (["--dtype", ""], "--dtype")],
)
def test_bad_arguments_are_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        kernels.main(arguments)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_every_grid_covers_every_operator():
    assert set(contenders.GRIDS) == set(contenders.OPERATORS)
    for by_device in contenders.GRIDS.values():
        assert set(by_device) == {"cuda", "cpu"}
