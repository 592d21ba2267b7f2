import copy
from dataclasses import replace

import pytest

from bench import compare
from tests.analysis.simulate import MACHINE, Simulation

SHORT = (128, 256, 512, 1024)


def verdicts(a, b):
    return {(c.cell.id, c.measure): c.verdict for c in compare.compare(a, b)[0]}


def slowed(simulation, key, factor):
    costs = {
        k: tuple(v * (factor if k == key else 1) for v in cost)
        for k, cost in simulation.costs.items()
    }
    return replace(simulation, costs=costs)


def test_a_run_compared_with_itself(tmp_path, capsys):
    run = str(Simulation(seqlens=SHORT).write(tmp_path / "a"))
    assert compare.main([run, run]) == 0
    out = capsys.readouterr()
    assert "faster" not in out.out.split("simultaneous")[1]
    assert "slower" not in out.out
    assert out.err == ""


def test_two_runs_of_the_same_code_rarely_raise_an_alarm():
    """36 cells at 95 % each would raise one in almost every comparison; simultaneous intervals do in 5 %."""
    alarms = 0
    trials = 60
    for seed in range(trials):
        a = Simulation(seed=2 * seed, between=0.02).records()
        b = Simulation(seed=2 * seed + 1, between=0.02).records()
        said = verdicts(a, b)
        assert len(said) == 72
        alarms += bool({"faster", "slower", "more", "less"} & set(said.values()))
    assert alarms <= 6  # P(more | 5 %) = 0.03


def test_a_slower_cell_is_a_regression(tmp_path, capsys):
    a = Simulation(seqlens=SHORT)
    b = slowed(replace(a, seed=1), ("mamba", "cpu"), 1.25)
    assert compare.main([str(a.write(tmp_path / "a")), str(b.write(tmp_path / "b"))]) == 1
    out = capsys.readouterr().out
    assert "4 slower" in out
    assert compare.main([str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert "4 faster" in capsys.readouterr().out


def test_more_memory_is_a_regression():
    a = Simulation(seqlens=SHORT)
    memory = {k: tuple(1.5 * v for v in m) for k, m in a.memory.items()}
    said = verdicts(a.records(), replace(a, memory=memory).records())
    assert said["llama-cpu-paper-50m-512-b1-fp32-prefill-eager", "memory"] == "more"


def test_out_of_memory_and_failures_are_regressions(tmp_path, capsys):
    a = Simulation(seqlens=SHORT)
    b = replace(a, seed=1, out_of_memory={("llama", "hf"): 1024})
    said = verdicts(a.records(), b.records())
    assert said["llama-hf-paper-50m-1024-b1-fp32-prefill-eager", "time"] == "slower"

    broken = copy.deepcopy(a.records())
    for record in broken:
        if record["cell"]["impl"] == "cpu" and record["cell"]["arch"] == "mamba":
            record |= {"status": "error", "reason": "parity: 3.1e-02 > 1.0e-05", "time_ms": None}
    found = [c for c in compare.compare(a.records(), broken)[0] if c.verdict == "failed"]
    assert {c.cell.seqlen for c in found} == set(SHORT)
    assert found[0].reason == "error (parity: 3.1e-02 > 1.0e-05)"


def test_cells_without_a_partner_are_listed(tmp_path, capsys):
    a = Simulation(seqlens=SHORT, unavailable={"cuda": "no GPU"})
    b = Simulation(seqlens=(*SHORT, 2048), unavailable={"cuda": "no GPU"})
    comparisons, missing = compare.compare(a.records(), b.records())
    assert {c.cell.seqlen for c in comparisons} == set(SHORT)
    lines = list(compare.not_compared(missing))
    assert "llama-hf-paper-50m-b1-fp32-prefill-eager at 2048 tokens: only in B" in lines
    assert any("cuda" in line and "unavailable (no GPU)" in line for line in lines)


def test_different_machines_are_warned_of_in_one_line(tmp_path, capsys):
    other = {
        **MACHINE,
        "gpu": {"name": "NVIDIA H200"},
        "versions": {**MACHINE["versions"], "torch": "2.11.0"},
    }
    a = Simulation(seqlens=SHORT).write(tmp_path / "a")
    b = Simulation(seqlens=SHORT, machine=other).write(tmp_path / "b")
    compare.main([str(a), str(b)])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "gpu no GPU -> NVIDIA H200" in err
    assert "torch 2.13.0 -> 2.11.0" in err


def test_one_round_decides_nothing_about_time(tmp_path):
    a = Simulation(seqlens=SHORT, rounds=1)
    b = slowed(a, ("mamba", "cpu"), 3.0)
    said = verdicts(a.records(), b.records())
    assert {v for (_, measure), v in said.items() if measure == "time"} == {"undecided"}
    assert {v for (_, measure), v in said.items() if measure == "memory"} == {
        "equivalent"
    }  # a count


@pytest.mark.parametrize(
    "arguments", [["{empty}", "{run}"], ["{run}", "{run}/nothing"], ["{run}", "{other}"]]
)
def test_bad_input_is_one_line_and_status_2(arguments, tmp_path, capsys):
    run = Simulation(seqlens=SHORT, rounds=1).write(tmp_path / "run")
    other = Simulation(seqlens=(333,), rounds=1).write(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    paths = {"run": run, "other": other, "empty": tmp_path / "empty"}
    assert compare.main([a.format(**paths) for a in arguments]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["a", "b", "--confidence", "95"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare.main(arguments)
    assert "Traceback" not in capsys.readouterr().err
