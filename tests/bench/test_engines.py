"""Several devices of one machine, blocks, what moves them, and the options of the engines."""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import device
from bench.blocks import Job, apart, cells_here, jobs, machine_kind, place, whereabouts
from bench.engines import choice
from bench.engines.local import LocalEngine
from bench.engines.node import Assignment, environment, listing, run_directory
from bench.options import make_parser
from bench.plan import Cell, Plan, PlanError
from bench.records import Run, make_record
from bench.runner import RunnerError
from tests.bench.fakes import Bench, devices

GPUS = ["GPU-a", "GPU-b", "GPU-c"]
CELLS = [Cell("mamba", impl, "tiny", n) for impl in ("hf", "torch") for n in (16, 32)]


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(*args, gpus=GPUS, **kwargs):
        made.append(Bench(tmp_path, *args, engine=lambda *_: LocalEngine(gpus), **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def at(cell, round_, where, status="ok"):
    """A record of a cell on a GPU."""
    return make_record(cell, round_, 0, status, device=on(where))


def on(gpu):
    return {"node": "here", "gpu": "Fake GPU", "uuid": gpu, "cpu": "Fake CPU"}


def test_every_gpu_works_and_every_block_stays_on_one(bench):
    b = bench([5001, 5002, 5003, 5004], impls=["hf", "torch", "cpu"])
    records = b.measure()
    assert len(records) == 24
    assert all(len(places) == 1 for places in devices(records).values())
    assert set.union(*devices(records).values()) == set(GPUS)
    assert b.watcher.most == 3


def test_the_cells_of_a_block_keep_their_seeded_order(bench):
    b = bench([1, 2, 3], impls=["hf", "torch", "cpu"], rounds=1)
    blocks = defaultdict(list)
    for record in b.measure():
        blocks[record["cell"]["seqlen"]].append(record["order"])
    assert all(orders == sorted(orders) for orders in blocks.values())
    assert sorted(itertools.chain(*blocks.values())) == list(range(9))


def test_a_gpu_on_which_no_worker_starts_is_given_up(bench, tmp_path):
    b = bench([5001, 5002, 5003, 5004], rounds=1)
    (tmp_path / "dead-GPU-b").touch()
    records = b.measure()
    assert Counter(r["status"] for r in records) == {"ok": 4}
    assert "GPU-b" not in set.union(*devices(records).values())
    assert "GPU-b is given up" in b.log()


def test_without_any_gpu_that_works_the_run_ends(bench, tmp_path):
    b = bench([5001, 5002, 5003, 5004], rounds=1)
    for gpu in GPUS:
        (tmp_path / f"dead-{gpu}").touch()
    with pytest.raises(RunnerError):
        b.measure()
    assert b.records() == []


def test_a_resumed_block_is_measured_whole_on_another_device(bench, tmp_path):
    first = bench([5001, 666], impls=["hf", "torch", "cpu"], rounds=1, gpus=["GPU-a", "GPU-b"])
    first.measure()
    first.close()
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"seqlen": 5001' in line][:-1]
    (tmp_path / "records.jsonl").write_bytes(b"".join(kept))
    again = bench([5001], impls=["hf", "torch", "cpu"], rounds=1, gpus=["GPU-c", "GPU-d"])
    records = again.measure()
    assert len(records) == 5
    assert [len(places) for places in devices(records).values()] == [1]
    assert devices(records)[0, 5001] <= {"GPU-c", "GPU-d"}
    assert len(again.measure()) == 5


def test_a_block_that_moved_and_stopped_halfway_is_not_complete():
    old, new, other = at(CELLS[0], 0, "GPU-a"), at(CELLS[2], 0, "GPU-b"), at(CELLS[1], 0, "GPU-a")
    where, behind = whereabouts([old, other, new])
    assert behind == {(CELLS[0], 0)}
    where, behind = whereabouts([old, other, new, at(CELLS[0], 0, "GPU-b")])
    assert behind == set()
    assert set(where.values()) == {"GPU-a", "GPU-b"}
    assert whereabouts([old, at(CELLS[2], 0, "GPU-b", "error")])[1] == set()
    assert whereabouts([make_record(CELLS[0], 0, 0, "ok")]) == ({}, set())
    assert whereabouts([{**old, "device": None}, new])[1] == set()


def test_a_job_takes_up_what_was_measured_elsewhere():
    pending, measured = [(CELLS[0], 3)], [(CELLS[2], 1, "GPU-a"), (CELLS[1], 2, "GPU-a")]
    job = Job("round", 0, pending, {}, measured=measured)
    line = job.line({cell: i for i, cell in enumerate(CELLS)})
    data = json.loads(line)
    assert cells_here(data, "GPU-a") == [[0, 3]]
    assert cells_here(data, "GPU-b") == [[2, 1], [0, 3]]
    job.arrive("GPU-a")
    assert job.pending == [(CELLS[0], 3)]
    job.arrive("GPU-b")
    assert job.pending == [(CELLS[2], 1), (CELLS[0], 3)]
    job.finish(CELLS[2], at(CELLS[2], 0, "GPU-b"))
    assert (CELLS[2], 1, "GPU-b") in job.measured


def test_a_round_is_one_job_or_a_block_for_each_length():
    plan = Plan(CELLS, 2, 0, "lab", "tiny")
    whole = list(jobs(plan, CELLS, {(CELLS[0], 0)}, {}, {}, split=False))
    assert [len(job.pending) for job in whole] == [3, 4]
    blocks = list(jobs(plan, CELLS, {(CELLS[0], 0)}, {(CELLS[0], 0): "GPU-a"}, {}, split=True))
    assert sorted(len(job.pending) for job in blocks) == [1, 2, 2, 2]
    (part,) = [job for job in blocks if len(job.pending) == 1]
    assert [(cell, where) for cell, _, where in part.measured] == [(CELLS[0], "GPU-a")]
    assert all(len({cell.seqlen for cell, _ in job.pending}) == 1 for job in blocks)


def test_kinds_of_machine_are_kept_apart():
    two = [at(CELLS[0], 0, "GPU-a"), at(CELLS[0], 1, "GPU-b"), at(CELLS[1], 0, "GPU-a")]
    two[1]["device"]["gpu"] = "Another GPU"
    unknown = make_record(CELLS[3], 0, 0, "unavailable", "why")
    plan = {"cells": [asdict(cell) for cell in CELLS], "rounds": 2}
    run = apart(Run(Path("run"), plan, {}, [*two, unknown]))
    presets = [record["cell"]["preset"] for record in run.records]
    assert presets == ["Fake GPU: tiny", "Another GPU: tiny", "Fake GPU: tiny", "tiny"]
    assert [cell["preset"] for cell in run.plan["cells"]] == [*presets[:3], "tiny", "tiny"]
    assert apart(run).records == run.records
    one = Run(Path("run"), plan, {}, [two[0], two[2], unknown])
    assert apart(one) is one


def test_place_and_kind_of_a_device():
    here = device.describe_place("cpu")
    assert here["uuid"] is here["gpu"] is None
    assert place(here) == here["node"]
    assert machine_kind(here) == here["cpu"]
    assert (place(on("GPU-a")), machine_kind(on("GPU-a"))) == ("GPU-a", "Fake GPU")
    assert (place(None), machine_kind(None)) == (None, "")


def test_a_node_without_the_run_directory_gets_its_files(tmp_path):
    run = tmp_path / "run"
    (run / "references" / "sliced").mkdir(parents=True)
    contents = {"plan.json": b"{}", "references/tokens": b"\0\1", "references/sliced/a": b"a"}
    for name, data in contents.items():
        (run / name).write_bytes(data)
    files = [(*entry, entry[0]) for entry in listing(run)]
    with run_directory(str(run), files, contents.get) as found:
        assert found == str(run)
    (run / "references" / "sliced" / "a").write_bytes(b"another")
    with run_directory(str(run), files, contents.get) as found:
        assert found != str(run)
        assert {name: Path(found, name).read_bytes() for name in contents} == contents
    assert not Path(found).exists()


def test_settings_replace_and_remove(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    env = environment({"TRITON_INTERPRET": None, "OMP_NUM_THREADS": "3"})
    assert env["OMP_NUM_THREADS"] == "3"
    assert "TRITON_INTERPRET" not in env
    assert env["PYTHONPATH"].split(":")[0] == str(Path(__file__).resolve().parents[2])


def test_a_worker_sees_its_gpu_alone(monkeypatch):
    started = []
    monkeypatch.setattr(
        "bench.engines.local.Worker", lambda assignment, log: started.append(assignment)
    )
    LocalEngine(GPUS).start(Assignment("run", "", {}), "GPU-b", None)
    LocalEngine().start(Assignment("run", "", {}), None, None)
    assert [a.settings for a in started] == [{"CUDA_VISIBLE_DEVICES": "GPU-b"}, {}]


def engine(monkeypatch, argv, gpus=3, kind="cuda"):
    """The engine of a command line on a machine with some GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(choice, "visible_gpus", lambda: GPUS[:gpus])
    args = make_parser("").parse_args(argv)
    return choice.make_engine(args, "run", Plan([], 1, 0, "lab", "tiny", options={"device": kind}))


def test_the_local_engine_takes_every_gpu_or_as_many_as_said(monkeypatch):
    assert engine(monkeypatch, []).places == GPUS
    assert engine(monkeypatch, []).splits
    assert engine(monkeypatch, ["--devices", "2"]).places == GPUS[:2]
    for found in (
        engine(monkeypatch, ["--devices", "1"]),
        engine(monkeypatch, [], gpus=1),
        engine(monkeypatch, [], kind="cpu"),
    ):
        assert found.places == [None]
        assert not found.splits


@pytest.mark.parametrize(
    ("argv", "kind", "says"),
    [
        (["--devices", "4"], "cuda", "--devices 4: this machine shows 3 GPUs"),
        (["--devices", "2"], "cpu", "--devices 2: this machine shows one CPU"),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch, argv, kind, says):
    with pytest.raises(PlanError, match=says):
        engine(monkeypatch, argv, kind=kind)


def refused(argv):
    args = make_parser("").parse_args(argv)
    said = {
        name: value for name, value in vars(args).items() if f"--{name.replace('_', '-')}" in argv
    }
    with pytest.raises(PlanError) as error:
        choice.check_engine(args, said)
    return str(error.value)


def test_options_of_another_engine_and_missing_packages_are_refused(monkeypatch):
    assert refused(["--ray-address", "auto"]) == "--ray-address: only together with --engine ray"
    assert "only together with --engine slurm" in refused(["--engine", "ray", "--slurm-time", "5"])
    if choice.importlib.util.find_spec("ray"):
        assert "is not HOST:PORT" in refused(["--engine", "ray", "--ray-address", "somewhere"])
        nobody = refused(["--engine", "ray", "--ray-address", "127.0.0.1:1"])
        assert nobody.startswith("--ray-address 127.0.0.1:1: no cluster answers")
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    if choice.importlib.util.find_spec("submitit"):
        assert refused(["--engine", "slurm"]).startswith("--engine slurm: there is no sbatch")
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    assert "crossover-lab[cluster]" in refused(["--engine", "ray"])
    assert "crossover-lab[cluster]" in refused(["--engine", "slurm"])


def test_how_a_run_is_resumed_with_the_same_engine():
    said = {"engine": "slurm", "slurm_time": 5, "slurm_extra": [("account", "a b")], "impl": ["hf"]}
    words = "--engine slurm --slurm-time 5 --slurm-extra 'account=a b'"
    assert choice.engine_words(said) == words
    assert choice.engine_words({"impl": ["hf"]}) == ""
