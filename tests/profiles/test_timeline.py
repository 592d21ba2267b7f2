"""Planted captures: every number of the answer is known."""

import pandas as pd
import pytest

from profiles.nsight_file import WAITS
from profiles.timeline import read
from tests.profiles.nsight_writer import (
    DOMAIN_CREATE,
    SCHEMAS,
    START_END,
    Capture,
    write_nsight,
)

CELL = "cell/mamba-triton-tiny-128-b1-fp32-prefill-eager"
SCAN = f"{CELL} > rep > layer/0 > op/selective_scan"
LAYER = f"{CELL} > rep > layer/0"


def one_rep(at=0, **where):
    """A cell of 1,000 ns with a repetition, a layer and an operator at 400..500."""
    capture = Capture()
    for name, start, end in (("round/0", 0, 1000), (CELL, 10, 990), ("rep", 100, 900), ("layer/0", 200, 800),
                             ("op/selective_scan", 400, 500)):  # fmt: skip
        capture.range(name, at + start, at + end, **where)
    return capture


@pytest.fixture
def timeline(tmp_path):
    def read_capture(capture, version="2022.4", **options):
        return read(write_nsight(capture, tmp_path / "capture.sqlite", version), **options)

    return read_capture


def row(timeline, path):
    return timeline.ranges.set_index("path").loc[path]


def ns(value):
    return round(1e6 * value)


def test_host_time_of_nested_ranges(timeline):
    found = timeline(one_rep())
    assert list(found.ranges.path) == [CELL, f"{CELL} > rep", LAYER, SCAN]
    assert list(found.ranges.level) == ["cell", "rep", "layer", "op"]
    assert [ns(ms) for ms in found.ranges.host_ms] == [980, 800, 600, 100]
    assert [ns(ms) for ms in found.ranges.host_self_ms] == [180, 200, 500, 100]
    assert list(found.ranges.clock) == ["host"] * 4
    assert list(found.ranges.share)[1:] == pytest.approx([0.25, 0.625, 0.125])
    assert pd.isna(found.ranges.share[0])
    assert found.ranges.launch_bound.isna().all()
    assert found.reps == {CELL: 1}
    assert not len(found.work)
    assert not found.notes


@pytest.mark.parametrize("version", SCHEMAS)
def test_a_kernel_that_outlives_its_range_belongs_to_it(timeline, version):
    capture = one_rep()
    capture.launch("scan", 410, 5000, 9000)
    capture.launch("norm", 600, 9000, 9500)
    found = timeline(capture, version)
    assert ns(row(found, SCAN).innermost_ms) == 4000
    assert ns(row(found, LAYER).innermost_ms) == 500
    assert ns(row(found, LAYER).inclusive_ms) == ns(row(found, CELL).inclusive_ms) == 4500
    assert row(found, SCAN).share == pytest.approx(4000 / 4500)
    assert row(found, SCAN).clock == "device"
    assert found.work.to_dict("records") == [
        {"path": LAYER, "kind": "kernel", "name": "norm", "count": 1, "ms": pytest.approx(5e-4),
         "share": pytest.approx(1 / 9)},
        {"path": SCAN, "kind": "kernel", "name": "scan", "count": 1, "ms": pytest.approx(4e-3),
         "share": pytest.approx(8 / 9)},
    ]  # fmt: skip
    assert version in found.tool
    assert not found.notes


def test_equal_correlation_ids_in_two_processes_do_not_mix(timeline):
    capture = one_rep()
    capture.ranges += one_rep(pid=2, at=5000).ranges
    capture.launch("first", 410, 600, 700, correlation=5)
    capture.launch("second", 5600, 5700, 6000, pid=2, correlation=5)
    found = timeline(capture)
    assert found.processes == 2
    assert found.reps == {CELL: 2}
    # added up over both processes, halved by the two repetitions
    assert ns(row(found, SCAN).innermost_ms) == 50
    assert ns(row(found, LAYER).innermost_ms) == 150
    assert row(found, SCAN).launches == 0.5
    assert row(found, CELL)["count"] == 1


def test_overlapping_streams_are_busy_once(timeline):
    capture = one_rep()
    capture.launch("a", 410, 1000, 1400)
    capture.launch("b", 420, 1200, 1600, stream=13)
    capture.launch("inside b", 425, 1300, 1350, stream=14)
    capture.launch("c", 430, 2000, 2100)
    found = row(timeline(capture), SCAN)
    assert ns(found.inclusive_ms) == 950
    assert ns(found.busy_ms) == 700
    assert ns(found.span_ms) == 1100
    assert ns(found.gap_ms) == 400


def test_repetitions_are_apart_in_span_and_together_in_sums(timeline):
    capture = Capture()
    capture.range(CELL, 0, 10_000)
    for at in (0, 5000):
        capture.range("rep", at + 10, at + 100)
        capture.launch("a", at + 20, at + 30, at + 50)
        capture.launch("a", at + 30, at + 60, at + 70)
    found = timeline(capture)
    rep = row(found, f"{CELL} > rep")
    assert found.reps == {CELL: 2}
    assert (ns(rep.span_ms), ns(rep.gap_ms), ns(rep.host_ms), rep["count"], rep.launches) == (
        40,
        10,
        90,
        1,
        2,
    )
    assert ns(row(found, CELL).span_ms) == 5040 / 2
    assert row(found, CELL)["count"] == 0.5
    assert found.work["count"].tolist() == [2]


def test_device_work_of_a_warm_up_does_not_set_the_clock(timeline):
    capture = one_rep()
    capture.launch("warm-up", 20, 30, 40)  # in the cell, before its repetition
    found = timeline(capture)
    assert row(found, CELL).launches == 1
    assert list(found.ranges.clock) == ["host"] * 4
    assert found.ranges.share.sum() == pytest.approx(1)


def test_every_node_of_a_graph_replay_belongs_to_its_launch(timeline):
    capture = one_rep()
    capture.call("cudaGraphLaunch_v10000", 410, 430, 77)
    for node in range(3):
        capture.launch(
            "node", 0, 1000 + 10 * node, 1008 + 10 * node, correlation=77, made=False, node=node
        )
    capture.launch("Memcpy DtoD", 0, 1100, 1110, kind="memcpy", correlation=77, made=False, node=4)
    capture.launch("Memset", 0, 1120, 1125, kind="memset", correlation=77, made=False, node=5)
    found = timeline(capture, "2025.1")
    assert row(found, SCAN).launches == 5
    assert ns(row(found, SCAN).innermost_ms) == 39
    names = found.work.set_index("name")
    assert names["count"].to_dict() == {"node": 3, "Memcpy DtoD": 1, "Memset": 1}
    assert names.kind.to_dict() == {"node": "kernel", "Memcpy DtoD": "memcpy", "Memset": "memset"}


@pytest.mark.parametrize("version", ["2022.4", "2025.1"])
def test_a_graph_traced_as_a_whole_is_one_kernel(timeline, version):
    capture = one_rep()
    capture.launch("cuda graph 3", 410, 1000, 1500, kind="graph")
    found = timeline(capture, version)
    assert ns(row(found, SCAN).innermost_ms) == 500
    assert found.work[["kind", "name"]].values.tolist() == [["kernel", "cuda graph 3"]]


def test_start_end_ranges_are_placed_or_counted(timeline):
    capture = one_rep()
    capture.range("copy", 450, 700, kind=START_END)  # begins in the operator, ends in the layer
    capture.range("across", 850, 950, kind=START_END)
    capture.range("nowhere", 2000, 2100, kind=START_END)
    capture.range("nobody", 2000, 2100, tid=8, kind=START_END)
    capture.launch("a", 460, 700, 800)
    found = timeline(capture)
    copy = row(found, f"{LAYER} > copy")
    assert (copy.level, ns(copy.host_ms), ns(copy.host_self_ms), copy.launches) == (
        "other",
        250,
        0,
        0,
    )
    assert ns(row(found, f"{CELL} > across").host_ms) == 100
    assert ns(row(found, LAYER).host_self_ms) == 500
    assert ns(row(found, SCAN).innermost_ms) == 100
    assert found.notes == [
        "2 start/end ranges lie in no range of the thread that began them: nowhere, nobody"
    ]


def test_a_start_end_range_is_no_cell_whatever_its_name(timeline):
    capture = one_rep()
    capture.range("cell/b", 420, 430, kind=START_END)
    found = timeline(capture)
    assert list(found.reps) == [CELL]
    assert row(found, f"{SCAN} > cell/b").level == "other"


def test_a_kernel_with_two_calls_counts_once(timeline):
    capture = one_rep()
    capture.launch("scan", 410, 600, 700, correlation=8)
    capture.call("cuLaunchKernel", 411, 412, 8)  # the driver's, inside the runtime's
    assert row(timeline(capture), SCAN).launches == 1


def test_unclosed_ranges_are_counted_and_their_children_stay(timeline):
    capture = one_rep()
    capture.range("layer/7", 210, None)
    found = timeline(capture)
    assert found.notes == ["1 range never closed, left out: layer/7"]
    assert SCAN in set(found.ranges.path)


def test_a_range_that_cuts_across_counts_under_what_holds_it(timeline):
    capture = one_rep()
    capture.range("layer/1", 700, 850)  # begins in layer/0, ends after it
    found = timeline(capture)
    assert ns(row(found, f"{CELL} > rep > layer/1").host_ms) == 150
    assert "cut across" in found.notes[0]
    assert ns(row(found, f"{CELL} > rep").host_self_ms) == 150  # 800 less 200..850


def test_other_domains_are_counted(timeline):
    capture = one_rep()
    capture.range("theirs", 405, 495, domain="NCCL")
    capture.range("nobody's", 405, 495, domain=None)
    found = timeline(capture)
    assert found.notes == ["2 ranges of other domains than crossover, left out"]
    assert list(timeline(capture, domain="NCCL").ranges.path) == ["theirs"]


def test_the_number_of_a_domain_is_the_process_own(timeline):
    capture = Capture()
    capture.range("theirs", 0, 10, pid=2, domain="NCCL")  # number 1 in process 2, where ours is 2
    capture.ranges += one_rep().ranges + one_rep(pid=2).ranges
    found = timeline(capture)
    assert found.reps == {CELL: 2}
    assert found.notes == ["1 range of other domains than crossover, left out"]


def test_names_are_text_or_registered_strings(timeline):
    capture = one_rep()
    capture.range("op/causal_conv1d", 600, 650, as_id=False)
    assert f"{LAYER} > op/causal_conv1d" in set(timeline(capture).ranges.path)


def test_the_autograd_thread_is_placed_by_time(timeline):
    capture = one_rep()
    capture.launch("backward", 450, 1000, 1100, tid=2)  # no ranges of its own
    capture.range("op/selective_scan.backward", 600, 700, tid=3)  # ranges, but no cell
    capture.launch("scan backward", 610, 1100, 1300, tid=3)
    capture.range("layer/0", 100, 200, pid=2)  # a process without cells, such as one that prepares
    found = timeline(capture)
    inner = f"{LAYER} > op/selective_scan.backward"
    assert ns(row(found, SCAN).innermost_ms) == 100
    assert ns(row(found, inner).innermost_ms) == 200
    assert row(found, inner).level == "op"
    assert ns(row(found, LAYER).host_self_ms) == 400
    assert found.notes == [
        "1 range of threads without a cell, placed by time",
        "1 launch of threads without ranges, placed by time",
        "1 range outside of a cell (warm-up): layer/0",
    ]


def test_nothing_is_placed_by_time_where_two_threads_have_cells(timeline):
    capture = one_rep()
    capture.ranges += one_rep(tid=2).ranges
    capture.launch("backward", 450, 1000, 1100, tid=3)
    found = timeline(capture)
    assert found.ranges.launches.sum() == 0
    assert found.notes == ["1 launch made outside of any range, not attributed"]


def test_what_has_no_range_is_counted(timeline):
    capture = one_rep()
    capture.launch("no call", 450, 1000, 1100, made=False)
    capture.launch("before", 2, 5, 6)
    capture.range("layer/0", 2000, 2100)
    capture.launch("warm-up", 2010, 2020, 2030)
    capture.launch("later", 3000, 3010, 3020)
    found = timeline(capture)
    assert found.ranges.launches.sum() == 0
    assert found.notes == [
        "1 launch without an API call in the file, not attributed",
        "1 launch made outside of any range, not attributed",
        "2 launches made in ranges outside of a cell, left out",
        "1 range outside of a cell (warm-up): layer/0",
    ]


def test_launch_bound_counts_no_waiting(timeline):
    capture = Capture()
    capture.range(CELL, 0, 10_000)
    capture.range("rep", 0, 9000)
    capture.range("layer/0", 0, 1000)
    capture.launch("quick", 10, 100, 200)
    capture.range("layer/1", 1000, 2000)
    capture.launch("slow", 1010, 2000, 8000)
    capture.call("cudaDeviceSynchronize_v3020", 2500, 8500, 99)
    bound = timeline(capture).ranges.set_index("name").launch_bound
    assert bound["layer/0"]
    assert not bound["layer/1"]
    assert not bound["rep"]  # 9000 less 6000 of waiting, busy 6100


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("cudaStreamSynchronize_v3020", True),
        ("cuEventSynchronize", True),
        ("hipDeviceSynchronize", True),
        ("cudaMemcpy_v3020", True),
        ("cuMemcpyDtoH_v2", True),
        ("cudaMemcpyAsync_v3020", False),
        ("cuMemcpyHtoDAsync_v2", False),
        ("cudaLaunchKernel_v7000", False),
        ("cudaStreamWaitEvent_v3020", False),
    ],
)
def test_calls_that_wait(name, waits):
    assert bool(WAITS.search(name)) is waits


def test_without_cells_paths_begin_at_the_outermost_range(timeline):
    capture = Capture()
    capture.range("op/selective_scan", 0, 100)
    capture.launch("scan", 10, 20, 80)
    found = timeline(capture)
    assert list(found.ranges.path) == ["op/selective_scan"]
    assert found.ranges.share.tolist() == [1]
    assert found.notes == ["1 cell without rep ranges, given as sums: op/selective_scan"]


def test_a_forked_process_uses_the_domain_of_its_parent(tmp_path):
    import sqlite3

    capture = one_rep()
    capture.ranges += one_rep(pid=2).ranges
    path = write_nsight(capture, tmp_path / "capture.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"DELETE FROM NVTX_EVENTS WHERE eventType = {DOMAIN_CREATE} AND globalTid >> 24 & 255 = 2"
        )
    connection.close()
    assert read(path).reps == {CELL: 2}
