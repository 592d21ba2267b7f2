"""What people and other programs get: tables, files and comparisons."""

import os
import re
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from profiles.timeline import RANGE_COLUMNS, WORK_COLUMNS, main, read, read_csv, write
from profiles.timeline_diff import compare
from profiles.timeline_tables import plain, show
from tests.profiles.nsight_writer import Capture, write_kineto, write_nsight
from tests.profiles.test_timeline import CELL

OTHER = CELL.replace("triton", "torch")


def two_layers(cell=CELL, scan=3_000_000, op="op/selective_scan"):
    """Two repetitions of two layers with an operator; a warm-up before them; times of milliseconds."""
    capture = Capture()
    capture.range(cell, 0, 100_000_000)
    capture.range("layer/0", 10, 1000)
    for rep in (1_000_000, 50_000_000):
        capture.range("rep", rep, rep + 40_000_000)
        for i in range(2):
            at = rep + 1000 + 15_000_000 * i
            capture.range(f"layer/{i}", at, at + 14_000_000)
            capture.launch(
                "void at::native::norm<float>(float*, int)", at + 100, at + 200, at + 1_000_200
            )
            capture.range(op, at + 500, at + 13_000_000)
            capture.launch("scan_fwd_kernel", at + 600, at + 1_000_300, at + 1_000_300 + scan)
            capture.launch("Memset", at + 700, at + 5_000_000, at + 5_500_000, kind="memset")
    return capture


@pytest.fixture
def capture(tmp_path):
    return write_nsight(two_layers(), tmp_path / "capture.sqlite")


def printed(path, width=140, **options):
    with open(os.devnull, "w") as nowhere:
        out = Console(width=width, highlight=False, record=True, file=nowhere)
        timeline = read(path)
        show(timeline, list(timeline.reps), out=out, **options)
    return out.export_text()


def cells(text):
    """{label: the numbers after it} of a printed table."""
    parts = [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {line[0]: line[1:] for line in parts if len(line) > 1}


def test_layers_are_added_up(capture):
    text = printed(capture)
    rows = cells(text)
    assert rows["rep"] == ["1", "40.00", "12.00", "6", "9.00", "0", "9.00", "11.50", "0.0%", "yes"]
    assert rows["layer/*"] == [
        "2",
        "28.00",
        "2.00",
        "6",
        "9.00",
        "2.00",
        "9.00",
        "2.00",
        "22.2%",
        "yes",
    ]
    assert rows["op/selective_scan"] == [
        "2",
        "26.00",
        "26.00",
        "4",
        "7.00",
        "7.00",
        "7.00",
        "2.00",
        "77.8%",
        "yes",
    ]
    assert rows["· scan_fwd_kernel"] == ["2", "6.00", "66.7%"]
    assert rows["· norm<float>"] == ["2", "2.00", "22.2%"]
    assert (
        "one repetition of 2 · ms · shares of device time · Nsight Systems 2022.4, 1 process"
        in text
    )
    assert "1 range of the cell outside of its repetitions" in text


def test_each_layer(capture):
    text = printed(capture, layers=True, top=1)
    assert cells(text)["layer/1"] == [
        "1",
        "14.00",
        "1.00",
        "3",
        "4.50",
        "1.00",
        "4.50",
        "1.00",
        "11.1%",
        "yes",
    ]
    assert "Memset" not in text


def test_one_table_of_all_cells(tmp_path):
    capture = two_layers()
    other = Capture()
    other.range(OTHER, 0, 90_000_000, pid=2)
    other.range("rep", 0, 80_000_000, pid=2)
    capture.ranges += other.ranges
    text = printed(write_nsight(capture, tmp_path / "capture.sqlite"), depth="cell", top=1)
    rows = cells(text)
    assert rows[CELL.removeprefix("cell/")] == [
        "1",
        "40.00",
        "40.00",
        "6",
        "9.00",
        "9.00",
        "9.00",
        "11.50",
        "100.0%",
        "yes",
    ]
    assert rows[OTHER.removeprefix("cell/")] == [
        "1",
        "80.00",
        "80.00",
        "0",
        "0",
        "0",
        "0",
        "0",
        "100.0%",
    ]
    assert text.count("host") == 2


@pytest.mark.parametrize("depth", ["cell", "layer"])
def test_what_is_deeper_counts_where_it_is_held(capture, depth):
    rows = cells(printed(capture, depth=depth))
    assert rows[CELL.removeprefix("cell/") if depth == "cell" else "layer/*"][5] == "9.00"
    assert "op/selective_scan" not in rows
    assert rows["· scan_fwd_kernel"] == ["2", "6.00", "66.7%"]


@pytest.mark.parametrize("width", [50, 80, 120, 140])
def test_tables_fit(capture, width):
    text = printed(capture, width)
    assert max(len(line.rstrip()) for line in text.splitlines()[2:10]) <= width
    assert cells(text)["op/selective_scan"][0] == ("26.00" if width < 120 else "2")
    assert "77.8%" in text


def test_without_a_device_the_columns_of_one_are_gone(tmp_path):
    capture = Capture()
    capture.range(CELL, 0, 10_000_000)
    capture.range("rep", 0, 8_000_000)
    capture.op("aten::mm", 0, 6_000_000)
    rows = cells(printed(write_kineto(capture, tmp_path / "trace.json")))
    assert rows["rep"] == ["1", "8.000", "8.000", "100.0%"]
    assert rows["· mm"] == ["1", "6.000", "75.0%"]
    assert rows["· (in no operator of torch)"] == ["2.000", "25.0%"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void at::native::(anonymous namespace)::norm<float, c10::Half>(int, float*)",
            "norm<float, Half>",
        ),
        ("_attention_fwd_kernel", "_attention_fwd_kernel"),
        ("void f<&g(int)>(int) const", "f<&g(int)>"),
        ("aten::linear", "linear"),
    ],
)
def test_plain_names(name, short):
    assert plain(name) == short


def test_csv_has_every_layer_and_can_be_read_back(capture, tmp_path):
    timeline = read(capture)
    write(timeline, tmp_path / "out")
    ranges = pd.read_csv(tmp_path / "out" / "timeline.csv")
    work = pd.read_csv(tmp_path / "out" / "work.csv")
    assert tuple(ranges) == RANGE_COLUMNS
    assert tuple(work) == WORK_COLUMNS
    assert f"{CELL} > rep > layer/1 > op/selective_scan" in set(ranges.path)
    assert "true" in (tmp_path / "out" / "timeline.csv").read_text()
    assert ranges.share.sum() == pytest.approx(1, abs=1e-5)
    assert work.share.sum() == pytest.approx(1, abs=1e-5)
    back = read_csv(tmp_path / "out" / "timeline.csv")
    pd.testing.assert_frame_equal(back, timeline.ranges, check_dtype=False, rtol=1e-5)


def test_command_line(capture, tmp_path, capsys):
    assert main([str(capture), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "layer/*" in said.out
    assert "work.csv" in said.err
    assert main([str(tmp_path), "--csv"]) == 0  # a folder: its tables go into it
    assert capsys.readouterr().out == (tmp_path / "timeline.csv").read_text()
    for wrong, message in (
        (["--cell", "nothing"], "--cell nothing: none of 1 cell matches"),
        (["--cell", "("], "is no regular expression"),
    ):
        with pytest.raises(SystemExit):
            main([str(capture), *wrong])
        assert message in capsys.readouterr().err


def test_a_real_capture_of_a_sweep(tmp_path):
    """Two cells of a sweep on a CPU, as Nsight Systems 2022.4.2 exported them."""
    path = tmp_path / "real.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parent / "nsight_2022_4.sql").read_text())
    connection.close()
    found = read(path)
    assert found.tool == "Nsight Systems 2022.4.2.1"
    assert found.processes == 2
    assert list(found.reps.values()) == [17, 11]
    mamba, llama = found.reps
    rows = found.ranges.set_index("path")
    assert list(rows.loc[f"{mamba} > rep > layer/0"][["count", "launches"]]) == [1, 0]
    assert {
        f"{mamba} > rep > layer/1 > op/{op}" for op in ("causal_conv1d", "selective_scan")
    } < set(rows.index)
    assert f"{llama} > rep > layer/1 > op/causal_attention" in rows.index
    assert rows.share.groupby(lambda path: path.split(" > ")[0]).sum().tolist() == pytest.approx(
        [1, 1]
    )
    assert found.notes[0].startswith("9 ranges outside of a cell (warm-up)")


def test_a_profile_against_itself(capture, capsys):
    ranges = read(capture).ranges
    table = compare(ranges, ranges)
    assert (table.difference == 0).all()
    assert table.ratio.dropna().eq(1).all()
    assert main(["diff", str(capture), str(capture)]) == 0
    assert "9.00 ms in A, 9.00 ms in B, 1.00 times as long" in capsys.readouterr().out


def test_two_implementations_are_compared_below_the_cell(capture, tmp_path, capsys):
    other = two_layers(OTHER, scan=1_000_000)
    other.range("op/causal_conv1d", 1_001_800, 1_001_900)
    other.launch("conv", 1_001_810, 2_000_000, 2_250_000)
    other = write_nsight(other, tmp_path / "other.sqlite", "2025.1")
    table = compare(read(capture).ranges, read(other).ranges).set_index("path")
    scan = table.loc["rep > layer/* > op/selective_scan"]
    assert list(scan)[:4] == pytest.approx([7, 3, -4, 3 / 7])
    assert table.index[0] == "rep > layer/* > op/selective_scan"
    assert table.difference.sum() == pytest.approx(-3.875)
    assert main(["diff", str(capture), str(other)]) == 0
    said = capsys.readouterr().out
    assert cells(said)["rep > layer/* > op/selective_scan"] == ["7.000", "3.000", "-4.000", "0.429"]
    assert "only in B: rep > layer/* > op/selective_scan > op/causal_conv1d" in said
    for path in (capture, other):
        main([str(path), "--out", str(path.with_suffix(""))])
    main(
        ["diff", str(capture.with_suffix("")), str(other.with_suffix("") / "timeline.csv"), "--csv"]
    )
    assert "rep > layer/* > op/selective_scan,7,3,-4,0.428571,2,2" in capsys.readouterr().out


def test_different_cells_must_be_chosen(capture, tmp_path, capsys):
    both = two_layers()
    second = two_layers(OTHER)
    for event in second.ranges + second.calls + second.work:
        both_event = event | {"pid": 2}
        (
            both.ranges if "domain" in event else both.work if "stream" in event else both.calls
        ).append(both_event)
    both = write_nsight(both, tmp_path / "both.sqlite")
    with pytest.raises(SystemExit):
        main(["diff", str(both), str(capture)])
    assert (
        "A has 2 cells, B has 1 cell, not the same ones: choose one of each with --cell"
        in capsys.readouterr().err
    )
    assert main(["diff", str(both), str(capture), "--cell", "torch", "--cell-b", "triton"]) == 0
    assert "1.00 times as long" in capsys.readouterr().out
    assert main(["diff", str(both), str(both)]) == 0
    with pytest.raises(SystemExit):
        main(["diff", str(both), str(capture), "--cell", "torch"])
    assert "--cell torch: no cell of" in capsys.readouterr().err


def test_a_csv_that_is_no_timeline(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        main(["diff", str(tmp_path / "a.csv"), str(tmp_path / "a.csv")])
    assert "is no timeline.csv: it has no column path" in capsys.readouterr().err
