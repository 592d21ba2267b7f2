import errno
import itertools
import json
import math
import resource
import tracemalloc

import pytest

from bench.plan import Cell
from bench.records import (
    Appender,
    RecordError,
    done,
    latest,
    make_record,
    one_line,
    read_records,
    read_run,
    scan,
    statuses,
    stream_records,
    untimed,
)

CELL = Cell("mamba", "hf", "tiny", 64)
FIELDS = {
    "cell", "round", "order", "status", "reason", "kernels", "parity", "time_ms", "memory_bytes", "energy_j",
    "clocks", "stopped_by", "warmups", "padded", "started", "device",
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "records.jsonl"


def append(path, *records):
    appender = Appender(path)
    for record in records:
        appender.append(record)
    appender.close()


def test_a_record_has_every_field_and_comes_back(file):
    record = make_record(CELL, 1, 4, "ok", time_ms={"wall": [1.5], "device": []}, warmups=2)
    assert record.keys() == FIELDS
    append(file, record)
    assert read_records(file) == [record]


def test_unknown_status_and_field_are_refused():
    with pytest.raises(ValueError, match="status must be one of"):
        make_record(CELL, 0, 0, "fine")
    with pytest.raises(ValueError, match="unknown field of a record: tiem"):
        make_record(CELL, 0, 0, "ok", tiem=1)


def test_what_json_lacks_is_written_as_text(file):
    parity = {"outputs": {"hidden": {"max": [math.inf, math.nan]}}}
    append(file, make_record(CELL, 0, 0, "error", parity=parity))
    text = file.read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    largest, rms = read_records(file)[0]["parity"]["outputs"]["hidden"]["max"]
    assert float(largest) == math.inf
    assert math.isnan(float(rms))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_torn_last_line_is_skipped_and_then_cut(file, kept):
    records = [make_record(CELL, r, 0, "ok") for r in range(3)]
    append(file, *records)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:kept]) + lines[kept][:-20])
    assert read_records(file) == records[:kept]
    append(file, records[2])
    assert read_records(file) == [*records[:kept], records[2]]


def test_a_whole_last_line_without_its_end_is_torn_too(file):
    append(file, make_record(CELL, 0, 0, "ok"))
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert read_records(file) == []


@pytest.mark.parametrize("line", ["not json", "{}", '{"cell": {"arch": 1}, "round": 0}'])
def test_a_broken_line_in_the_middle_is_named(file, line):
    append(file, make_record(CELL, 0, 0, "ok"))
    whole = file.read_text()
    file.write_text(whole + line + "\n" + whole)
    with pytest.raises(RecordError, match="line 2"):
        read_records(file)


def test_done_cells_and_retries():
    other = Cell("llama", "hf", "tiny", 64)
    records = [
        make_record(CELL, 0, 0, "error"),
        make_record(CELL, 0, 0, "ok"),
        make_record(other, 0, 1, "timeout"),
    ]
    last = statuses(records)
    assert done(last) == {(CELL, 0), (other, 0)}
    assert done(last, retry=["error", "timeout"]) == {(CELL, 0)}
    assert [r["status"] for r in latest(records)] == ["ok", "timeout"]


def test_a_run_is_read_whole(tmp_path, file):
    (tmp_path / "plan.json").write_text('{"seed": 3}')
    with pytest.raises(RecordError, match="holds no machine"):
        read_run(tmp_path)
    (tmp_path / "machine.json").write_text('{"cpu": "x"}')
    append(file, make_record(CELL, 0, 0, "error"), make_record(CELL, 0, 0, "ok"))
    run = read_run(tmp_path)
    assert (run.plan, run.machine) == ({"seed": 3}, {"cpu": "x"})
    assert [record["status"] for record in run.records] == ["ok"]


def test_an_exception_is_one_short_line():
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(ValueError("x" * 9000))) <= 500


def test_the_scan_of_a_file_is_what_the_list_of_its_records_says(file):
    cells = [Cell("mamba", impl, "tiny", 64) for impl in ("cuda", "triton", "hf")]
    kinds = ("unavailable", "interpreted", "ok")
    records = [make_record(c, r, 0, k) for r in (0, 1) for c, k in zip(cells, kinds, strict=True)]
    append(file, *records, make_record(cells[2], 1, 0, "error"))
    last = scan(file)
    assert last == statuses(read_records(file))
    assert last[cells[2], 1] == "error"
    assert untimed(last) == {cells[0], cells[1]}
    assert untimed(last, ["unavailable"]) == {cells[1]}
    assert scan(file.with_name("none")) == {}


def test_a_scan_holds_keys_and_no_samples(file):
    """At most 400 bytes for each of 20,000 records, an eighth of what the records take."""
    count, rounds = 20_000, 5
    time_ms = {"wall": [math.pi] * 30, "device": []}
    with file.open("w") as lines:
        for n in range(count // rounds):
            cell = Cell("mamba", "hf", "tiny", n + 1)
            line = json.dumps(make_record(cell, "ROUND", n, "ok", time_ms=time_ms)) + "\n"
            lines.writelines(line.replace('"ROUND"', str(round_)) for round_ in range(rounds))
    tracemalloc.start()
    last = scan(file)
    scanned = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    some = list(itertools.islice(stream_records(file), 1000))
    listed = tracemalloc.get_traced_memory()[1] - scanned
    tracemalloc.stop()
    assert len(last) == count
    assert scanned / count < 400 < listed / len(some) / 4


def test_records_are_streamed_until_the_line_that_is_broken(file):
    append(file, make_record(CELL, 0, 0, "ok"))
    file.write_text(file.read_text() + "broken\n")
    records = stream_records(file)
    assert next(records)["round"] == 0
    with pytest.raises(RecordError, match=r"records.jsonl, line 2: .*--resume measures"):
        next(records)


def test_a_second_writer_is_refused_until_the_first_has_closed(file):
    first = Appender(file)
    first.append(make_record(CELL, 0, 0, "ok"))
    before = file.read_bytes()
    with pytest.raises(RecordError, match="another process is writing it"):
        Appender(file)
    assert file.read_bytes() == before
    first.close()
    append(file, make_record(CELL, 1, 0, "ok"))
    assert len(read_records(file)) == 2


def test_a_record_that_does_not_fit_leaves_the_whole_ones(file):
    append(file, make_record(CELL, 0, 0, "ok"))
    before = file.read_bytes()
    appender = Appender(file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"records\.jsonl") as trouble:
            appender.append(make_record(CELL, 1, 0, "ok"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert trouble.value.errno == errno.EFBIG
    assert file.read_bytes() == before
    appender.append(make_record(CELL, 1, 0, "ok"))
    appender.close()
    assert [r["round"] for r in read_records(file)] == [0, 1]


def test_a_torn_line_is_found_from_the_end_in_blocks(file, monkeypatch):
    monkeypatch.setattr("bench.records.BLOCK", 7)
    append(file, make_record(CELL, 0, 0, "ok"))
    whole = file.read_bytes()
    for torn in (b"", b"x", b"x" * 6, b"x" * 7, b"x" * 50):
        file.write_bytes(whole + torn)
        Appender(file).close()
        assert file.read_bytes() == whole
    file.write_bytes(b"no end of a line")
    Appender(file).close()
    assert file.read_bytes() == b""


def test_a_report_is_told_what_a_run_was_resumed_with(tmp_path, file):
    (tmp_path / "plan.json").write_text("{}")
    changed = {"when": "2026-01-02T03:04:05.000+00:00", "changed": ["torch 2.11 -> 2.13"]}
    (tmp_path / "machine.json").write_text(json.dumps({"cpu": "x", "resumed": [changed]}))
    warnings = []
    read_run(tmp_path, warnings)
    assert warnings == [
        "Records from 2026-01-02T03:04:05.000+00:00 on were measured after a change: torch 2.11 -> 2.13."
    ]
