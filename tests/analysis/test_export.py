import json
import sys

import numpy as np
import pandas as pd
import pytest

from analysis import export, load, metric_load
from bench.records import read_run
from tests.analysis.simulate import Simulation

METRIC = {
    "unit": {"group": "hidden", "arch": "mamba", "impl": "cpu", "dtype": "fp32", "seqlen": 128, "seed": 0,
             "weights": "initial", "part": ""},
    "status": "ok",
    "values": [
        {"layer": "block 1", "instrument": "residual stream", "metric": "velocity", "value": 1.5, "low": None,
         "high": "inf"}
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    simulation = Simulation(
        seqlens=(128, 256), rounds=3, out_of_memory={("llama", "hf"): 256}, unavailable={"cuda": "no | GPU, \"none\""}
    )  # fmt: skip
    folder = simulation.write(tmp_path_factory.mktemp("run"))
    (folder / metric_load.NAME).write_text(json.dumps(METRIC) + "\n")
    return folder


def test_one_row_a_sample(run):
    table = export.samples_frame(read_run(run))
    records = read_run(run).records
    ok = [r for r in records if r["status"] == "ok"]
    assert len(table) == 7 * len(ok) + (len(records) - len(ok))
    timed = table[table.status == "ok"]
    assert timed.wall_ms.tolist() == [ms for r in ok for ms in r["time_ms"]["wall"]]
    assert set(timed.groupby([*load.CELL, "round"])["sample"].agg(list).map(tuple)) == {
        tuple(range(7))
    }
    medians = timed.groupby([*load.CELL, "round"]).wall_ms.median()
    frame = load.frame(read_run(run)).set_index([*load.CELL, "round"]).time.dropna()
    np.testing.assert_allclose(medians, frame[np.isfinite(frame)].sort_index())
    assert set(table.machine) == {"simulated"}
    assert set(table.revision) == {"0" * 40}
    assert timed.peak_allocated_bytes.min() > timed.weights_bytes.max() // 2


def test_what_has_no_sample_keeps_its_row(run):
    table = export.samples_frame(read_run(run))
    out = table[table.status == "oom"]
    assert len(out) == 3
    assert out["sample"].isna().all()
    assert out.wall_ms.isna().all()
    assert set(table[table.status == "unavailable"].reason) == {'no | GPU, "none"'}


@pytest.mark.parametrize("what", export.WHAT)
def test_both_formats_hold_the_same(run, what, tmp_path):
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    paths = {}
    for format in export.FORMATS:
        paths[format], rows = export.export(run, what, format, tmp_path / "new" / f"table.{format}")
    tables = pd.read_parquet(paths["parquet"]), pd.read_csv(paths["csv"], dtype={"revision": str})
    assert len(tables[0]) == len(tables[1]) == rows > 0
    assert list(tables[0]) == list(tables[1])
    for name in tables[0]:
        if tables[0][name].dtype.kind == "f":
            np.testing.assert_array_equal(*(t[name].to_numpy(dtype=float) for t in tables))
        else:
            text = [t[name].map(lambda v: "" if pd.isna(v) else str(v)).tolist() for t in tables]
            assert text[0] == [v.removesuffix(".0") for v in text[1]]


def test_an_empty_run_has_its_columns(tmp_path):
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    path, rows = export.export(Simulation(rounds=0).write(tmp_path), "samples", "parquet")
    assert rows == 0
    assert path == tmp_path / "export" / "samples.parquet"
    assert {"arch", "wall_ms", "peak_rss_bytes", "machine"} <= set(pd.read_parquet(path))


def test_an_older_record_lacks_fields(tmp_path):
    folder = Simulation(seqlens=(128,), rounds=1).write(tmp_path)
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("energy_j", "clocks", "stopped_by", "warmups", "started", "parity"):
            del row[name]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "machine.json").write_text("{}")
    table = export.samples_frame(read_run(folder))
    assert table.wall_ms.notna().all()
    assert table[["energy_j", "parity", "machine", "revision", "dirty"]].isna().all(axis=None)


def test_the_command(run, tmp_path, capsys, monkeypatch):
    assert export.main([str(run), "--format", "csv", "--out", str(tmp_path / "x.csv")]) == 0
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'x.csv'}: {len(export.samples_frame(read_run(run))):,} rows\n"
    )
    assert export.main([str(tmp_path)]) == 2
    assert "holds no plan.json" in capsys.readouterr().err
    bare = Simulation(seqlens=(128,), rounds=1).write(tmp_path / "bare")
    assert export.main([str(bare), "--what", "metrics"]) == 2
    assert "has no metrics.jsonl: python -m analysis.metrics" in capsys.readouterr().err
    assert (
        export.main([str(run), "--format", "csv", "--out", str(tmp_path / "x.csv" / "y.csv")]) == 2
    )
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert export.main([str(run)]) == 2
    out = capsys.readouterr()
    assert out.err == f"python -m analysis.export: {export.NO_PYARROW}\n"
    assert out.out == ""


def test_unknown_words_are_named(run):
    with pytest.raises(ValueError, match="format of parquet, csv, got 'samples' and 'xlsx'"):
        export.export(run, "samples", "xlsx")
