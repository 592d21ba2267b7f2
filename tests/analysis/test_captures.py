import json

import pytest

from analysis import captures
from analysis.report import time_spent
from analysis.report.charts import Chart
from analysis.report.parts import Fold, Table, Text
from analysis.summary import Results
from bench.records import read_run
from tests.analysis import capture_simulate as simulated
from tests.analysis.simulate import MACHINE, Simulation


@pytest.fixture
def run(tmp_path):
    return Simulation(seqlens=(512,), rounds=2).write(tmp_path / "run")


def section(run):
    """(sentences, chart, tables by title, folds by title, notes, warnings) of the section of a run."""
    warnings = []
    parts = time_spent.section(Results(read_run(run)), warnings)
    of = lambda kind: [part for part in parts if isinstance(part, kind)]
    said, notes = [*of(Text), Text([])][:2]
    return (
        said.lines, next(iter(of(Chart)), None), {t.title: t.frame for t in of(Table)},
        {f.title: f.tables[0].frame for f in of(Fold)}, notes.lines, warnings,
    )  # fmt: skip


def test_a_run_without_captures_says_how_to_make_them(run):
    said, chart, *_, warnings = section(run)
    assert said == [
        f"No profile of this run was kept; `python -m profiles.capture {run} --fastest` makes some, and this section "
        "of them."
    ]
    assert chart is None
    assert warnings == []


def test_planted_shares_are_returned(run):
    """Two layers of 45 ms (30 scan, 10 convolution, 5 rest) and 10 ms outside: 60, 20, 10 and 10 %."""
    simulated.write(run)
    simulated.write(run, "llama")
    said, chart, tables, _, _, warnings = section(run)
    assert warnings == []
    assert said == [
        "Under cpu at 512 tokens 67 % of a LLaMA forward is attention, 33 % projections, norms and the rest.",
        "Under cpu at 512 tokens 60 % of a Mamba forward is the scan, 20 % the convolution, 20 % projections, norms "
        "and the rest.",
    ]
    rows = {(r["cell"], r["part"]): r["share"] for r in chart.spec["data"]["values"]}
    expected = {
        "op/selective_scan": 60,
        "op/causal_conv1d": 20,
        captures.REST: 10,
        captures.OUTSIDE: 10,
    }
    assert {part: rows["mamba cpu 512", part] for part in expected} == pytest.approx(expected)
    assert sum(
        share for (cell, _), share in rows.items() if cell == "llama cpu 512"
    ) == pytest.approx(100)
    assert "mamba cpu 512: op/selective_scan 60 %" in chart.alt
    table = tables["Time by range, layers added up: mamba cpu 512"]
    assert [name.strip() for name in table.range] == [
        "cell",
        "rep",
        "layers",
        "op/selective_scan",
        "op/causal_conv1d",
    ]
    assert list(table["count"]) == ["1", "1", "2", "2", "2"]
    assert list(table["host, ms"]) == ["100", "100", "90.0", "60.0", "20.0"]
    assert list(table.share) == ["-", "10 %", "10 %", "60 %", "20 %"]
    assert list(table["host self, ms"]) == ["7.00", "10.0", "10.0", "60.0", "20.0"]
    assert "launch-bound" not in table
    assert "launches" not in table
    assert tables["What was profiled"]["ms, profiled"][0] == "101"


def test_device_time_counts_where_there_is_any(run):
    folder = simulated.write(run, device="device")
    said, chart, tables, *_ = section(run)
    assert said[0].startswith(
        "Under cpu at 512 tokens 60 % of the device time of a Mamba forward is the scan"
    )
    assert "device time" in chart.spec["data"]["values"][0]["shown"]
    table = tables["Time by range, layers added up: mamba cpu 512"]
    assert list(table["launch-bound"]) == ["yes", "yes", "2 of 2", "2 of 2", "0 of 2"]
    assert list(table["innermost, ms"])[-2:] == ["60.0", "20.0"]
    assert folder.exists()


def test_what_took_most_is_listed_under_each_range(run):
    simulated.write(run, kernel="<b>mm</b>")
    *_, folds, _, _ = section(run)
    work = folds["What took most of it: mamba cpu 512"]
    scan = work[work.range == "cell › rep › layers › op/selective_scan"]
    assert len(scan) == 5
    assert scan.what.iloc[0] == "<b>mm</b>"
    assert (scan["count"].iloc[0], scan.ms.iloc[0]) == ("6", "45.0")


def test_memory_notes_and_another_machine_are_shown(run):
    folder = simulated.write(run)
    simulated.change(folder, notes=["3 ranges were not closed"], machine=MACHINE | {"cpu": "other"})
    (folder / "memory_by_range.csv").write_text("path,peak_bytes,count\nrep,1048576,2\n")
    *_, folds, notes, _ = section(run)
    memory = folds["Memory by range: mamba cpu 512"]
    assert memory.to_dict("records") == [{"path": "rep", "peak, MiB": "1.00", "count": "2.00"}]
    assert notes == [
        "mamba cpu 512: 3 ranges were not closed",
        "mamba cpu 512: its machine is not that of the run: cpu simulated -> other.",
    ]


def test_what_all_captures_note_stands_once(run):
    for arch in ("mamba", "llama"):
        own = [f"{arch} alone"] if arch == "llama" else []
        simulated.change(simulated.write(run, arch), notes=["slow under a profiler", *own])
    *_, notes, _ = section(run)
    assert notes == ["slow under a profiler", "llama cpu 512: llama alone"]


def test_captures_are_named_by_what_tells_them_apart(run):
    simulated.write(run)
    simulated.write(
        run, mode="train", operators={"op/selective_scan": 5.0, "op/selective_scan.backward": 30.0}
    )
    said, chart, *_ = section(run)
    assert "is the backward of the scan" in said[1]
    assert said[1].endswith("(train).")
    names = {row["cell"] for row in chart.spec["data"]["values"]}
    assert names == {"mamba cpu 512, prefill", "mamba cpu 512, train"}
    assert captures.OUTSIDE_TRAIN in {row["part"] for row in chart.spec["data"]["values"]}


def without_column(folder):
    text = (folder / "timeline.csv").read_text()
    (folder / "timeline.csv").write_text(text.replace("host_self_ms", "self_ms"))


BREAKS = {
    "manifest.json: JSONDecodeError": lambda f: (f / "manifest.json").write_text('{"cell": '),
    "manifest.json: FileNotFoundError": lambda f: (f / "manifest.json").unlink(),
    "manifest.json holds no cell": lambda f: (f / "manifest.json").write_text("{}"),
    "manifest.json: TypeError": lambda f: simulated.change(
        f, cell={"arch": "mamba", "colour": "red"}
    ),
    "is no cell": lambda f: simulated.change(
        f, cell={"arch": 1, "impl": "a", "preset": "b", "seqlen": 2}
    ),
    "wall_ms is ['a']": lambda f: simulated.change(f, wall_ms=["a"]),
    "its status is error, because nsys crashed": lambda f: simulated.change(
        f, status="error", reason="nsys crashed"
    ),
    "timeline.csv: ValueError: no column host_self_ms": without_column,
    "work.csv: EmptyDataError": lambda f: (f / "work.csv").write_text(""),
    "timeline.csv: FileNotFoundError": lambda f: (f / "timeline.csv").unlink(),
    "timeline.csv: ValueError": lambda f: (f / "timeline.csv").write_text(
        (f / "timeline.csv").read_text().replace("30.0", "fast")
    ),
}


@pytest.mark.parametrize("said", BREAKS)
def test_a_broken_capture_is_named_and_the_others_stand(run, said):
    simulated.write(run, "llama")
    broken = simulated.write(run)
    BREAKS[said](broken)
    sentences, *_, warnings = section(run)
    assert len(sentences) == 1
    assert "attention" in sentences[0]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"The profile {broken.name} is skipped: ")
    assert said in warnings[0]
    assert "\n" not in warnings[0]


def test_a_capture_in_the_making_is_not_looked_at(run):
    (run / "profiles" / ".123").mkdir(parents=True)
    (run / "profiles" / "log.txt").write_text("")
    *_, warnings = section(run)
    assert warnings == []


def test_a_manifest_that_is_no_object_is_broken(run):
    (simulated.write(run) / "manifest.json").write_text(json.dumps([1]))
    *_, warnings = section(run)
    assert "manifest.json" in warnings[0]


def test_an_operator_inside_of_another_counts_as_the_outer_one():
    path = "cell/a > rep > layer/0 > op/ssd_scan > op/selective_scan"
    assert captures._part(path, "prefill") == "op/ssd_scan"
