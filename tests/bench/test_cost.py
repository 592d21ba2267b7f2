from dataclasses import replace

import pytest

from bench import calibrate
from bench.cost import (
    CPU,
    FIXED_S,
    Clock,
    cell_seconds,
    clock_of,
    forward_seconds,
    rates_of,
    reference_seconds,
    sizes,
    slower,
    sweep_seconds,
    token_seconds,
    training_seconds,
)
from bench.memory_model import cache_bytes, gradient_bytes
from bench.plan import Cell, Plan, make_cells
from models.build import build, outline, parameter_counts


@pytest.fixture(scope="module")
def architectures():
    models = {arch: build(arch, "tiny") for arch in ("mamba", "llama")}
    return {a: {"sizes": sizes(m.config, parameter_counts(m))} for a, m in models.items()}


@pytest.mark.parametrize("arch", ["mamba", "llama"])
@pytest.mark.parametrize("impl", ["hf", "torch", "cpu"])
def test_longer_cells_cost_more(architectures, arch, impl):
    size = architectures[arch]["sizes"]
    cells = [Cell(arch, impl, "tiny", n) for n in (128, 256, 4096)]
    seconds = [forward_seconds(cell, size, CPU) for cell in cells]
    assert seconds == sorted(set(seconds))


def test_the_time_left_follows_what_was_measured(architectures):
    clock = Clock(architectures, CPU, budget_s=0.3)
    cells = [Cell("mamba", "hf", "tiny", n) for n in (128, 256)]
    other = Cell("llama", "torch", "tiny", 128)
    guess = clock.expect(cells[1])
    clock.observe(cells[0], 100.0)
    assert clock.expect(cells[0]) == 100.0
    assert clock.expect(cells[1]) > 10 * guess  # a relative of a slow cell is slow
    clock.observe(other, 1.0)
    assert clock.expect(other) == 1.0
    assert clock.expect(cells[0]) == 100.0
    assert clock.remaining({0: [], 1: []}) == 0
    assert clock.remaining({0: [other], 1: [other]}) == 2 * (FIXED_S + 1.0)
    assert clock.remaining({0: [other], 1: [other]}, begun={0}) == FIXED_S + 2.0


@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_modes_cost_what_they_do(architectures, arch):
    size = architectures[arch]["sizes"]
    prefill, decode, train = (
        Cell(arch, "torch", "tiny", 2048, mode=mode) for mode in ("prefill", "decode", "train")
    )
    token, step = token_seconds(decode, size, CPU), training_seconds(train, size, CPU)
    assert token < forward_seconds(prefill, size, CPU) < step
    assert cell_seconds(decode, size, CPU, 0.01) > forward_seconds(prefill, size, CPU) + token
    grows = cache_bytes(replace(decode, seqlen=4096), size) / cache_bytes(decode, size)
    assert grows == (2 if arch == "llama" else 1)
    needs = [gradient_bytes(arch, n, 1, size) for n in (512, 1024)]
    assert needs[1] > needs[0] > 4 * 512 * size["vocab"] * 8
    key = arch, "fp32", 512, 1
    assert reference_seconds([key, key], architectures, CPU) == 2 * reference_seconds(
        [key], architectures, CPU
    )


def test_a_mode_says_nothing_of_another(architectures):
    clock = Clock(architectures, CPU, budget_s=0.3)
    decode, train = (Cell("mamba", "hf", "tiny", 128, mode=m) for m in ("decode", "train"))
    guess = clock.expect(train)
    clock.observe(decode, 100.0)
    assert clock.expect(train) == guess


PEAKS = {"matmul_flops": {"fp32": 2.047e11}, "copy_bytes_per_s": 4.8e10}  # of two cores of an EPYC


def plan_of(preset, seqlens, rounds, modes=("prefill",), budget=0.06):
    architectures = {
        arch: {"sizes": sizes(model.config, parameter_counts(model))}
        for arch in ("mamba", "llama")
        for model in [outline(arch, preset)]
    }
    impls = ("triton", "cuda", "torch", "cpu", "hf")
    cells = make_cells(("mamba", "llama"), impls, preset, seqlens, [1], ["fp32"], ["eager"], modes)
    options = {"device": "cpu", "budget": budget, "logits": "last", "vocabulary": 32_000, "seed": 0}
    options |= {"preset": preset, "checkpoint": {}, "threads": 1}
    return Plan(cells, rounds, 0, "lab", preset, options, architectures)


def test_the_parts_of_a_measured_sweep_are_predicted():
    """The default sweep on two quiet cores: 65 s of preparing, rounds of 31 s and 8 s around them, 43 s of metrics,
    16 s of report, 6 s of the sweep itself."""
    plan = plan_of("paper-50m", (128, 181, 256, 362, 512, 724, 1024, 1448, 2048), 5)
    parts = sweep_seconds(plan, clock_of(plan, PEAKS), "small", "none", peaks=PEAKS)
    assert parts["cells"] == pytest.approx(5 * 31, rel=0.15)
    assert parts["metrics"] == pytest.approx(43, rel=0.15)
    assert parts["report"] == pytest.approx(16, rel=0.15)
    assert sum(parts.values()) == pytest.approx(325, rel=0.15)


def test_what_is_finished_costs_nothing():
    plan = plan_of("tiny", (64, 128), 2)
    clock = clock_of(plan, PEAKS)
    finished = {(cell, r) for cell in plan.cells for r in range(2)}
    parts = sweep_seconds(plan, clock, "none", "none", finished, PEAKS)
    assert (parts["cells"], parts["processes"], parts["metrics"]) == (0, 0, 0)
    assert "references" not in parts
    one_round = {(cell, 0) for cell in plan.cells}
    left = sweep_seconds(plan, clock, "none", "none", one_round, PEAKS)
    whole = sweep_seconds(plan, clock, "none", "none", peaks=PEAKS)
    assert left["cells"] == pytest.approx(whole["cells"] / 2)
    assert set(whole) - set(left) == {"references", "memory", "proofs"}


def test_a_slower_machine_takes_longer(architectures):
    size = architectures["mamba"]["sizes"]
    for mode, work in (("prefill", forward_seconds), ("decode", token_seconds)):
        cell = Cell("mamba", "hf", "tiny", 128, mode=mode)
        assert work(cell, size, slower(CPU, 3.0)) == pytest.approx(3 * work(cell, size, CPU))
    plan = plan_of("tiny", (64,), 1)
    assert rates_of(plan, PEAKS).flops < PEAKS["matmul_flops"]["fp32"]
    assert rates_of(plan) is CPU


def test_a_factor_of_calibration_reaches_its_kind_only():
    plan = plan_of("tiny", (2048,), 1, budget=1e-6)
    cells = {cell.impl: cell for cell in plan.cells if cell.arch == "mamba"}
    plain, scaled = clock_of(plan), clock_of(plan, None, {("mamba", "hf", "prefill"): 10.0})
    assert scaled.expect(cells["hf"]) > 4 * plain.expect(cells["hf"])
    assert scaled.expect(cells["torch"]) == plain.expect(cells["torch"])


def test_calibrating_runs_every_kind_and_fills_in_the_rest(monkeypatch):
    plan = plan_of("tiny", (64, 128), 1, ("prefill", "train"))
    kinds = calibrate.kinds(plan)
    assert {(cell.seqlen, cell.preset) for cell in kinds.values()} == {(64, "tiny@2")}
    assert len(kinds) == 2 * 3 * 2  # triton is interpreted, cuda unavailable
    monkeypatch.setattr(calibrate, "measure_peaks", lambda device: PEAKS)
    monkeypatch.setattr(calibrate, "SECONDS", 0.0)
    took = iter([0.1])
    monkeypatch.setattr(calibrate, "fastest", lambda *_: next(took))
    monkeypatch.setattr(calibrate.time, "perf_counter", iter([0.0, 0.0, 1.0]).__next__)
    peaks, factors = calibrate.calibrate(plan)
    assert peaks == PEAKS
    assert factors.keys() == kinds.keys()
    assert len(set(factors.values())) == 1  # one was measured, and stands for the others


def test_a_kind_is_timed_with_its_own_model():
    plan = plan_of("tiny", (64,), 1)
    kind = calibrate.kinds(plan)["llama", "torch", "prefill"]
    models = calibrate.Models(plan.options, "cpu").of(calibrate.LAYERS)
    assert 0 < calibrate.fastest(models, kind, plan.options) < 10
