"""Chunked prefills in the sweep and in bench.long_context: what is proven, predicted, timed and kept."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import long_case, long_context, memory, references
from bench.cost import sizes
from bench.forward import ChunkedForward, EagerForward, Models
from bench.long_case import Case
from bench.modes import bound
from bench.options import given, make_parser, resolve
from bench.plan import Cell, Plan, PlanError
from bench.references import References
from models.bind import use
from models.build import build, parameter_counts
from models.chunked import cache_tensors, prefill
from models.presets import PRESETS

ROOT = Path(__file__).parents[2]
ARCHS = ("mamba", "llama")
OPTIONS = {"checkpoint": {}, "preset": "tiny", "vocabulary": 32_000, "seed": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def resolved(*argv):
    parser = make_parser("")
    return resolve(parser.parse_args(argv), given(parser, argv))


def test_the_chunk_is_an_option_of_the_plan():
    assert resolved("--chunk", "512")["chunk"] == 512
    assert resolved()["chunk"] is None


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--mode", "decode"], "only a prefill"),
        (["--launch", "eager,graph"], "CUDA graph"),
        (["--protocol", "paper"], "one pass"),
    ],
)
def test_a_chunk_that_means_nothing_is_refused(argv, what):
    with pytest.raises(PlanError, match=f"--chunk 64: .*{what}") as error:
        resolved("--chunk", "64", *argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_cell_of_a_chunked_run_is_proven_as_far_as_float64_goes(arch, tmp_path, monkeypatch):
    monkeypatch.setitem(references.PROVEN, "cpu", 20)
    monkeypatch.setattr(references, "BEYOND", 4)
    models = Models(OPTIONS | {"chunk": 7, "seqlens": [15, 50], "mode": ["prefill"]}, "cpu")
    ids = torch.randint(0, 32_000, (2, 50), generator=torch.Generator().manual_seed(0))
    cells = [Cell(arch, "torch", "tiny", n, 2) for n in (15, 50)]
    (tmp_path / "references").mkdir()
    for chunk, proven in ((7, 20), (30, 34)):  # beyond the first chunk in any case
        models.options["chunk"] = chunk
        plan = Plan(cells, 1, 0, "lab", "tiny", models.options)
        found = References(tmp_path, plan, models, ids)
        found.compute(("reference", arch, "fp32"), cells)
        for cell in cells:
            with bound(models, cell, ids[:, : cell.tokens], "last") as (_, work):
                assert type(work) is ChunkedForward
                hidden, logits, kernels = work.outputs()
            assert kernels
            assert hidden.shape[1] == cell.seqlen
            checked = found.check(cell, hidden, logits)
            assert checked["passed"]
            assert checked["seqlen"] == min(cell.seqlen, proven)
    models.options["chunk"] = None
    with bound(models, cells[0], ids[:, :15], "last") as (_, work):
        assert type(work) is EagerForward


def counted(model, impl, dtype, batch, seqlen, chunk):
    case = Case(model.config.model_type, impl, "tiny", dtype, batch, seqlen, chunk)
    return long_case.predicted(case, sizes(model.config, parameter_counts(model)))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("impl", ["cpu", "torch", "hf"])
@pytest.mark.parametrize(("seqlen", "chunk", "batch"), [(1024, 128, 1), (512, 128, 2)])
def test_the_predicted_memory_is_near_the_measured_one(arch, impl, seqlen, chunk, batch):
    if arch == "mamba" and impl == "hf":
        seqlen = chunk  # it takes one chunk only
    model, ids = build(arch, "tiny"), torch.zeros(batch, seqlen, dtype=torch.int64)
    needs = counted(model, impl, "fp32", batch, seqlen, chunk)
    with use(model, impl):
        cache = prefill(model, ids, chunk).cache
        assert memory.storage_bytes(cache_tensors(cache)) == needs["cache"]
        del cache
        measured = memory.allocator_peak(lambda: prefill(model, ids, chunk))
    assert 2 / 3 < sum(needs.values()) / measured < 3 / 2


@pytest.mark.parametrize("arch", ARCHS)
def test_a_cache_in_half_precision_is_counted_exactly(arch):
    model, ids = build(arch, "tiny", dtype=torch.bfloat16), torch.zeros(2, 9, dtype=torch.int64)
    with use(model, "torch"):
        held = memory.storage_bytes(cache_tensors(prefill(model, ids, 4).cache))
    assert held == counted(model, "torch", "bf16", 2, 9, 4)["cache"]


def command(out, *argv):
    said = ["--preset", "tiny", "--impl", "cpu,hf", "--seqlens", "70,130", "--chunk", "32"]
    return [*said, "--out", str(out), *argv]


def rows_of(out):
    return long_context.read_rows(out / "long.jsonl")


def test_a_run_is_proven_timed_and_resumed(tmp_path, capsys):
    out = tmp_path / "long"
    assert long_context.main(command(out, "--seqlens", "70")) == 0
    before = rows_of(out)
    assert long_context.main(command(out)) == 0
    rows = rows_of(out)
    assert rows[: len(before)] == before
    assert len(rows) == 8
    assert {(r["arch"], r["impl"], r["seqlen"]) for r in rows} == {
        (arch, impl, n) for arch in ARCHS for impl in ("cpu", "hf") for n in (70, 130)
    }
    for row in rows:
        if (row["arch"], row["impl"]) == ("mamba", "hf"):
            assert row["status"] == "unavailable"
            assert "use impl 'torch'" in row["reason"]
            assert not row["chunk_ms"]
            continue
        assert row["status"] == "ok", row["reason"]
        assert len(row["chunk_ms"]) == -(-row["seqlen"] // 32)
        assert row["seconds"] == pytest.approx(sum(row["chunk_ms"]) / 1e3)
        assert row["tokens_per_s"] == pytest.approx(row["seqlen"] / row["seconds"])
        assert row["parity"]["passed"]
        assert row["parity"]["seqlen"] == row["seqlen"]
        assert row["parity"]["chunk"] == min(32, row["seqlen"] // 3 + 1)
        assert row["kernels"]
        predicted = row["memory_bytes"]["predicted"]["cache"]
        assert row["memory_bytes"]["cache"] == predicted
    said = capsys.readouterr()
    assert "mamba hf, 130 tokens: unavailable, impl 'hf'" in said.out
    text = (out / "long.md").read_text()
    assert text.count("\n| llama") == 4
    assert text.count("\n| mamba") == 2
    assert (out / "long.png").stat().st_size > 5000


def test_more_positions_than_the_preset_has_are_no_obstacle():
    longest = 2 * PRESETS["tiny"].llama["max_position_embeddings"]
    lab = long_context.Lab(long_context.make_parser().parse_args(["--preset", "tiny"]), longest)
    assert lab._get("llama").config.max_position_embeddings == longest
    assert lab._get("mamba").config.model_type == "mamba"


def test_a_wrong_output_is_not_timed(tmp_path, monkeypatch):
    honest = long_case.ChunkedForward.__call__
    monkeypatch.setattr(long_case.ChunkedForward, "__call__", lambda self: honest(self) + 1e-2)
    long_context.main(command(tmp_path, "--impl", "cpu", "--seqlens", "70"))
    for row in rows_of(tmp_path):
        assert row["status"] == "error"
        assert "error of logits" in row["reason"]
        assert not row["chunk_ms"]
        assert row["seconds"] is None


def test_a_case_that_takes_too_long_keeps_its_curve(tmp_path):
    long_context.main(
        command(tmp_path, "--impl", "cpu", "--seqlens", "130", "--case-timeout", "1e-9")
    )
    for row in rows_of(tmp_path):
        assert (row["status"], row["reason"]) == ("timeout", "32 tokens were read in 0 s")
        assert len(row["chunk_ms"]) == 1


def test_a_case_that_would_not_fit_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(long_case, "measure", None)
    long_context.main(command(tmp_path, "--impl", "cpu", "--seqlens", "5000", "--chunk", "4096"))
    rows = rows_of(tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert row["status"] == "unavailable"
        assert "it would take about" in row["reason"]
        assert "of 0.0 GiB that are free" in row["reason"]


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--chunk", "0"], "argument --chunk: 0 is less than 1"),
        (["--seqlens", "70,x"], "argument --seqlens: 'x' is not a whole number"),
        (["--preset", "mamba-130m"], "--preset mamba-130m: it has no llama"),
    ],
)
def test_bad_options_are_one_line(argv, what, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        long_context.main(command(tmp_path, *argv))
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert what in said
    assert said.count("\n") == 1


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "long.jsonl").write_text("{\n{}\n")
    for out, what in ((tmp_path / "file", "cannot be made"), (tmp_path, "has a broken line")):
        with pytest.raises(SystemExit):
            long_context.main(command(out))
        said = capsys.readouterr().err
        assert f"--out {out}: " in said
        assert what in said
        assert said.count("\n") == 1


def test_torchrun_cuts_the_sequence_over_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", port, "-m", "bench.long_context",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [*launcher, *command(tmp_path, "--impl", "cpu", "--seqlens", "71", "--balanced")],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path)
    assert [(row["arch"], row["processes"], row["chunk"]) for row in rows] == [
        ("mamba", 2, None), ("llama", 2, None),
    ]  # fmt: skip
    for row in rows:
        assert row["status"] == "ok", row["reason"]
        assert row["parity"]["passed"]
        assert row["parity"]["outputs"].keys() == {"hidden", "logits"}
        assert row["tokens_per_s"] > 0
    assert json.dumps(rows)
    assert done.stdout.count("mamba") == 1
