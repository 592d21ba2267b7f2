import json
import math

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
)

CELL = Cell("mamba", "hf", "tiny", 64)
FIELDS = {
    "cell", "round", "order", "status", "reason", "kernels", "parity", "time_ms", "memory_bytes", "energy_j",
    "clocks", "stopped_by", "warmups", "padded", "started",
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
    assert done(records) == {(CELL, 0), (other, 0)}
    assert done(records, retry=["error", "timeout"]) == {(CELL, 0)}
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
