"""Traces of torch.profiler: planted ones, one of Nsight Systems' beside them, and a real one."""

import pandas as pd
import pytest
import torch
from torch.profiler import ProfilerActivity, record_function

from profiles.timeline import read
from tests.profiles.nsight_writer import write_kineto, write_nsight
from tests.profiles.test_timeline import CELL, LAYER, SCAN, ns, one_rep


def test_operators_of_torch_have_self_time(tmp_path):
    capture = one_rep()
    capture.op("aten::linear", 210, 260)
    capture.op("aten::addmm", 220, 250)
    capture.op("crossover::scan", 390, 510)  # holds our range
    capture.op("aten::exp", 420, 440)
    capture.op("aten::randn", 2000, 2010)
    found = read(write_kineto(capture, tmp_path / "trace.json.gz"))
    times = {(r.path, r.name): ns(r.ms) for r in found.work.itertuples()}
    assert times == {
        (LAYER, "aten::linear"): 20,
        (LAYER, "aten::addmm"): 30,
        (LAYER, "crossover::scan"): 20,
        (SCAN, "aten::exp"): 20,
    }
    assert found.work.share.sum() == pytest.approx(90 / 800)
    assert found.notes == ["1 operator of torch outside of a cell, left out"]


def test_both_readers_agree(tmp_path):
    capture = one_rep()
    capture.range("op/causal_conv1d", 600, 650)
    for i, (kind, name) in enumerate(
        (("kernel", "void scan<4>(float*)"), ("memcpy", "Memcpy HtoD"), ("memset", "Memset"))
    ):
        capture.launch(name, 410 + 10 * i, 1000 + 100 * i, 1150 + 100 * i, kind=kind, stream=i)
    capture.launch("conv", 605, 3000, 3333)
    capture.launch("backward", 620, 4000, 4100, tid=4)
    capture.call("cudaStreamSynchronize", 800, 880, 500)
    nsight = read(write_nsight(capture, tmp_path / "capture.sqlite"))
    for name in ("trace.json", "trace.json.gz"):
        kineto = read(write_kineto(capture, tmp_path / name))
        pd.testing.assert_frame_equal(nsight.ranges, kineto.ranges)
        pd.testing.assert_frame_equal(nsight.work, kineto.work)
        assert nsight.notes == kineto.notes
        assert nsight.reps == kineto.reps


def test_calls_of_two_processes_in_one_trace_do_not_mix(tmp_path):
    capture = one_rep()
    capture.ranges += one_rep(pid=2).ranges
    capture.launch("whose?", 410, 600, 700, correlation=5)
    capture.call("cudaLaunchKernel", 610, 612, 5, pid=2)
    found = read(write_kineto(capture, tmp_path / "trace.json"))
    assert found.notes == ["1 launch without an API call in the file, not attributed"]


def test_times_since_1970_keep_their_nanoseconds(tmp_path):
    event = '{{"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 1, "name": "{}", "ts": {}, "dur": {}}}'
    events = [
        event.format(CELL, "1700000000000000.001", "0.900"),
        event.format("rep", "1700000000000000.201", "0.700"),
    ]
    (tmp_path / "trace.json").write_text(f"[{', '.join(events)}]")
    found = read(tmp_path / "trace.json")
    assert [ns(ms) for ms in found.ranges.host_ms] == [900, 700]
    assert [ns(ms) for ms in found.ranges.host_self_ms] == [200, 700]


def test_annotations_of_others_are_counted(tmp_path):
    capture = one_rep()
    capture.range("ProfilerStep#3", 0, 1000)
    found = read(write_kineto(capture, tmp_path / "trace.json"))
    assert found.notes == ["1 annotation of others, left out"]


def test_a_real_trace_of_torch(tmp_path):
    def repetition():
        with record_function("rep"), record_function("layer/0"):
            x = torch.ones(4, 4, requires_grad=True)
            with record_function("op/selective_scan"):
                y = torch.exp(x)
            y.sum().backward()

    with (
        torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler,
        record_function(CELL),
    ):
        for _ in range(3):
            repetition()
    path = tmp_path / "trace.json.gz"
    profiler.export_chrome_trace(str(path))
    found = read(path)
    rows = found.ranges.set_index("path")
    scan = f"{CELL} > rep > layer/0 > op/selective_scan"
    assert found.reps == {CELL: 3}
    assert rows.loc[scan, "count"] == 1
    assert rows.share.sum() == pytest.approx(1)
    work = found.work[found.work.path == scan].set_index("name")
    assert work.loc["aten::exp", "count"] == 1
    assert 0 < work.loc["aten::exp", "ms"] <= rows.loc[scan, "host_self_ms"]
    assert not found.notes
