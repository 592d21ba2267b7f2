"""The memory model against what the allocator saw, its limits, and the cells that are not tried because of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import memory, memory_model
from bench.cost import sizes
from bench.jobs import Lab
from bench.memory_model import (
    LONGEST,
    cache_bytes,
    compared,
    error_table,
    longest,
    needed_bytes,
    peak_bytes,
)
from bench.modes import bound
from bench.plan import Cell
from models.build import build, parameter_counts
from models.presets import PRESETS

GROUPED = replace(
    PRESETS["tiny"],
    mamba=PRESETS["tiny"].mamba | {"vocab_size": 1000, "state_size": 8, "num_hidden_layers": 3},
    llama=PRESETS["tiny"].llama
    | {"vocab_size": 1000, "num_key_value_heads": 2, "num_hidden_layers": 3},
)


class Built:
    """One model, as `bench.forward.Models` gives it."""

    def __init__(self, model):
        self.model, self.options = model, {}

    def get(self, arch, dtype):
        return self.model


@pytest.fixture(scope="module")
def models():
    return {arch: build(arch, GROUPED) for arch in ("mamba", "llama")}


def size_of(model):
    return sizes(model.config, parameter_counts(model))


@pytest.mark.parametrize("seqlen", [64, 256])
@pytest.mark.parametrize("mode", ["prefill", "decode", "train"])
@pytest.mark.parametrize("impl", ["hf", "torch", "cpu"])
@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_predictions_are_near_the_measured_peaks(models, arch, impl, mode, seqlen):
    if (arch, impl, mode) == ("mamba", "hf", "train"):
        seqlen //= 4  # the gradients of its slices take the square
    model = models[arch]
    cell = Cell(arch, impl, "grouped", seqlen, mode=mode)
    ids = torch.arange(cell.tokens)[None] % 1000
    with bound(Built(model), cell, ids, "last") as (_, work):
        work()
        work.reset()
        if work.held():
            memory.allocator_peak(work)
            work.reset()
        measured = work.held() + memory.allocator_peak(work)
        work.reset()
    weights = memory.weight_bytes(model)
    predicted = peak_bytes(cell, size_of(model), "last") - 4 * parameter_counts(model).total
    assert abs(weights / (4 * parameter_counts(model).total) - 1) < 0.01
    assert 0.7 < predicted / measured < 1.3


def test_the_cache_is_counted_exactly(models):
    for arch, model in models.items():
        cell = Cell(arch, "torch", "grouped", 96, mode="decode")
        ids = torch.arange(cell.tokens)[None]
        with bound(Built(model), cell, ids, "last") as (_, work):
            assert cache_bytes(cell, size_of(model)) == work.cache_bytes


def test_longest_is_the_last_length_that_fits(models):
    size = size_of(models["llama"])
    for impl in ("hf", "torch"):
        cell = Cell("llama", impl, "grouped", 64)
        most = longest(cell, size, 2**30)
        assert needed_bytes(replace(cell, seqlen=most), size) <= 2**30
        assert needed_bytes(replace(cell, seqlen=most + 1), size) > 2**30
    assert longest(cell, size, 1000) == 0
    states = Cell("mamba", "torch", "grouped", 64)
    assert longest(states, size_of(models["mamba"]), 2**30, chunk=64) == LONGEST


def test_chunks_all_logits_and_dtypes_count(models):
    size = size_of(models["llama"])
    cell = Cell("llama", "torch", "grouped", 4096)
    plain = peak_bytes(cell, size)
    assert peak_bytes(cell, size, chunk=256) < plain
    assert peak_bytes(cell, size, logits="all") >= 4096 * 1000 * 4
    assert peak_bytes(replace(cell, dtype="bf16"), size) == pytest.approx(plain / 2)


def test_a_run_shows_the_error_per_implementation(models):
    size = size_of(models["llama"])
    plan = SimpleNamespace(architectures={"llama": {"sizes": size}}, options={"logits": "last"})
    records = []
    for seqlen, factor in ((64, 0.5), (128, 1.0), (256, 2.0)):
        cell = Cell("llama", "torch", "grouped", seqlen)
        weights = 4 * size["total"]
        peak = weights + (peak_bytes(cell, size) - weights) / factor
        held = {"weights": weights, "peak_allocated": peak}
        records.append({"cell": vars(cell), "status": "ok", "memory_bytes": held})
    records.append({"cell": vars(cell), "status": "error"})
    rows = compared(plan, records)
    assert [round(predicted / measured, 6) for _, predicted, measured in rows] == [0.5, 1.0, 2.0]
    table = error_table(rows)
    assert [next(iter(column.cells)) for column in table.columns[3:]] == [
        "3",
        "0.50",
        "1.00",
        "2.00",
    ]


def test_a_run_without_peaks_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        memory_model.main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("device", "try_everything", "hopeless"),
                         [("cpu", False, True), ("cpu", True, False), ("cuda", False, False)])  # fmt: skip
def test_cells_that_exceed_the_memory_of_the_machine_are_not_tried(
    models, device, try_everything, hopeless
):
    plan = SimpleNamespace(
        architectures={"llama": {"sizes": size_of(models["llama"])}},
        options={"logits": "last", "try_everything": try_everything},
    )
    lab = SimpleNamespace(device=torch.device(device), plan=plan)
    reason = Lab._hopeless(lab, Cell("llama", "hf", "grouped", 1 << 22))
    assert bool(reason) == hopeless
    if hopeless:
        assert reason.startswith("predicted ")
        assert "not tried" in reason
    assert Lab._hopeless(lab, Cell("llama", "hf", "grouped", 64)) == ""
