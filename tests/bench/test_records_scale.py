import pytest

from bench.records import NAME, read_records
from bench.records_scale import ROUNDS, main, resume, write


def test_what_is_written_is_a_complete_run(tmp_path):
    unsynced, synced = write(tmp_path, 3 * ROUNDS + 1)
    assert unsynced > 0
    assert synced > 0
    assert len(read_records(tmp_path / NAME)) == 3 * ROUNDS + 1
    seconds, before, most = resume(tmp_path)
    assert seconds > 0
    assert most >= before > 0


def test_a_run_that_is_not_complete_is_no_measurement(tmp_path):
    write(tmp_path, ROUNDS * 2)
    lines = (tmp_path / NAME).read_bytes().splitlines(True)
    (tmp_path / NAME).write_bytes(b"".join(lines[1:]))
    with pytest.raises(RuntimeError, match="1 cells are left"):
        resume(tmp_path)


def test_bad_options_are_one_line(capsys, tmp_path):
    for options in (["--records", "0"], ["--folder", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as stop:
            main(options)
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
