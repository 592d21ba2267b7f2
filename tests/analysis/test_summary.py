import io
import json

import pytest
from rich.console import Console

from analysis import summary
from tests.analysis.simulate import Simulation


@pytest.fixture
def no_figures(monkeypatch):
    """Figures of partial runs have tests of their own, and take most of the time."""
    monkeypatch.setattr(summary.figures, "write", lambda results, folder: [])


def text(run):
    out = io.StringIO()
    console = Console(file=out, width=120, highlight=False)
    for renderable in summary.write(run):
        console.print(renderable)
    return out.getvalue()


def flat(run):
    return " ".join(text(run).split())


def test_a_whole_run(tmp_path):
    simulation = Simulation(unavailable={"cuda": "no CUDA device"}, interpreted=("triton",))
    said = flat(simulation.write(tmp_path))
    assert "both under cpu llama is faster" in said
    assert "over 4 pairs, a factor of" in said
    assert "and it decides who wins" in said
    assert "Parity with the reference is proven for 36 of 36 measured cells" in said
    assert "triton ran through the interpreter: parity proven for 18 of 18 cells, no times." in said
    assert "cuda is unavailable for llama and mamba: no CUDA device." in said
    assert "incomplete" not in said
    assert (tmp_path / "tables" / "ratios.csv").stat().st_size > 1000
    assert (tmp_path / "figures" / "time.png").stat().st_size > 10_000


def test_written_again_it_is_the_same(tmp_path, no_figures):
    run = Simulation(seqlens=(128, 256, 512)).write(tmp_path)
    first = text(run)
    files = {p: p.read_bytes() for p in (tmp_path / "tables").iterdir()}
    assert text(run) == first
    assert {p: p.read_bytes() for p in (tmp_path / "tables").iterdir()} == files


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"costs": {("mamba", "cpu"): (8.0, 0.12, 0.0)}}, "only one architecture was measured"),
        (
            {"costs": {("mamba", "cpu"): (8.0, 0.12, 0.0), ("llama", "hf"): (6.0, 0.07, 0.0)}},
            "llama hf, mamba cpu",
        ),
        ({"seqlens": (128,)}, "both under cpu llama is faster"),
        ({"rounds": 1}, "One round gives no interval and so no verdict"),
        ({"rounds": 2}, "both under cpu"),
        (
            {
                "costs": {("mamba", "cuda"): (1.0, 0.1, 0)},
                "rounds": 0,
                "unavailable": {"cuda": "no GPU"},
            },
            "no GPU",
        ),
        ({"rounds": 0}, "This run holds no record yet"),
        ({"out_of_memory": {("llama", "hf"): 128}}, "llama under hf ran out of memory at 128, 181"),
        (
            {"out_of_memory": {(a, i): 128 for a in ("llama", "mamba") for i in ("cpu", "hf")}},
            "ran out of memory",
        ),
        ({"out_of_memory": {("mamba", "cpu"): 2048}}, "mamba ran out of memory"),
    ],
)
def test_partial_runs_end_in_plain_sentences(changed, expected, tmp_path, no_figures):
    costs = changed.get("costs", Simulation().costs)
    changed.setdefault("memory", dict.fromkeys(costs, (1e6, 1e4, 0.0)))
    assert expected in flat(Simulation(**changed).write(tmp_path))


def test_an_interrupted_run_says_what_is_missing(tmp_path, no_figures):
    run = Simulation(seqlens=(128, 256, 512)).write(tmp_path)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:31]) + lines[31][:40])
    assert "The run is incomplete: 12 of 12 cells lack rounds" in flat(run)
    (run / "records.jsonl").unlink()
    assert "This run holds no record yet" in flat(run)


def test_failures_and_timeouts_are_told(tmp_path, no_figures):
    run = Simulation(seqlens=(128, 256)).write(tmp_path)
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for row in rows:
        if row["cell"]["impl"] == "hf" and row["cell"]["arch"] == "mamba":
            row |= {
                "status": "timeout",
                "reason": "longer than 60 s",
                "time_ms": None,
                "memory_bytes": None,
            }
    (run / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert "mamba under hf timed out at 128, 256 tokens: longer than 60 s." in flat(run)


def test_modes_are_told_apart(tmp_path, no_figures):
    simulation = Simulation(
        seqlens=(128, 256, 512), modes=("decode", "train"), unavailable={"cuda": "no GPU"}
    )
    said = flat(simulation.write(tmp_path))
    assert (
        "Cache of 512 tokens (paper-50m, batch 1, fp32, decode (one token at context L), eager): "
        "llama 16.0 MiB, mamba 0.625 MiB, llama/mamba = 25.6; mamba's is the same at every length, "
        "llama's takes 32,768 bytes a token: equal at 20 tokens." in said
    )
    assert (
        "Time at 512 tokens (paper-50m, batch 1, fp32, train (forward + backward), eager)" in said
    )
    assert "cuda is unavailable for llama and mamba in decode and train: no GPU." in said
    assert "The paper beside this run" not in said


def test_the_command(tmp_path, capsys):
    run = Simulation(seqlens=(128, 256)).write(tmp_path / "run")
    assert summary.main([str(run)]) == 0
    assert "Implementations" in capsys.readouterr().out
    for bad in (tmp_path, tmp_path / "nothing"):
        assert summary.main([str(bad)]) == 2
        out = capsys.readouterr()
        assert out.out == ""
        assert out.err.count("\n") == 1
        assert "holds no plan.json" in out.err
    assert not (tmp_path / "nothing").exists()
    assert not (tmp_path / "tables").exists()
