"""Blocks as jobs of submitit on this machine; what jobs write reaches the records, even after the parent has died."""

import json

import pytest

from bench.blocks import place
from bench.engines.parts import PARTS, harvest, read_events
from bench.records import NAME, latest, make_record, read_records
from tests.bench.fakes import Bench

pytest.importorskip("submitit", reason="the package submitit is not installed")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    from bench.engines import slurm_engine

    monkeypatch.setattr(slurm_engine, "SETTLE_S", 1.0)
    monkeypatch.setattr(slurm_engine, "POLL_S", 0.05)
    made = []

    def make(*args, **kwargs):
        engine = lambda run, plan: slurm_engine.SlurmEngine(run, plan, at_once=2, cluster="local")
        made.append(Bench(tmp_path, *args, engine=engine, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_blocks_run_as_jobs_and_leave_nothing_behind(bench, tmp_path):
    b = bench([6001, 6002, 888], impls=["hf", "torch"], rounds=1)
    records = b.measure()
    assert len(records) == 6
    assert {record["status"] for record in records} == {"ok"}
    assert b.watcher.most == 2
    assert "a warning of some library" in b.log()
    b.close()
    assert not (tmp_path / PARTS).exists()


def test_a_dead_worker_costs_a_cell_and_a_late_one_is_a_timeout(bench):
    b = bench([1, 666, 777], rounds=1, timeout=1.0)
    found = {r["cell"]["seqlen"]: r for r in b.measure()}
    assert {n: r["status"] for n, r in found.items()} == {1: "ok", 666: "error", 777: "timeout"}
    assert found[666]["reason"] == "the worker process died (signal 9) during this cell"


def test_a_lost_job_costs_nothing_but_time(bench, tmp_path):
    b = bench([6001], impls=["hf", "torch"], rounds=1)
    (tmp_path / "once-parent").touch()
    records = latest(b.measure())
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert len({place(record["device"]) for record in records}) == 1
    assert "was lost by Slurm" in b.log()


def record_of(cell, started):
    return make_record(cell, 0, 0, "ok", started=started)


def test_what_a_dead_parent_did_not_read_is_harvested_once(bench, tmp_path):
    b = bench([1, 2, 3])
    have, new, torn = (record_of(cell, f"t{i}") for i, cell in enumerate(b.cells))
    b.appender.append(have)
    b.close()
    parts = tmp_path / PARTS
    parts.mkdir()
    lines = [{"event": "started", "pid": 1}]
    lines += [{"event": "record", "index": i, "record": r} for i, r in enumerate((have, new))]
    text = "".join(json.dumps(line) + "\n" for line in lines) + json.dumps(torn)[:40]
    (parts / "a.jsonl").write_text(text)
    (parts / "a.json").write_text("{}")
    harvest(tmp_path)
    assert [r["started"] for r in read_records(tmp_path / NAME)] == ["t0", "t1"]
    assert not list(parts.glob("*.json*"))
    harvest(tmp_path)
    assert len(read_records(tmp_path / NAME)) == 2


def test_a_part_is_read_by_whole_lines(tmp_path):
    part = tmp_path / "a.jsonl"
    assert read_events(part) == ([], 0)
    part.write_text('{"event": "started"}\n{"event": "re')
    events, offset = read_events(part)
    assert [e["event"] for e in events] == ["started"]
    part.write_text('{"event": "started"}\n{"event": "record"}\n')
    assert [e["event"] for e in read_events(part, offset)[0]] == ["record"]
