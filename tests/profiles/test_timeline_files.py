"""What is no profile, or not all of one, gives one clear error."""

import gzip
import json
import sqlite3

import pytest

from profiles import nsight_file, ranges
from profiles.events import ProfileError
from profiles.timeline import main, read
from tests.profiles.nsight_writer import write_kineto, write_nsight
from tests.profiles.test_timeline import one_rep


@pytest.fixture
def capture(tmp_path):
    made = one_rep()
    made.launch("scan", 410, 600, 700)
    return write_nsight(made, tmp_path / "capture.sqlite")


@pytest.fixture
def trace(tmp_path):
    return write_kineto(one_rep(), tmp_path / "trace.json.gz")


def change(path, statement):
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def test_the_domain_is_that_of_the_ranges():
    assert nsight_file.DOMAIN == ranges.DOMAIN


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.sqlite", b"", "is empty; export it again"),
        ("a.sqlite", b"not at all SQLite", "is no SQLite file; export it again"),
        ("a.nsys-rep", b"", "convert it: nsys export -t sqlite -o a.sqlite a.nsys-rep"),
        ("a.qdstrm", b"", "convert it: QdstrmImporter -i a.qdstrm -o a.nsys-rep && nsys export"),
        ("a b.nsys-rep", b"", "nsys export -t sqlite -o 'a b'.sqlite 'a b.nsys-rep'"),
        ("a.txt", b"", "is no profile: takes FILE.sqlite, trace.json"),
        ("a.json", b'{"traceEvents": [{"ph": "X"', "is cut short or no JSON"),
        ("a.json", b'{"a": 1}', "is JSON, but no Chrome trace: it has no list traceEvents"),
        ("a.json", b'{"traceEvents": []}', "has no ranges"),
        ("a.json", b"\xff\xfe\x00", "is cut short or no JSON"),
        ("a.json.gz", b"plain", "is no gzip file"),
        (
            "a.json",
            b'{"traceEvents": [{"ph": "X", "cat": "user_annotation", "name": "rep"}]}',
            "has an event that torch.profiler does not write (KeyError('pid')",
        ),
    ],
)
def test_files_that_are_no_profile(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProfileError) as error:
        read(tmp_path / name)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ProfileError, match="there is no such file"):
        read(tmp_path / "nothing.sqlite")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_export(capture, kept):
    content = capture.read_bytes()
    capture.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ProfileError, match=r"is cut short: .* bytes; export it again"):
        read(capture)


def test_a_damaged_export(capture):
    content = bytearray(capture.read_bytes())
    content[4096:] = b"\x07" * (len(content) - 4096)
    capture.write_bytes(bytes(content))
    with pytest.raises(ProfileError, match="is damaged"):
        read(capture)


@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_a_trace_cut_short(trace, kept):
    content = trace.read_bytes()
    trace.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ProfileError, match="is cut short"):
        read(trace)


def test_another_database(tmp_path):
    change(tmp_path / "other.sqlite", "CREATE TABLE books (title)")
    with pytest.raises(ProfileError, match="is an SQLite file, but no export of Nsight Systems"):
        read(tmp_path / "other.sqlite")


def test_no_ranges_at_all(capture):
    change(capture, "DROP TABLE NVTX_EVENTS")
    with pytest.raises(ProfileError, match=r"no table NVTX_EVENTS.*-t nvtx.*nvtx >= 0\.2\.12"):
        read(capture)


def test_no_ranges_of_the_domain(capture):
    with pytest.raises(ProfileError, match="has no ranges of domain NCCL"):
        read(capture, domain="NCCL")


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("NVTX_EVENTS", "globalTid"),
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "correlationId"),
        ("CUPTI_ACTIVITY_KIND_KERNEL", "globalPid"),
    ],
)
def test_a_missing_column_is_named(capture, table, column):
    change(capture, f"ALTER TABLE {table} DROP COLUMN {column}")
    with pytest.raises(ProfileError) as error:
        read(capture)
    assert f"table {table} has no column {column}; export it again" in str(error.value)


def test_kernels_without_demangled_names_have_short_ones(capture):
    change(capture, "ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN demangledName")
    assert list(read(capture).work.name) == ["scan"]


def test_kernels_without_times_are_counted(capture):
    change(capture, "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = 0, end = 0")
    found = read(capture)
    assert found.notes == ["1 launch without times in the file, left out"]
    assert found.ranges.launches.sum() == 0


def test_folders(tmp_path, trace):
    assert len(read(tmp_path).ranges) == 4
    for name in ("one.nsys", "profiles/two.torch"):
        inner = tmp_path / "run" / name
        inner.mkdir(parents=True)
        (inner / "trace.json.gz").write_bytes(trace.read_bytes())
    with pytest.raises(
        ProfileError, match=r"holds 2 captures; choose one: .*one\.nsys, .*two\.torch"
    ):
        read(tmp_path / "run")
    trace.rename(tmp_path / "capture.nsys-rep")
    with pytest.raises(ProfileError, match="convert it: nsys export"):
        read(tmp_path)
    (tmp_path / "capture.nsys-rep").unlink()
    with pytest.raises(ProfileError, match="holds no capture: none of trace"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"status": "error", "reason": "out of memory"})
    )
    with pytest.raises(ProfileError, match="the capture failed: out of memory"):
        read(tmp_path)


def test_files_that_may_not_be_read_or_written(capture, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main([str(capture), "--out", str(capture)])  # a file, where a folder should be
    assert "its tables cannot be written: File exists" in capsys.readouterr().err

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nsight_file, "read", refuse)
    with pytest.raises(ProfileError, match="cannot be read: Permission denied"):
        read(capture)


def test_an_error_is_one_line_with_status_2(tmp_path, capsys):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "a.json.gz")])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "is cut short" in said.err
    assert not said.out
