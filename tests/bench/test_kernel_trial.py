"""What is timed is what was checked: operands at full size, and their outputs, begin as those of the cut problem."""

import itertools
import subprocess
import sys

import pytest
import torch

import kernels as operators
from bench import (
    kernel_figure,
    kernel_lists,
    kernel_outcome,
    kernel_problems,
    kernel_rows,
    kernel_trial,
    kernels,
    ratio_figure,
)
from bench.contenders import Contender
from bench.kernel_problems import MODES, problems
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.selective_scan.problem import SelectiveScanProblem
from kernels.ssd_scan.problem import SsdScanProblem
from tests.bench.test_kernels import PEAKS, made

CPU = torch.device("cpu")
CUT = {
    "selective_scan": (SelectiveScanProblem(2, 8, 6, 3), SelectiveScanProblem(4, 21, 6, 3)),
    "time_last": (
        SelectiveScanProblem(1, 8, 6, 3, layout="time_last", has_initial_state=True),
        SelectiveScanProblem(4, 16, 6, 3, layout="time_last", has_initial_state=True),
    ),
    "causal_conv1d": (CausalConv1dProblem(1, 6, 8), CausalConv1dProblem(3, 6, 20)),
    "causal_attention": (CausalAttentionProblem(1, 4, 8, 16, 2), CausalAttentionProblem(2, 4, 19, 16, 2)),
    "ssd_scan": (SsdScanProblem(1, 8, 4, 6, 3), SsdScanProblem(3, 16, 4, 6, 3)),
}  # fmt: skip


def repeated(name):
    checked, problem = CUT[name]
    small = kernel_trial.draw(checked, torch.float32, CPU)
    return (
        checked,
        problem,
        small,
        kernel_trial.timed_inputs(problem, checked, small, torch.float32, CPU),
    )


@pytest.mark.parametrize("name", CUT)
def test_operands_at_full_size_have_the_shapes_and_layout_of_the_problem(name):
    checked, problem, small, found = repeated(name)
    own = problem.inputs(torch.float32, CPU)
    assert list(found) == list(own)
    for key, t in own.items():
        if torch.is_tensor(t):
            assert found[key].shape == t.shape, key
            assert found[key].stride() == t.stride(), key
        else:
            assert found[key] == t
    tokens = "q" if "q" in found else "x" if "x" in found else "u"
    axis = 1 if name == "ssd_scan" else kernel_trial.TOKENS[tokens]
    n = small[tokens].shape[axis]
    again = found[tokens].narrow(axis, n, n)[-small[tokens].shape[0] :]
    assert torch.equal(again, small[tokens])
    assert kernel_trial.timed_inputs(checked, checked, small, torch.float32, CPU) is small


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv1d", "causal_attention"])
def test_a_kernel_that_is_wrong_at_full_size_alone_is_seen(name):
    checked, _, _, inputs = repeated(name)
    run = getattr(operators, name)
    truth = kernel_trial.truth(name, checked, "forward", torch.float32, CPU)
    y = run(**inputs, impl="torch")
    assert kernel_trial.wrong_at_size({"output": y}, truth, "forward") == ""
    last = y.clone()
    last[-1, ..., 3, :] += 1e-3 * y.abs().max()  # a row of the last sequence
    if name != "causal_attention":
        last = y.clone()
        last[-1, :, 3] += 1e-3 * y.abs().max()
    assert "output: " in kernel_trial.wrong_at_size({"output": last}, truth, "forward")
    later = y.clone()
    later[-1, -1, -1] = float("nan")
    assert kernel_trial.wrong_at_size({"output": later}, truth, "forward") == "output is not finite"
    assert kernel_trial.wrong_at_size({"x": later}, truth, "backward") == "x is not finite"
    assert kernel_trial.wrong_at_size({"x": y}, truth, "backward") == ""


def test_a_contender_that_is_wrong_at_its_own_size_has_no_time(monkeypatch):
    def wrong_when_long(q, k, v):
        o = operators.causal_attention(q, k, v, impl="torch")
        return o if q.shape[2] <= 16 else o * 1.01

    monkeypatch.setattr(kernels, "contenders", lambda *where: [Contender("wrong", wrong_when_long)])
    monkeypatch.setitem(kernel_trial.LARGEST_GOLD, ("forward", "cpu"), 16)
    (row,) = kernels.measure_problem(
        "causal_attention", "forward", CausalAttentionProblem(1, 2, 33, 16), "fp32", CPU, PEAKS, blocks=1, samples=1
    )  # fmt: skip
    assert (row["status"], row["samples_ms"]) == ("error", [])
    assert "at its own size: output: " in row["reason"]


def test_a_lost_context_ends_the_process_and_is_remembered(tmp_path, monkeypatch, capsys):
    def lose(row, device):
        if row["impl"] == "bad":
            raise kernel_outcome.ContextLost(row["impl"], row["reason"])

    def broken(**inputs):
        raise RuntimeError("an illegal memory access was encountered")

    good = Contender("good", lambda **inputs: operators.causal_conv1d(**inputs, impl="torch"))
    monkeypatch.setattr(kernels, "contenders", lambda *where: [Contender("bad", broken), good])
    monkeypatch.setattr(kernels, "problems", lambda *where: (CausalConv1dProblem(1, 6, 8),))
    monkeypatch.setattr(kernel_outcome, "_free", lose)
    command = [
        "--operator",
        "causal_conv1d",
        "--mode",
        "forward",
        "--rows-only",
        "--out",
        str(tmp_path),
    ]
    assert kernels.main(command) == kernels.CONTEXT_LOST
    assert (
        "bad took the GPU's context down: RuntimeError: an illegal memory"
        in capsys.readouterr().err
    )
    assert kernels.read_rows(tmp_path / kernel_rows.NAME) == []
    assert kernels.main(command) == 0
    bad, fine = kernels.read_rows(tmp_path / kernel_rows.NAME)
    assert "not run, because it broke before: RuntimeError: an illegal" in bad["reason"]
    assert fine["samples_ms"]
    (noted,) = kernel_rows.read_broken(tmp_path / kernel_rows.NAME)
    assert (noted["impl"], noted["operator"], noted["mode"]) == ("bad", "causal_conv1d", "forward")


def test_one_in_which_the_process_ended_is_not_run_again(tmp_path):
    rows = kernel_rows.Rows(tmp_path)
    with rows.trying("causal_conv1d", "forward", "fine", seconds=60):
        assert (tmp_path / kernel_rows.TRYING).exists()
    assert not (tmp_path / kernel_rows.TRYING).exists()
    rows.close()
    hangs = (
        "import time; from pathlib import Path; from bench.kernel_rows import Rows\n"
        f"rows = Rows(Path({str(tmp_path)!r}))\n"
        "with rows.trying('causal_conv1d', 'forward', 'deaf', seconds=0.1): time.sleep(60)"
    )
    assert (
        subprocess.run([sys.executable, "-c", hangs], check=False).returncode
        == kernels.CONTEXT_LOST
    )
    rows = kernel_rows.Rows(tmp_path)
    assert rows.broken("causal_conv1d", "forward") == {"deaf": "the process ended while it ran"}
    assert rows.broken("causal_conv1d", "backward") == {}
    rows.close()


def test_one_that_breaks_while_it_is_timed_is_an_error(monkeypatch):
    calls = itertools.count()

    def tires(**inputs):
        if next(calls) > 4:
            raise RuntimeError("tired")
        return operators.causal_conv1d(**inputs, impl="torch")

    monkeypatch.setattr(kernels, "contenders", lambda *where: [Contender("tires", tires)])
    (row,) = kernels.measure_problem(
        "causal_conv1d", "forward", CausalConv1dProblem(1, 6, 8), "fp32", CPU, PEAKS, blocks=3, samples=2
    )  # fmt: skip
    assert (row["status"], row["reason"], row["samples_ms"]) == ("error", "RuntimeError: tired", [])


def test_only_who_is_asked_for_as_long_as_there_is_time(tmp_path, monkeypatch):
    two = (CausalConv1dProblem(1, 6, 8), CausalConv1dProblem(1, 6, 9))
    monkeypatch.setattr(kernels, "problems", lambda *where: two)
    ask = {"modes": ["forward"], "only": ["torch", "copy"], "effort": 0.01, "progress": False}
    rows = kernels.run(["causal_conv1d"], ["fp32"], CPU, PEAKS, tmp_path, limit=0, **ask)
    assert rows == []
    rows = kernels.run(["causal_conv1d"], ["fp32"], CPU, PEAKS, tmp_path, limit=60, **ask)
    assert [row["impl"] for row in rows] == ["torch", "copy"] * 2


def test_the_peaks_of_a_folder_are_measured_once(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(kernel_rows, "measure_peaks", lambda device: measured.append(1) or PEAKS)
    assert kernel_rows.known_peaks(tmp_path, CPU) == kernel_rows.known_peaks(tmp_path, CPU) == PEAKS
    kernel_rows.known_peaks(None, CPU)
    assert len(measured) == 2


def test_the_fraction_of_scans_has_every_level_and_every_pair_of_extremes_that_fits():
    levels = {"batch": {1, 2, 8}, "dim": {1024, 1536, 2048, 5120}, "dstate": {16, 64},
              "seqlen": {512 << n for n in range(9)}}  # fmt: skip
    found = problems("selective_scan", "forward", "cuda", "scan")
    assert len(found) == len(set(map(str, found))) == 34
    assert found == problems("selective_scan", "backward", "cuda", "scan")
    for name, wanted in levels.items():
        assert {getattr(p, name) for p in found} == wanted
    for one, two in itertools.combinations(levels, 2):
        ends = ((min(levels[name]), max(levels[name])) for name in (one, two))
        for pair in itertools.product(*ends):
            sizes = {"batch": 1, "dim": 1024, "seqlen": 512} | dict(
                zip((one, two), pair, strict=True)
            )
            if sizes["batch"] * sizes["dim"] * sizes["seqlen"] <= kernel_lists.LARGEST:
                assert any((getattr(p, one), getattr(p, two)) == pair for p in found), (
                    one,
                    two,
                    pair,
                )
    assert max(p.elements() for p in found) <= kernel_lists.LARGEST


def test_the_fraction_of_attentions_has_every_level():
    found = problems("causal_attention", "forward", "cuda", "attention")
    assert len(found) == len(set(map(str, found))) == 24
    assert {p.seqlen for p in found} == {512 << n for n in range(9)}
    assert {p.headdim for p in found} == {64, 128}
    assert {p.nheads for p in found} == {8, 32}
    assert {p.nheads // (p.nheads_kv or p.nheads) for p in found} == {1, 4, 8}
    decoding = problems("causal_attention", "decode", "cuda", "attention")
    assert max(p.seqlen for p in decoding) == 131_072
    statistics = problems("attention_statistics", "forward", "cuda", "attention")
    assert {str(p) for p in statistics} & {str(p) for p in found}  # their times are compared
    for grid in kernel_problems.GRIDS:
        for operator, modes in MODES.items():
            for mode in modes:
                listed = problems(operator, mode, "cuda", grid)
                assert len(listed) == len(set(map(str, listed)))


def test_ratios_to_the_peer_are_a_picture_an_operator(tmp_path):
    rows = [
        made(impl, [n * factor, 1.1 * n * factor], f"b1-l{n}-d{d}", dtype=dtype, mode=mode)
        for impl, factor in (("triton", 1e-3), ("mamba-ssm", 2e-3), ("copy", 1e-4))
        for n in (512, 2048, 8192) for d in (64, 128) for dtype in ("bf16", "fp32") for mode in ("forward", "backward")
    ]  # fmt: skip
    rows += [made("triton", [1.0], "b1-h8-l512-d64", operator="causal_attention"),
             made("sdpa.efficient", [3.0], "b1-h8-l512-d64", operator="causal_attention"),
             made("torch", [], "b2-l512-d64")]  # fmt: skip
    found = ratio_figure.panels("selective_scan", rows)
    assert set(found) == {(d, m) for d in ("bf16", "fp32") for m in ("forward", "backward")}
    points = found["bf16", "forward"]["b1-d64"]
    assert [size for size, _ in points] == [512, 2048, 8192]
    assert all(interval.ratio == pytest.approx(2) for _, interval in points)
    (point,) = ratio_figure.panels("causal_attention", rows)["fp32", "forward"]["h8-d64"]
    assert point[1].ratio == pytest.approx(3)
    assert ratio_figure.write(rows, tmp_path) == [
        "ratios-selective_scan.png",
        "ratios-causal_attention.png",
    ]
    assert all(
        (tmp_path / name).stat().st_size > 10_000 for name in ratio_figure.write(rows, tmp_path)
    )
    assert ratio_figure.goal("selective_scan", "bf16", "forward") == 1.5
    assert ratio_figure.goal("causal_attention", "fp32", "forward") == 2.0
    assert kernel_figure.place(rows[0])[:2] == ("b1-d64", 512)
