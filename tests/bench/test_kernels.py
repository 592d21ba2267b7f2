"""The benchmark of the operators: its rows are checked before they are timed, and kept."""

import json

import pytest
import torch

import kernels as operators
from bench import contenders, kernel_figure, kernel_problems, kernel_table, kernel_trial, kernels
from bench.contenders import Contender
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.implementations import interpreted
from kernels.selective_scan.problem import SelectiveScanProblem

CPU = torch.device("cpu")
SCAN = SelectiveScanProblem(batch=1, seqlen=33, dim=16, dstate=4)
CONV = CausalConv1dProblem(batch=1, dim=16, seqlen=21)
UPDATE = ConvUpdateProblem(batch=2, dim=16)
ATTENTION = CausalAttentionProblem(batch=1, nheads=2, nheads_kv=1, seqlen=17, headdim=16)
PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e11}, "exp_per_s": 1e9}


@pytest.fixture
def small_grids(monkeypatch):
    """One small problem an operator and three contenders, so that a run takes a moment."""
    grids = {"selective_scan": (SCAN,), "causal_conv1d": (CONV,), "causal_conv1d_update": (UPDATE,)}
    monkeypatch.setattr(kernels, "problems", lambda operator, *rest: grids[operator])
    only(monkeypatch, "torch", "hf", "copy")
    return grids


def only(monkeypatch, *names):
    real = contenders.contenders
    monkeypatch.setattr(
        kernels, "contenders", lambda *where: [c for c in real(*where) if c.name in names]
    )


def measure(operator, mode, problem, blocks=2, samples=2):
    rows = kernels.measure_problem(
        operator, mode, problem, "fp32", CPU, PEAKS, blocks=blocks, samples=samples
    )
    return {row["impl"]: row for row in rows}


def test_every_implementation_has_a_row_checked_or_explained():
    by_name = measure("selective_scan", "forward", SCAN)
    assert set(by_name) == {"triton", "cuda", "torch", "cpu", "hf", "mamba-ssm", "copy"}
    for name in ("torch", "cpu", "hf"):
        row = by_name[name]
        assert row["status"] == "ok"
        assert row["error_over_bound"] <= 1
        assert [len(block) for block in row["samples_ms"]] == [2, 2]
    assert by_name["copy"]["error_over_bound"] is None
    assert by_name["copy"]["samples_ms"]
    assert by_name["cuda"]["status"] == by_name["mamba-ssm"]["status"] == "unavailable"
    assert "no CUDA device" in by_name["cuda"]["reason"]
    assert by_name["cpu"]["kernel"] == "numba.selective_scan"
    triton = by_name["triton"]
    assert triton["samples_ms"] == []
    if interpreted():
        assert triton["status"] == "interpreted"
        assert triton["error_over_bound"] <= 1


def test_gradients_are_checked_and_timed_alone():
    by_name = measure("causal_conv1d", "backward", CONV)
    assert by_name["torch"]["status"] == by_name["cpu"]["status"] == "ok"
    assert by_name["cpu"]["kernel"] == "numba.causal_conv1d_backward"
    assert by_name["copy"]["samples_ms"]
    assert by_name["torch"]["bytes"] == CONV.backward_bytes(torch.float32)
    assert by_name["torch"]["flops"] == CONV.backward_flops()
    trial = kernel_trial.start(
        lambda x, weight, bias, **rest: x * weight[:, :1] + bias[:, None],
        "backward",
        CONV.inputs(torch.float32, CPU) | {"initial_state": None},
        lambda t: t.contiguous(),
    )
    again = dict(zip(trial.outputs, trial.repeat(), strict=True))
    assert set(again) == {"x", "weight", "bias"}
    assert all(torch.equal(again[name], trial.outputs[name]) for name in again)


def test_one_wrong_gradient_is_enough():
    def forgets_the_bias(x, weight, bias, initial_state, activation):
        return operators.causal_conv1d(
            x, weight, bias + 0 * bias.detach() * bias, initial_state, activation=activation, impl="torch"
        ) - 0.5 * (bias - bias.detach())[:, None]  # fmt: skip

    truth = kernel_trial.truth("causal_conv1d", CONV, "backward", torch.float32, CPU)
    trial = kernel_trial.start(forgets_the_bias, "backward", CONV.inputs(torch.float32, CPU))
    worst, found = kernel_trial.worst_error(trial.outputs, *truth, "backward")
    assert worst > 1
    assert found.startswith("bias: ")


def test_a_decoding_step_is_checked_with_the_state_that_it_leaves():
    by_name = measure("causal_conv1d_update", "decode", UPDATE)
    assert by_name["torch"]["status"] == by_name["cpu"]["status"] == by_name["hf"]["status"] == "ok"

    def keeps_its_state(conv_state, **inputs):
        return operators.causal_conv1d_update(conv_state=conv_state.clone(), **inputs, impl="torch")

    inputs = UPDATE.inputs(torch.float32, CPU)
    before = inputs["conv_state"].clone()
    truth = kernel_trial.truth("causal_conv1d_update", UPDATE, "decode", torch.float32, CPU)
    trial = kernel_trial.start(keeps_its_state, "decode", inputs)
    worst, found = kernel_trial.worst_error(trial.outputs, *truth, "decode")
    assert worst > 1
    assert found.startswith("conv_state: ")
    assert torch.equal(inputs["conv_state"], before)  # everybody has a state of its own


def test_attention_of_the_last_query_is_decoding():
    problem = CausalAttentionProblem(2, 4, 33, 16, 2, seqlen_q=1)
    by_name = measure("causal_attention", "decode", problem)
    assert by_name["torch"]["status"] == "ok"
    assert by_name["flex"]["reason"] == "its kernels take CUDA tensors, and this runs on a cpu"
    assert {"sdpa.flash", "sdpa.cudnn", "sdpa.efficient", "flash-attn-2"} < set(by_name)
    assert {"flash-attn-3", "flash-attn-4"} < set(by_name)


def test_peers_say_what_they_cannot_take():
    flash = contenders.SDPA[0]  # the one of torch's that has a form for CPUs
    inputs = ATTENTION.inputs(torch.float32, CPU)
    found = kernel_trial.start(flash.run, "forward", inputs).outputs
    truth = kernel_trial.truth("causal_attention", ATTENTION, "forward", torch.float32, CPU)
    assert kernel_trial.worst_error(found, *truth, "forward")[0] <= 1
    assert not contenders._installed("flash_attn.cute_of_nobody")
    with pytest.raises(
        NotImplementedError, match=r"takes float16 and bfloat16, got torch\.float32"
    ):
        contenders._flash_attention(None, **inputs)


def test_a_wrong_kernel_is_never_timed(monkeypatch):
    wrong = Contender("wrong", lambda u, **inputs: u * 2)
    monkeypatch.setattr(kernels, "contenders", lambda *where: [wrong])
    row = measure("selective_scan", "forward", SCAN)["wrong"]
    assert row["status"] == "error"
    assert "accuracy rule: output: " in row["reason"]
    assert row["samples_ms"] == []


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_a_peer_that_breaks_is_a_row(monkeypatch, mode):
    def broken(**inputs):
        raise RuntimeError("CUDA error: no kernel image")

    monkeypatch.setattr(kernels, "contenders", lambda *where: [Contender("broken", broken)])
    row = measure("selective_scan", mode, SCAN)["broken"]
    assert (row["status"], row["samples_ms"]) == ("error", [])
    assert "no kernel image" in row["reason"]


def test_who_is_slow_has_fewer_samples_but_every_pair_counts():
    assert kernels._plan(0.001, 10, 5, CPU) == (10, 5)
    assert kernels._plan(10.0, 10, 5, CPU) == (10, 2)  # 0.25 s
    assert kernels._plan(60.0, 10, 5, CPU) == (4, 1)
    assert kernels._plan(1e5, 10, 5, CPU) == (3, 1)
    rows = [made(impl, times) for impl, times in (("triton", [1, 2, 4, 9, 9]), ("hf", [2, 4, 8]))]
    interval, base = kernel_table.ratio_to(rows, rows[1])
    assert base == "triton"
    assert (interval.ratio, interval.n) == (pytest.approx(2), 3)


def made(impl, times, problem="b1-l512-d64", **fields):
    return {
        "operator": "selective_scan", "mode": "forward", "problem": problem, "dtype": "fp32", "impl": impl,
        "status": "ok", "reason": "", "kernel": "k", "error_over_bound": 0.5, "flops": 1, "bytes": 1,
        "floor_ms": 0.5, "bound": "memory", "floor_missing": [], "samples_ms": [[t] for t in times],
    } | fields  # fmt: skip


def test_long_problems_are_checked_on_a_shorter_copy():
    long = SelectiveScanProblem(8, 1 << 17, 64)
    assert kernel_trial.checked_problem(long, "backward", CPU).seqlen == 256
    assert kernel_trial.checked_problem(long, "backward", CPU).batch == 2
    assert kernel_trial.checked_problem(UPDATE, "decode", CPU) == UPDATE


def test_rows_have_the_floor_of_their_problem():
    rows = list(measure("selective_scan", "forward", SCAN, 1, 1).values())
    for row in rows:
        # 33 tokens of 16 channels with 4 states, 2 for softplus, 2 for the gate
        assert row["floor_ms"] == pytest.approx(1e3 * 33 * 16 * 8 / 1e9)
        assert (row["bound"], row["floor_missing"]) == ("exponential", [])
    timed = dict(rows[0], samples_ms=[[0.008448, 9.0, 0.0], [0.008448]])
    assert kernels.share_of_floor(timed) == "50 % exponential"
    assert kernels.share_of_floor(dict(timed, samples_ms=[])) == ""
    assert kernel_table.left_out(rows) == ""
    missing = [dict(timed, floor_missing=["matrix"])]
    assert "leave out the matrix term" in kernel_table.left_out(missing)
    # a file from before there were floors
    assert kernels.share_of_floor({"samples_ms": [[1.0]]}) == ""


def test_the_picture_shows_the_shape_with_most_sizes(tmp_path):
    rows = [
        made(impl, [n * factor, 1.1 * n * factor], f"b1-l{n}-d64")
        for impl, factor in (("triton", 1e-3), ("hf", 1e-2), ("copy", 1e-4), ("somebody", 1e-1))
        for n in (512, 1024, 2048)
    ]
    rows += [made("triton", [7.0], "b8-l512-d64"), made("torch", [], "b1-l512-d64")]
    rows += [
        made("triton", [1, 2], f"b{b}-d64-w4", operator="causal_conv1d_update") for b in (1, 8)
    ]
    panels = kernel_figure._panels([row for row in rows if row["samples_ms"]])
    assert [(size, len(chosen)) for _, size, chosen in panels] == [("tokens", 12), ("batch", 2)]
    assert panels[0][0] == "selective_scan, forward\nb1-d64"
    assert kernel_figure.write(rows, tmp_path) == ["kernels-fp32.png"]
    assert (tmp_path / "kernels-fp32.png").stat().st_size > 10_000
    assert kernel_figure.write([made("torch", [])], tmp_path) == []


def test_the_markdown_has_a_line_a_time_and_a_reason_an_absence():
    rows = [
        made("triton", [1.0, 1.0]),
        made("hf", [2.0, 2.0]),
        made("cuda", [], status="unavailable", reason="selective_scan: impl 'cuda' is unavailable, because x"),
        made("flex", [], status="error", reason="fails | so"),
    ]  # fmt: skip
    text = kernel_table.markdown(rows, PEAKS)
    assert "time / triton" in text
    assert "| hf | 2 | 5e-10 | 5e-07 | 25 % memory | 2.00 (2.00..2.00) | 0.50 | k |" in text
    assert "- cuda: x" in text
    assert "error: fails / so" in text
    assert "a copy moves 10 GB/s" in text


def test_a_second_call_measures_only_what_is_missing(tmp_path, small_grids, monkeypatch):
    first = kernels.run(
        ["selective_scan"], ["fp32"], CPU, PEAKS, tmp_path, progress=False, modes=["forward"]
    )
    measured = []
    real = kernels.measure_problem
    monkeypatch.setattr(
        kernels,
        "measure_problem",
        lambda operator, mode, *rest, **how: measured.append((operator, mode)) or real(operator, mode, *rest, **how),
    )  # fmt: skip
    both = kernels.run(list(small_grids), ["fp32"], CPU, PEAKS, tmp_path, progress=False)
    assert measured == [
        ("selective_scan", "backward"),
        ("causal_conv1d", "forward"),
        ("causal_conv1d", "backward"),
        ("causal_conv1d_update", "decode"),
    ]
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


def test_a_file_from_before_there_were_modes_has_forwards(tmp_path):
    row = made("triton", [1.0])
    del row["mode"]
    (tmp_path / "kernels.jsonl").write_text(json.dumps({"rows": [row]}) + "\n")
    assert kernels.read_rows(tmp_path / "kernels.jsonl") == [row | {"mode": "forward"}]


def test_the_command_prints_a_table_and_keeps_a_picture(small_grids, capsys, tmp_path):
    options = ["--operator", "selective_scan", "--mode", "forward", "--out", str(tmp_path)]
    assert kernels.main(options) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "kernels.jsonl", "kernels.md", "kernels-fp32.png", "peaks.json",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert str(SCAN) in out
    assert "a copy moves" in out
    assert "floors leave out the exponential term" in out
    assert "share of floor" in out
    assert "% memory" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--operator", "mlp"], "mlp"),
        (["--mode", "sideways"], "sideways"),
        (["--dtype", "int8"], "int8"),
        (["--dtype", ""], "--dtype"),
        (["--seqlen", "1,0"], "--seqlen"),
        (["--batch", "x"], "--batch"),
        (["--contender", "triton,nobody"], "'nobody' is unknown"),
        (["--out", "/dev/null/x"], "--out /dev/null/x: cannot be made"),
    ],
)
def test_bad_arguments_are_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        kernels.main(arguments)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_every_grid_covers_every_operator_and_mode():
    for operator, modes in kernel_problems.MODES.items():
        for mode in modes:
            for place in (("cpu",), ("cuda", "quick"), ("cuda", "full")):
                found = kernel_problems.problems(operator, mode, *place)
                assert len(found) == len(set(map(str, found))) >= 2
    full = kernel_problems.problems("selective_scan", "backward", "cuda", "full")
    assert {p.seqlen for p in full} == {512 << n for n in range(9)}
    assert {p.dim for p in full} == {1024, 2048, 5120}
    assert {p.dstate for p in full} == {16, 64, 128}


def test_sizes_of_ones_own():
    found = kernel_problems.resized((SCAN, SCAN), [5, 6], [1, 2])
    assert [(p.seqlen, p.batch) for p in found] == [(5, 1), (6, 1), (5, 2), (6, 2)]
    assert kernel_problems.resized((UPDATE, UPDATE), [5, 6]) == (UPDATE,)
    assert kernel_problems.resized((SCAN, SCAN)) == (SCAN, SCAN)
