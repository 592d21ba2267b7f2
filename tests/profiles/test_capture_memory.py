"""What the allocator gave out, by range."""

import csv

import pytest
import torch

from profiles import memory_timeline
from profiles.memory_timeline import attribute, history, thinned
from profiles.ranges import annotate, record_with


def by_range(folder):
    with (folder / "memory_by_range.csv").open(newline="") as file:
        return {
            row.pop("path"): {k: int(v) for k, v in row.items()} for row in csv.DictReader(file)
        }


def test_a_planted_allocation_lies_under_its_range(tmp_path):
    kept = []

    def run():
        with annotate("cell/a"), annotate("rep"):
            with annotate("op/keeps"):
                kept.append(torch.empty(1000))  # 4,000 bytes
            for _ in range(2):
                with annotate("op/frees"):
                    torch.empty(500)

    with record_with("torch"):
        memory_timeline.write(tmp_path, "cpu", run)
    found = by_range(tmp_path)
    assert found["cell/a > rep > op/keeps"] == {
        "count": 1, "allocated_bytes": 4000, "freed_bytes": 0, "net_bytes": 4000, "peak_bytes": 4000,
    }  # fmt: skip
    assert found["cell/a > rep > op/frees"] == {
        "count": 2, "allocated_bytes": 4000, "freed_bytes": 4000, "net_bytes": 0, "peak_bytes": 2000,
    }  # fmt: skip
    assert found["cell/a"]["peak_bytes"] == 6000
    rows = (tmp_path / "memory.csv").read_text().splitlines()
    assert rows[0] == "time_ms,path,allocated_bytes,delta"
    assert [row.split(",")[1:] for row in rows[1:]] == [
        ["cell/a > rep > op/keeps", "4000", "4000"],
        *[["cell/a > rep > op/frees", "6000", "2000"], ["cell/a > rep > op/frees", "4000", "-2000"]] * 2,
    ]  # fmt: skip


def test_events_belong_to_the_innermost_range_at_their_time():
    ranges = [
        (0, 100, "cell/a"),
        (10, 50, "rep"),
        (20, 30, "op/x"),
        (30, 40, "op/y"),
        (45, 45, "op/z"),
    ]
    changes = [(-5, 999), (10, 1), (25, 10), (30, 100), (48, -50), (100, 777)]
    rows, usage = attribute(ranges, changes)
    short = [(path.split(" > ")[-1], held, delta) for _, path, held, delta in rows]
    assert short == [("rep", 1, 1), ("op/x", 11, 10), ("op/y", 111, 100), ("rep", 61, -50)]
    assert usage["cell/a > rep"].peak_bytes == 111
    assert usage["cell/a > rep > op/y"].peak_bytes == 100  # beyond what was held when it began
    assert usage["cell/a > rep"].net_bytes == 61
    assert usage["cell/a > rep > op/z"].count == 1
    assert usage["cell/a > rep > op/z"].allocated_bytes == 0


def test_the_history_of_a_gpu_counts_what_tensors_take():
    trace = [
        {"action": "segment_alloc", "time_us": 1, "size": 1 << 20},
        {"action": "alloc", "time_us": 2, "size": 512},
        {"action": "free_requested", "time_us": 3, "size": 512},
        {"action": "free_completed", "time_us": 4, "size": 512},
    ]
    assert history({"device_traces": [[], trace]}, 1) == [(2000, 512), (4000, -512)]


@pytest.mark.parametrize("count", [10, 5_000, 5_001, 123_457])
def test_a_long_timeline_keeps_its_peak_and_its_sum(count):
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randint(-50, 60, (count,), generator=generator).tolist()
    rows, held = [], 0
    for at, delta in enumerate(deltas):
        held += delta
        rows.append((float(at), "rep", held, delta))
    found = thinned(rows)
    assert len(found) <= 5_000
    assert len(found) == count or count > 5_000
    assert max(row[2] for row in found) == max(row[2] for row in rows)
    assert found[-1][2] == held == sum(row[3] for row in found)
    assert [row[0] for row in found] == sorted({row[0] for row in found})
