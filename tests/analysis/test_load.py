import json
import math

import numpy as np
import pytest

from analysis import load
from analysis.load import Setting
from analysis.summary import Results
from bench.records import read_run
from tests.analysis.simulate import MIB, Simulation


def test_frame_holds_every_record(results):
    simulation = Simulation(interpreted=("triton",), unavailable={"cuda": "no GPU"})
    found = results(simulation)
    assert len(found.records) == len(simulation.records()) == 4 * 9 * 5 + 4 * 9
    first = next(r for r in simulation.records() if r["status"] == "ok")
    row = found.records[(found.records.status == "ok")].iloc[0]
    assert row.time == np.median(first["time_ms"]["wall"])
    assert row.memory == first["memory_bytes"]["peak_allocated"] - first["memory_bytes"]["weights"]
    assert row.peak_memory == first["memory_bytes"]["peak_allocated"]
    assert row.parity == 0.25


def test_cells_summarise_the_rounds(results):
    found = results(Simulation(rounds=6))
    records, cells = found.records, found.cells
    cell = cells[(cells.arch == "mamba") & (cells.impl == "cpu") & (cells.seqlen == 512)].iloc[0]
    mine = records[(records.arch == "mamba") & (records.impl == "cpu") & (records.seqlen == 512)]
    assert cell.time_ms == mine.time.median()
    assert cell.time_low < cell.time_ms < cell.time_high
    assert cell.rounds == 6
    assert cell.tokens_per_s == pytest.approx(512e3 / cell.time_ms)
    assert cell.memory_bytes == 1 * MIB + 20_000 * 512
    assert cell.parity_passed


def test_interval_of_the_time_covers_the_truth():
    hits = []
    for seed in range(16):
        simulation = Simulation(seed=seed)
        cells = load.cells(load.frame(_Run(simulation.records())))
        truth = [
            simulation.time(*row) for row in zip(cells.arch, cells.impl, cells.seqlen, strict=True)
        ]
        hits += list((cells.time_low <= truth) & (truth <= cells.time_high))
    assert 0.93 <= np.mean(hits) <= 0.97


def test_a_cell_that_failed_in_some_rounds_says_so(tmp_path):
    simulation = Simulation(seqlens=(128,))
    path = simulation.write(tmp_path)
    rows = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    hit = next(r for r in rows if r["cell"]["impl"] == "hf")
    hit |= {"status": "timeout", "reason": "over 60 s", "time_ms": None, "memory_bytes": None}
    (path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cells = load.cells(load.frame(read_run(path)))
    changed = cells[(cells.arch == hit["cell"]["arch"]) & (cells.impl == "hf")].iloc[0]
    assert (changed.status, changed.rounds, changed.reason) == ("ok", 4, "timeout in 1 of 5 rounds")


def test_unmeasured_cells_keep_their_reason(results):
    cells = results(
        Simulation(unavailable={"cuda": "no CUDA device"}, interpreted=("triton",))
    ).cells
    assert set(cells[cells.impl == "cuda"].status) == {"unavailable"}
    assert set(cells[cells.impl == "cuda"].reason) == {"no CUDA device"}
    triton = cells[cells.impl == "triton"]
    assert set(triton.status) == {"interpreted"}
    assert triton.parity_passed.all()
    assert triton.time_ms.isna().all()


def test_curves_mark_out_of_memory_with_infinity(results):
    curves = results(Simulation(out_of_memory={("llama", "hf"): 1448})).curves["time"]
    setting = Setting("paper-50m", 1, "fp32", "prefill", "eager")
    curve = curves[setting, "llama", "hf"]
    assert list(curve.index) == [0, 1, 2, 3, 4]
    assert np.isinf(curve[[1448, 2048]]).all(axis=None)
    assert np.isfinite(curve[[128, 1024]]).all(axis=None)
    assert len(curves) == 4


def test_two_kinds_of_machine_have_no_ratio_in_common(tmp_path):
    path = Simulation(rounds=6).write(tmp_path)
    rows = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    for row in rows:
        gpu = "A" if row["round"] < 4 else "B"
        row["device"] = {"node": gpu, "gpu": gpu, "uuid": gpu, "cpu": "one and the same"}
    (path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = Results(read_run(path))
    rounds = {key[0].preset: list(curve.index) for key, curve in results.curves["time"].items()}
    assert rounds == {"A: paper-50m": [0, 1, 2, 3], "B: paper-50m": [4, 5]}
    assert {(setting.preset, r) for setting, r in _rounds_of_ratios(results)} == {
        ("A: paper-50m", 4),
        ("B: paper-50m", 2),
    }
    assert set(results.cells.rounds) == {4, 2}


def _rounds_of_ratios(results):
    matrix = results.matrix["time"]
    return [(Setting(*key), n) for *key, n in matrix[[*Setting._fields, "rounds"]].values.tolist()]


def test_parity_of_broken_numbers():
    outputs = {
        "logits": {"max": ["nan", 1.0], "rms": [0.1, 1.0]}
    }  # as records hold what JSON cannot
    assert math.isnan(load.worst_parity({"outputs": outputs}))
    assert load.worst_parity({"outputs": {"logits": {"max": [0.0, 0.0]}}}) == 0.0
    assert load.worst_parity({"outputs": {"logits": {"max": [1e-9, 0.0]}}}) == math.inf
    assert math.isnan(load.worst_parity({}))


class _Run:
    def __init__(self, records):
        self.records = records
