"""Blocks on a Ray cluster of two nodes: nothing is lost with a worker or a node, and ratios stay paired."""

import os
import signal
import threading
import time
from contextlib import closing

import pytest

from bench.blocks import place
from bench.device import describe_place
from bench.engines.choice import LOOPBACK
from bench.options import given, make_parser, resolve
from bench.plan import PlanError
from bench.planning import create, make_plan
from bench.records import NAME, latest, read_records
from bench.sweep import carry_out
from tests.bench.fakes import Bench, devices

os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ[LOOPBACK] = "0"
ray = pytest.importorskip("ray", reason="the package ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A cluster whose head has one core, and another node of the same kind as `cluster.other`."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        made.other = made.add_node(**NODE)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def bench(cluster, tmp_path):
    from bench.engines.ray_engine import RayEngine

    made = []

    def make(*args, **kwargs):
        engine = lambda run, plan: RayEngine(run, plan, cluster.address, at_once=8)
        made.append(Bench(tmp_path, *args, engine=engine, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_blocks_are_measured_on_both_nodes_each_on_one_device(bench):
    b = bench([6001, 6002, 6003, 6004], impls=["hf", "torch"], rounds=1)
    records = b.measure()
    assert len(records) == 8
    assert {record["status"] for record in records} == {"ok"}
    assert all(len(places) == 1 for places in devices(records).values())
    assert b.watcher.most == 2
    assert len(set.union(*devices(records).values())) == 2


def test_a_killed_ray_worker_costs_nothing_but_time(bench, tmp_path):
    b = bench([5001, 669], impls=["hf", "torch"], rounds=1)
    (tmp_path / "once-parent").touch()
    records = b.measure()
    found = {(r["cell"]["impl"], r["cell"]["seqlen"]): r for r in latest(records)}
    assert len(found) == 4
    assert found["hf", 5001]["status"] == found["torch", 5001]["status"] == "ok"
    assert all(len(places) == 1 for places in devices(records).values())
    (reason,) = {found[impl, 669]["reason"] for impl in ("hf", "torch")}
    assert reason.startswith("the worker process was lost by Ray")
    assert reason.endswith("twice during this cell")


def test_an_interrupted_sweep_is_resumed_by_the_local_engine(bench, tmp_path):
    b = bench([5001, 777], impls=["hf", "torch"], rounds=1, timeout=300.0)

    def interrupt():
        while len(b.records()) < 2:
            time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        b.measure()
    assert {r["cell"]["seqlen"] for r in b.records()} == {5001}
    b.close()
    (tmp_path / "ran").unlink()
    local = Bench(tmp_path, [5001, 777], impls=["hf", "torch"], rounds=1, timeout=1.0)
    found = latest(local.measure())
    local.close()
    assert sorted(r["status"] for r in found) == ["ok", "ok", "timeout", "timeout"]
    assert len(local.ran()) == 2


def test_a_node_that_goes_away_is_survived(bench, cluster):
    b = bench([6001, 6002], impls=["hf", "torch", "cpu"], rounds=2)
    (raylet,) = cluster.other.all_processes["raylet"]
    leaving = str(raylet.process.pid)

    def remove():
        while leaving not in {place(r["device"]) for r in b.records()}:
            time.sleep(0.05)
        cluster.remove_node(cluster.other, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    records = b.measure()
    thread.join()
    assert len(latest(records)) == 12
    assert {record["status"] for record in records} == {"ok"}
    assert all(len(places) == 1 for places in devices(records).values())
    assert "was lost by Ray" in b.log()


def test_a_cluster_that_cannot_take_a_block_is_refused(bench):
    b = bench([1])
    b.engine._needs["num_cpus"] = 8
    with pytest.raises(
        PlanError, match="--threads 8: no node of the Ray cluster has more than 1 CPU"
    ):
        b.engine._check(on_gpu=False)


@pytest.mark.slow
def test_real_workers(cluster, tmp_path):
    from bench.engines.ray_engine import RayEngine

    argv = ["--preset", "tiny", "--seqlens", "16,32", "--arch", "mamba", "--impl", "hf,torch"]
    argv += ["--device", "cpu", "--threads", "1", "--rounds", "1"]
    parser = make_parser("")
    plan, tokens = make_plan(resolve(parser.parse_args(argv), given(parser, argv)), "a test")
    create(tmp_path / "run", plan, tokens)
    with closing(RayEngine(tmp_path / "run", plan, cluster.address)) as engine:
        assert carry_out(tmp_path / "run", plan, {}, 300.0, engine) == 0
    records = read_records(tmp_path / "run" / NAME)
    assert [record["status"] for record in records] == ["ok"] * 4
    assert all(record["time_ms"]["wall"] and record["parity"]["passed"] for record in records)
    assert all(record["device"] == describe_place("cpu") for record in records)
