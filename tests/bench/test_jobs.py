"""What a worker process does with one cell, run in this process on a tiny model."""

import itertools

import pytest
import torch

from bench import jobs, parity
from bench.jobs import Lab, rules, warm_ups
from bench.options import make_parser, resolve
from bench.plan import Cell
from bench.planning import create, make_plan

PREPARE = {"cells": [], "memory": [], "skip": []}


class Events(list):
    def send(self, event, **fields):
        self.append({"event": event, **fields})

    def records(self):
        return [event["record"] for event in self if event["event"] == "record"]


def resolved(*options):
    args = make_parser("").parse_args(
        ["--preset", "tiny", "--device", "cpu", "--budget", "0.01", *options]
    )
    return resolve(args, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("jobs") / "run"
    options = ["--arch", "llama", "--impl", "torch,hf", "--seqlens", "8,16", "--batch", "1,2"]
    create(path, *make_plan(resolved(*options)))
    Lab(path).prepare(PREPARE, Events())
    return path


@pytest.fixture
def lab(run):
    return Lab(run)


def round_(lab, number=0):
    """The events of one round of every cell."""
    events = Events()
    lab.round({"round": number, "cells": [[i, i] for i in range(len(lab.plan.cells))]}, events)
    return events


def test_a_round_warms_up_first_and_announces_every_cell(lab):
    events = round_(lab, 3)
    kinds = [event["event"] for event in events]
    assert kinds == ["step"] * 2 + ["cell", "record"] * 8
    groups = [["warm", "llama", impl, "fp32", "prefill"] for impl in ("torch", "hf")]
    assert [event["step"] for event in events[:2]] == groups
    for index, record in enumerate(events.records()):
        assert record["status"] == "ok"
        assert (record["round"], record["order"]) == (3, index)
        assert Cell(**record["cell"]) == lab.plan.cells[index]
        assert record["memory_bytes"]["peak_allocated"] is None  # in the first round only
    assert {
        r["kernels"]["causal_attention"] for r in events.records() if r["cell"]["impl"] == "hf"
    } == {"transformers.eager"}


def test_memory_is_measured_before_the_rounds_and_recorded_in_the_first(lab, run):
    lab.prepare(
        PREPARE | {"memory": [0, 3, 7], "skip": [["memory", lab.plan.cells[7].id]]}, Events()
    )
    held = [r["memory_bytes"] for r in round_(lab, 0).records()]
    peaks = [
        None if h["peak_allocated"] is None else h["peak_allocated"] - h["weights"] for h in held
    ]
    assert [peak is None for peak in peaks] == [False, True, True, False, True, True, True, True]
    assert peaks[3] > 2 * peaks[0] > 0  # twice the tokens of two rows
    assert all(
        h["peak_allocated"] is None for r in round_(lab, 1).records() for h in [r["memory_bytes"]]
    )


def test_a_cell_that_fails_parity_is_an_error_and_is_never_timed(lab, monkeypatch):
    monkeypatch.setattr(jobs, "sample", lambda *args: pytest.fail("it was timed"))
    honest = parity.check

    def off(reference, hidden, logits, seqlen):
        return honest(reference, hidden * 1.001, logits, seqlen)

    monkeypatch.setattr(parity, "check", off)
    for record in round_(lab).records():
        assert record["status"] == "error"
        assert record["reason"].startswith("parity failed at ")
        assert not record["parity"]["passed"]
        assert record["time_ms"] is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "oom",
            "OutOfMemoryError: CUDA out of memory",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "oom",
            "RuntimeError: DefaultCPU",
        ),
        (ZeroDivisionError("on\ntwo lines"), "error", "ZeroDivisionError: on two lines"),
    ],
)
def test_an_exception_costs_its_own_cell_only(lab, monkeypatch, capsys, error, status, reason):
    calls = itertools.count()
    honest = jobs.sample

    def sometimes(*args):
        if next(calls) == 1:
            raise error
        return honest(*args)

    monkeypatch.setattr(jobs, "sample", sometimes)
    records = round_(lab).records()
    assert [r["status"] for r in records] == ["ok", status] + ["ok"] * 6
    assert records[1]["reason"].startswith(reason)
    assert type(error).__name__ in capsys.readouterr().err  # the traceback, which goes to log.txt
    if status == "oom":
        assert records[1]["memory_bytes"]["weights"] > 1 << 20


def test_what_cannot_be_had_is_unavailable_and_no_error(lab, monkeypatch):
    def refuse(*args):
        raise NotImplementedError("scan: impl 'torch' has\nno backward; use impl='hf'")

    monkeypatch.setattr(jobs, "sample", refuse)
    for record in round_(lab).records():
        assert record["status"] == "unavailable"
        assert record["reason"] == "scan: impl 'torch' has no backward; use impl='hf'"
        assert record["time_ms"] is None


def test_a_reference_that_is_missing_is_said_in_every_cell(lab, run, tmp_path):
    file = run / "references" / "llama-fp32.safetensors"
    file.rename(tmp_path / "away")
    try:
        records = round_(lab).records()
    finally:
        (tmp_path / "away").rename(file)
    assert {r["status"] for r in records} == {"error"}
    assert all("there is no reference of llama in fp32" in r["reason"] for r in records)


def test_references_are_not_computed_twice_and_skipped_on_request(lab, run, monkeypatch):
    monkeypatch.setattr(parity, "compute", lambda *args: pytest.fail("computed again"))
    events = Events()
    lab.prepare(PREPARE, events)
    (run / "references" / "llama-fp32.safetensors").rename(run / "away")
    try:
        lab.prepare(PREPARE | {"skip": [["reference", "llama", "fp32"]]}, events)
    finally:
        (run / "away").rename(run / "references" / "llama-fp32.safetensors")
    assert events == []


def test_proofs_are_shared_by_longer_cells(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    path = tmp_path / "run"
    options = ["--arch", "llama", "--impl", "triton", "--seqlens", "8,64,96,128"]
    create(path, *make_plan(resolved(*options)))
    lab, events = Lab(path), Events()
    proofs = []
    honest = lab._prove
    monkeypatch.setattr(
        lab, "_prove", lambda cell, r: proofs.append(cell.seqlen) or honest(cell, r)
    )
    lab.prepare(PREPARE | {"cells": [[i, i] for i in range(4)]}, events)
    assert proofs == [8, 64]
    records = events.records()
    assert [r["status"] for r in records] == ["interpreted"] * 4
    assert [r["parity"]["seqlen"] for r in records] == [8, 64, 64, 64]
    assert [r["cell"]["seqlen"] for r in records] == [8, 64, 96, 128]
    assert all(r["time_ms"] is None and r["memory_bytes"] is None for r in records)


def test_the_smallest_cell_warms_its_group_up():
    cells = [Cell("mamba", "hf", "tiny", n, b) for n, b in ((64, 1), (16, 2), (16, 1), (32, 1))]
    cells += [Cell("mamba", "hf", "tiny", 8, dtype="bf16")]
    cells += [Cell("mamba", "hf", "tiny", 32, mode="decode")]
    assert warm_ups(cells) == {
        ("mamba", "hf", "fp32", "prefill"): cells[2],
        ("mamba", "hf", "bf16", "prefill"): cells[4],
        ("mamba", "hf", "fp32", "decode"): cells[5],
    }


def test_the_paper_protocol_pads_and_fixes_the_runs(tmp_path):
    path = tmp_path / "run"
    session = tmp_path / "short.txt"
    session.write_text("Therapist: How was your week?\nClient: It was long.\n")
    options = ["--arch", "llama", "--impl", "torch", "--seqlens", "8,64", "--protocol", "paper"]
    args = make_parser("").parse_args(["--preset", "tiny", "--device", "cpu", *options])
    plan, tokens = make_plan(resolve(args, {"sessions": session}))
    assert plan.options["logits"] == "all"
    create(path, plan, tokens)
    lab = Lab(path)
    assert rules(plan, lab.device).exact == (2, 5)
    lab.prepare(PREPARE, Events())
    short, long = round_(lab).records()
    for record in (short, long):
        assert record["status"] == "ok"
        assert (record["stopped_by"], record["warmups"], len(record["time_ms"]["wall"])) == (
            "protocol",
            2,
            5,
        )
    assert short["padded"] == 0
    assert long["padded"] == tokens.padded > 0


@pytest.fixture(scope="module")
def modes(tmp_path_factory):
    """A run of decode and train, prepared with the memory of every cell."""
    path = tmp_path_factory.mktemp("modes") / "run"
    options = ["--arch", "mamba,llama", "--impl", "torch", "--seqlens", "8,16"]
    create(path, *make_plan(resolved(*options, "--mode", "decode,train", "--batch", "2")))
    events = Events()
    Lab(path).prepare(PREPARE | {"memory": list(range(8))}, events)
    return path, events


def test_decode_shares_a_reference_and_train_has_one_a_length(modes):
    path, events = modes
    steps = [event["step"] for event in events if event["step"][0] != "memory"]
    assert [list(step) for step in steps] == [
        *(["reference", arch, "fp32"] for arch in ("mamba", "llama")),
        *(["gradients", arch, "fp32", n, "2"] for n in ("8", "16") for arch in ("mamba", "llama")),
    ]
    assert Lab(path).tokens.shape == (2, 17)
    again = Events()
    Lab(path).prepare(PREPARE, again)
    assert again == []


def test_every_mode_is_proven_and_measured(modes):
    path, _ = modes
    records = round_(Lab(path)).records()
    assert [r["status"] for r in records] == ["ok"] * 8, [r["reason"] for r in records]
    for record in records:
        cell, held = Cell(**record["cell"]), record["memory_bytes"]
        assert record["parity"]["passed"]
        assert record["parity"]["seqlen"] == cell.seqlen
        assert all(t > 0 for t in record["time_ms"]["wall"])
        assert record["kernels"]
        assert (held["cache"] is not None) == (cell.mode == "decode")
        if cell.mode == "decode":
            assert held["peak_allocated"] > held["weights"] + held["cache"]
        else:
            assert held["peak_allocated"] > 2 * held["weights"]  # a gradient for each of them
    caches = {
        (record["cell"]["arch"], record["cell"]["seqlen"]): record["memory_bytes"]["cache"]
        for record in records
        if record["cell"]["mode"] == "decode"
    }
    assert caches["llama", 16] == 2 * caches["llama", 8]
    assert caches["mamba", 16] == caches["mamba", 8]


def test_a_token_that_drifts_is_never_timed(modes, monkeypatch):
    monkeypatch.setattr(jobs, "sample", lambda *args: pytest.fail("it was timed"))
    monkeypatch.setattr("bench.decode.DecodedToken.reset", lambda self: None)
    lab = Lab(modes[0])
    for index, cell in enumerate(lab.plan.cells):
        if (cell.mode, cell.seqlen) == ("decode", 8):
            events = Events()
            lab.round({"round": 0, "cells": [[index, 0]]}, events)
            (record,) = events.records()
            assert record["status"] == "error"
            assert record["reason"].startswith(f"parity failed at {cell.seqlen} tokens")
