"""Tuning without a GPU: an artificial kernel whose configurations are right, wrong or broken, and a clock to match."""

import contextlib
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import kernels
from bench import tune
from bench.tuning import problems as tuning_problems
from bench.tuning import records as tuning_records
from bench.tuning import table as tuning_table
from bench.tuning.case import Case, Prepared, Stand, prepare
from bench.tuning.race import race, survivors
from kernels import tuning
from kernels.causal_conv1d.problem import CausalConv1dProblem

CPU = torch.device("cpu")
KERNEL = "causal_conv1d_fwd"
DEFAULT = {"BLOCK": 64, "num_warps": 4}
MACHINE = {"gpu": "Toy 1", "git": {"revision": "abc", "dirty": False}, "versions": {"triton": "3"}}
SHORT, LONG = CausalConv1dProblem(1, 8, 16), CausalConv1dProblem(2, 8, 40)
real_conv1d = kernels.causal_conv1d


class OutOfResources(Exception):
    pass


class Toy:
    """causal_conv1d whose `triton` computes by torch, as fast (by `clock`) as its configuration says."""

    def __init__(self):
        self.candidates = []
        self.ran, self.uncompiled, self.seconds = [], "", 1e9
        self.noise = random.Random(0)
        self.tried, self.launching = [], False

    def run(self, impl="triton", **inputs):
        if impl != "triton":
            return real_conv1d(**inputs, impl=impl)
        seqlen = inputs["x"].shape[2]
        same = {"dtype": str(inputs["x"].dtype)}
        config = tuning.configuration(KERNEL, DEFAULT, CPU, same, {"seqlen": seqlen})
        self.ran.append(config)
        match config.get("fault"):
            case "host":
                raise ValueError("BLOCK 99 is no power of 2")
            case "resources" if self.launching:
                raise OutOfResources("shared memory,\nRequired: 1, Hardware limit: 0")
            case "memory" if self.launching:
                raise torch.OutOfMemoryError("no memory")
        y = real_conv1d(**inputs, impl="torch")
        wrong = config.get("fault") == "wrong"
        wrong |= config.get("fault") == "odd" and seqlen % 2 == 1
        wrong |= (
            config.get("fault") == "long" and seqlen == LONG.seqlen and inputs["x"].shape[0] == 2
        )
        return y * 1.01 if wrong else y

    def trying(self, case, configuration):
        self.tried.append(configuration)
        return contextlib.nullcontext()

    def submit(self, requests, soon):
        self.launching = False
        return [self.ran[-1]]

    def wait(self, keys, seconds):
        self.launching = True
        return "PTXASError: registers" if keys[0].get("fault") == "compile" else ""

    def clock(self, run):
        run()
        self.seconds -= 1
        return 2 * self.ran[-1].get("cost", 1.0) * self.noise.uniform(0.999, 1.001)

    def stand(self, out=None):
        trying = tune.watching(out) if out else self.trying
        return Stand(CPU, 9, self.clock, self, lambda: self.seconds, trying)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    toy = Toy()
    module = SimpleNamespace(candidates=lambda kernel, problem, dtype, generation: toy.candidates)
    monkeypatch.setitem(sys.modules, "toy_kernel", module)
    monkeypatch.setitem(tuning.KERNELS, KERNEL, ("causal_conv1d", "forward", "toy_kernel"))
    monkeypatch.setattr(kernels, "causal_conv1d", toy.run)
    monkeypatch.setattr(tune, "code", lambda kernel: "1")
    monkeypatch.setattr(tuning_records, "code", lambda kernel: "1")
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "configurations")
    return toy


def raced(toy, *candidates, problem=SHORT, **options):
    toy.candidates = list(candidates)
    return race(prepare(Case(KERNEL, problem, "fp32"), toy.stand()), toy.stand(), **options)


def status(record):
    return [row["status"] for row in record["rows"]]


def test_the_fastest_is_found_and_confirmed(toy):
    record = raced(toy, DEFAULT, {"BLOCK": 32, "cost": 0.8}, {"BLOCK": 16, "cost": 0.9})
    assert record["best"] == {"BLOCK": 32, "num_warps": 4, "cost": 0.8}
    assert record["rows"][0]["configuration"] == record["default"] == DEFAULT
    assert len(record["rows"]) == 3  # the default once
    assert record["ratio"]["ratio"] == pytest.approx(0.8, rel=0.01)
    assert record["ratio"]["low"] < record["ratio"]["ratio"] < record["ratio"]["high"] < 0.85
    assert record["default_ms"] == pytest.approx(2, rel=0.01)
    assert record["best_ms"] == pytest.approx(1.6, rel=0.01)
    assert record["near"] == {"seqlen": 16}
    assert record["same"] == {"dtype": "torch.float32"}
    # fresh samples: the final did not decide alone
    assert len(record["rows"][1]["confirmed_ms"]) == len(record["rows"][0]["confirmed_ms"]) == 12
    text = " ".join(tuning_table.cells(record))
    assert "0.80" in text
    assert "BLOCK 64 -> 32, cost 0.8" in text
    assert text.endswith("3 / 0")


def test_hopeless_candidates_leave_after_the_heats_and_the_default_stays(toy):
    fast = [{"cost": 0.5 + n / 1000} for n in range(4)]
    record = raced(toy, *fast, {"cost": 0.7}, keep=2)
    timed = [bool(row["final_ms"]) for row in record["rows"]]
    assert timed == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]  # the default is twice as slow, and stays
    assert all(len(row["heat_ms"]) == 3 for row in record["rows"])
    assert survivors({0: 1.0, 1: 3.0, 2: 1.29, 3: 1.31}, 9) == [0, 2]
    assert survivors({0: 9.0, 1: 1.0, 2: 1.2, 3: 1.1}, 2) == [0, 1, 3]


def test_less_than_one_percent_is_no_winner(toy):
    record = raced(toy, {"cost": 0.995})
    assert record["best"] == {}
    assert record["ratio"]["high"] < 1  # known to be faster, but by too little
    assert "nothing: not faster by 1 % (cost 0.995)" in tuning_table.cells(record)
    slower = raced(toy, {"cost": 1.1})
    assert (slower["best"], slower["ratio"]) == ({}, None)
    assert "nothing: it is the fastest" in tuning_table.cells(slower)


def test_what_fails_is_a_row_with_its_reason(toy):
    faults = ("host", "compile", "resources", "memory", "wrong")
    record = raced(
        toy, *({"fault": fault, "cost": 0.1} for fault in faults), {"cost": 0.9}, {"cost": 0.1},
        problem=LONG, failed=[DEFAULT | {"cost": 0.1}],
    )  # fmt: skip
    assert status(record) == [
        "ok", "uncompiled", "uncompiled", "resources", "oom", "inaccurate", "ok", "fatal",
    ]  # fmt: skip
    reasons = [row["reason"] for row in record["rows"]]
    assert reasons[1] == "ValueError: BLOCK 99 is no power of 2"
    assert reasons[2] == "PTXASError: registers"
    assert "\n" not in reasons[3]
    assert "Hardware limit" in reasons[3]
    assert "output: " in reasons[5]
    assert reasons[7] == "the process ended while it ran"
    assert DEFAULT | {"cost": 0.1} not in toy.tried
    assert (
        tuning_table.tried(record)
        == "8 / 6: 2 uncompiled, 1 resources, 1 oom, 1 inaccurate, 1 fatal"
    )


def test_what_is_timed_is_checked_at_its_own_size(toy, monkeypatch):
    monkeypatch.setattr("bench.kernel_trial.checked_problem", lambda problem, mode, device: SHORT)
    record = raced(toy, {"fault": "long", "cost": 0.1}, problem=LONG)
    assert status(record) == ["ok", "inaccurate"]
    assert record["rows"][1]["reason"].startswith(f"{LONG}: output: ")


def test_a_winner_must_hold_at_an_odd_length(toy):
    record = raced(toy, {"fault": "odd", "cost": 0.5}, {"cost": 0.6})
    assert record["best"] == DEFAULT | {"cost": 0.6}
    assert status(record) == ["ok", "inaccurate", "ok"]
    assert record["rows"][1]["reason"].startswith("b1-d8-l15")


def test_a_default_that_fails_has_no_winner(toy):
    record = raced(toy, {"cost": 0.5}, failed=[DEFAULT])
    assert (record["best"], record["default_ms"]) == ({}, None)
    assert record["reason"] == "the default cannot be timed: the process ended while it ran"
    assert tuning_table.cells(record)[3:6] == ["", "", ""]


def todo(*problems):
    return [Case(KERNEL, problem, "fp32") for problem in problems or (SHORT, LONG)]


def tuned(toy, out, *problems):
    return tune.tune(todo(*problems), toy.stand(out), out, MACHINE, say=lambda text: None)


def test_cases_are_kept_and_the_time_is_a_limit(toy, tmp_path):
    toy.candidates = [{"cost": 0.8}]
    toy.seconds = 200
    assert tuned(toy, tmp_path) == 1
    assert not (tmp_path / "trying.json").exists()  # nobody is to blame
    records, ended = tuning_records.read(tmp_path)
    assert [record["problem"] for record in records] == [str(SHORT)]
    assert ended == []
    assert (records[0]["gpu"], records[0]["code"]) == ("Toy 1", "1")
    toy.seconds = 1e9
    assert tuned(toy, tmp_path, LONG) == 0
    assert [record["problem"] for record in tuning_records.read(tmp_path)[0]] == [
        str(SHORT),
        str(LONG),
    ]
    with (tmp_path / "tune.jsonl").open("a") as file:
        file.write('{"kernel": "torn')
    assert len(tuning_records.read(tmp_path)[0]) == 2


def test_a_case_ends_where_the_time_is_over(toy, tmp_path):
    toy.candidates = [{"cost": 0.8}]
    toy.seconds = 100  # a sample is a second, and a case takes more than that
    assert tuned(toy, tmp_path) == 2
    assert -5 <= toy.seconds <= 0
    assert tuning_records.read(tmp_path) == ([], [])


def test_who_ended_a_process_is_left_out(toy, tmp_path):
    toy.candidates = [{"cost": 0.5}, {"cost": 0.8}]
    with pytest.raises(RuntimeError), tune.watching(tmp_path)(todo()[0], DEFAULT | {"cost": 0.5}):
        raise RuntimeError("the device is lost")
    assert tuned(toy, tmp_path) == 0
    records, ended = tuning_records.read(tmp_path)
    assert [e["configuration"] for e in ended] == [DEFAULT | {"cost": 0.5}]
    assert status(records[0]) == ["ok", "fatal", "ok"]
    assert status(records[1]) == ["ok", "ok", "ok"]  # another problem
    assert tuned(toy, tmp_path, SHORT) == 0  # and ever after
    assert status(tuning_records.read(tmp_path)[0][0]) == ["ok", "fatal", "ok"]


def test_who_is_interrupted_is_not_to_blame(tmp_path):
    with pytest.raises(KeyboardInterrupt), tune.watching(tmp_path)(todo()[0], DEFAULT):
        raise KeyboardInterrupt
    assert not (tmp_path / "trying.json").exists()


def test_a_configuration_that_hangs_ends_the_process(tmp_path):
    script = f"""
import time
from pathlib import Path
from bench.tune import watching
from bench.tuning.case import Case
with watching(Path({str(tmp_path)!r}), 0.1)(Case("ssd_scan_fwd", "p", "fp32"), {{"BLOCK": 1}}):
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "the GPU hangs in " in done.stderr
    found = json.loads((tmp_path / "trying.json").read_text())
    assert found.pop("code")
    assert found == {
        "kernel": "ssd_scan_fwd",
        "problem": "p",
        "dtype": "fp32",
        "configuration": {"BLOCK": 1},
    }


def test_a_case_that_cannot_be_measured_is_a_record(toy, tmp_path, monkeypatch):
    elsewhere = lambda impl, **inputs: real_conv1d(**inputs, impl="torch")
    monkeypatch.setattr(kernels, "causal_conv1d", elsewhere)
    assert tuned(toy, tmp_path, SHORT) == 0
    (record,) = tuning_records.read(tmp_path)[0]
    assert (record["rows"], record["default_ms"]) == ([], None)
    assert record["reason"] == f"ValueError: {SHORT} is computed without {KERNEL}"
    assert tuning_records.write_tables([record]) == []


def test_a_lost_device_ends_the_process(monkeypatch):
    def lost(*ignored):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tune, "race", lost)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    case = todo()[0]
    prepared = Prepared(case, {}, SHORT, {}, [])
    stand = Stand(torch.device("cuda"), 9, None, None, lambda: 1.0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune._measure(case, prepared, stand, (), 6)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert "illegal" in tune._measure(case, prepared, stand, (), 6)["reason"]


@pytest.fixture
def gpu(toy, monkeypatch):
    """A GPU that is none: what `bench.tune` asks of it is answered by the toy."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "interpreted", lambda: False)
    monkeypatch.setattr(tune, "current_gpu", lambda: CPU)
    monkeypatch.setattr(tune, "generation", lambda device: 9)
    monkeypatch.setattr(tune.bench_kernels, "device_clock", lambda device: toy.clock)
    monkeypatch.setattr(tune, "Compiler", lambda: toy)
    monkeypatch.setattr(
        tune, "describe", lambda device, peaks: MACHINE | {"gpu": {"name": MACHINE["gpu"]}}
    )
    monkeypatch.setattr(tune, "problems", lambda kernel: (SHORT, LONG))
    toy.close = lambda: None
    return toy


def test_the_whole_command(gpu, tmp_path, capsys):
    gpu.candidates = [{"cost": 0.8}]
    command = ["--kernel", KERNEL, "--dtype", "fp32", "--out", str(tmp_path / "out"), "--write"]
    assert tune.main(command) == 0
    out, err = capsys.readouterr()
    assert err.count(" s left: ") == 2
    assert out.count("cost 0.8") == 2
    assert len(tuning.table_of("Toy 1")["entries"]) == 2
    ran = len(gpu.ran)
    assert tune.main(command) == 0
    assert len(gpu.ran) == ran  # nothing was missing


def test_the_status_tells_what_is_missing(gpu, tmp_path, monkeypatch, capsys):
    command = ["--kernel", KERNEL, "--dtype", "fp32", "--out", str(tmp_path / "out"), "--seconds"]
    assert tune.main([*command, "1e-9"]) == tune.UNFINISHED == 4
    assert "no time left for 2 of 2 cases" in capsys.readouterr().err

    def lost(*ignored):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(tune, "_measure", lost)
    assert tune.main([*command, "9"]) == 3
    assert "the GPU's context is lost (RuntimeError: CUDA error)" in capsys.readouterr().err


def test_a_failure_of_other_code_is_forgiven(toy, tmp_path):
    toy.candidates = [{"cost": 0.5}]
    note = todo()[0].named | {"configuration": DEFAULT | {"cost": 0.5}, "code": "an older one"}
    (tmp_path / "trying.json").write_text(json.dumps(note))
    tuned(toy, tmp_path, SHORT)
    assert status(tuning_records.read(tmp_path)[0][0]) == ["ok", "ok"]


def test_winners_and_defaults_become_the_table_of_the_gpu(toy, tmp_path):
    toy.candidates = [{"cost": 0.8, "BLOCK": 32}]
    tuned(toy, tmp_path, SHORT)
    toy.candidates = [{"cost": 1.2}]
    tuned(toy, tmp_path, LONG)
    records = tuning_records.read(tmp_path)[0]
    (path,) = tuning_records.write_tables(records)
    assert path == tuning.FOLDER / "toy-1.json"
    table = tuning.table_of("Toy 1")
    assert {"gpu", "date", "git", "versions", "entries"} == table.keys()
    by_length = {e["near"]["seqlen"]: e for e in table["entries"]}
    assert by_length[16]["configuration"] == {"BLOCK": 32, "num_warps": 4, "cost": 0.8}
    assert by_length[16]["ms"] < by_length[16]["default_ms"]
    assert by_length[40]["configuration"] == {}
    assert by_length[40]["ms"] == by_length[40]["default_ms"]


def test_entries_of_other_traits_stay(toy, tmp_path):
    toy.candidates = [{"cost": 0.8}]
    tuned(toy, tmp_path, SHORT)
    records = tuning_records.read(tmp_path)[0]
    old = tuning_records.entry(records[0]) | {"configuration": {"BLOCK": 1}}
    others = [old | {"near": {"seqlen": 99}}, old | {"kernel": "ssd_scan_fwd"}]
    tuning.FOLDER.mkdir()
    file = tuning.FOLDER / "toy-1.json"
    file.write_text(json.dumps({"gpu": "Toy 1", "entries": [old, *others]}))
    tuning_records.write_tables(records)
    entries = tuning.table_of("Toy 1")["entries"]
    assert all(other in entries for other in others)
    assert old not in entries
    assert len(entries) == 3
    assert [path.name for path in tuning.FOLDER.iterdir()] == ["toy-1.json"]


def test_records_of_other_code_do_not_count(toy, tmp_path, monkeypatch):
    tuned(toy, tmp_path, SHORT)
    records = tuning_records.read(tmp_path)[0]
    assert tuning_records.of_this_code(records) == records
    monkeypatch.setattr(tuning_records, "code", lambda kernel: "2")
    assert tuning_records.of_this_code(records) == []


def test_the_code_of_a_kernel_is_what_its_folder_imports(monkeypatch):
    read = []
    real = tuning_records.Path.read_bytes
    monkeypatch.setattr(
        tuning_records.Path, "read_bytes", lambda path: read.append(path.parent.name) or real(path)
    )
    tuning_records.code.cache_clear()
    first = tuning_records.code("attention_statistics")
    assert {"attention_statistics", "causal_attention", "kernels"} <= set(read)
    assert "causal_conv1d" not in read
    assert first != tuning_records.code("causal_conv1d_bwd")


def test_without_a_gpu_there_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--write"]):
        with pytest.raises(SystemExit) as stop:
            tune.main(arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "there is no CUDA device on this machine" in line


def test_records_become_a_table_without_a_gpu(toy, tmp_path, capsys):
    toy.candidates = [{"cost": 0.8}]
    tuned(toy, tmp_path, SHORT)
    assert (
        tune.main(["--write", "--out", str(tmp_path), "--kernel", f"{KERNEL},causal_conv1d_fwd"])
        == 0
    )
    out = capsys.readouterr().out
    assert str(SHORT) in out
    assert "cost 0.8" in out
    assert "wrote " in out
    assert len(tuning.table_of("Toy 1")["entries"]) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--kernel", "mlp"], "mlp"),
        (["--dtype", "int8"], "int8"),
        (["--operator", "mlp"], "mlp"),
        (["--seconds", "0"], "--seconds"),
        (["--keep", "0"], "--keep"),
        (
            ["--kernel", "selective_scan_fwd", "--operator", "ssd_scan"],
            "none is of --operator ssd_scan",
        ),
    ],
)
def test_bad_arguments_are_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        tune.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_every_kernel_has_problems_and_a_place_in_the_order():
    assert sorted(tuning_problems.ORDER) == sorted(tuning.KERNELS)
    for kernel in tuning.KERNELS:
        found = tuning_problems.problems(kernel)
        assert len(set(map(str, found))) == len(found) >= 2


@pytest.mark.parametrize("kernel", tuning_problems.ORDER)
def test_candidates_are_whole_different_and_few(kernel):
    """A name that only the default has would stay as the default has it."""
    try:
        candidates = tune.candidates(kernel)
    except NotImplementedError as error:
        pytest.skip(str(error))
    for problem in tuning_problems.problems(kernel):
        for dtype in (torch.bfloat16, torch.float32):
            found = candidates(kernel, problem, dtype, 9)  # none where another kernel computes that
            names = found[0].keys() if found else ()
            assert all(other.keys() >= names for other in found), str(problem)
            assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found) <= 32


def test_kernels_without_candidates_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bare_kernel", SimpleNamespace())
    for kernel, module in ((KERNEL, "bare_kernel"), ("ssd_scan_fwd", "kernels.nobody.forward")):
        monkeypatch.setitem(tuning.KERNELS, kernel, (*tuning.KERNELS[kernel][:2], module))
    found, absent = tune.cases([KERNEL, "ssd_scan_fwd"], ["fp32"])
    assert found == []
    assert all(reason.startswith("no candidates: ") for reason in absent.values())
    assert set(absent) == {KERNEL, "ssd_scan_fwd"}
