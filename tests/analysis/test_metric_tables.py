import pandas as pd
import pytest

from analysis import metric_tables, render, tables
from analysis.metric_pages import Found, cells, implementations, similarity
from tests.analysis.metric_simulate import MetricSimulation
from tests.analysis.simulate import Simulation

NAMES = {
    "metrics_by_layer", "metric_implementations", "attribution", "context", "shifts", "similarity",
    "paper_representation",
}  # fmt: skip
PARTS = {
    "no context": {"groups": ("hidden", "state", "attention", "shifts", "similarity")},
    "one architecture": {"archs": ("mamba",)},
    "llama alone": {"archs": ("llama",), "groups": ("hidden", "attention")},
    "one seed": {"seeds": 1},
    "one implementation": {"impls": ("cpu",), "groups": ("hidden", "context")},
    "no shifts": {"groups": ("hidden", "state", "attention", "context")},
    "shifts alone": {"groups": ("shifts",), "gold": False, "seqlen": 0},
    "similarity alone": {"groups": ("similarity",), "gold": False},
    "errors alone": {"impls": (), "unavailable": {"cuda": "no CUDA device"}, "gold": False},
    "trained weights": {"weights": "trained", "seeds": 1, "groups": ("attention",)},
}  # fmt: skip


def simulated(**changed):
    return MetricSimulation(**{"layers": 3} | changed)


def printed(records):
    out = render.console()
    with out.capture() as captured:
        for renderable in metric_tables.terminal(Found(records)):
            out.print(renderable)
    return captured.get()


def test_every_table_is_written(tmp_path):
    simulation = simulated(effects={"velocity": 0.5})
    paths = metric_tables.write(Found(simulation.records()), tmp_path / "tables")
    assert {p.stem for p in paths if p.suffix == ".md"} == NAMES
    assert {p.stem for p in paths if p.suffix == ".csv"} == NAMES | {"parity_failures"}
    for path in paths:
        if path.suffix == ".csv" and path.stem != "parity_failures":
            assert len(pd.read_csv(path)) > 0, path
    layers = (tmp_path / "tables" / "metrics_by_layer.md").read_text()
    assert "## mamba, ssm state: 512 tokens, fp32, initial weights, cpu, 5 seeds" in layers
    rows = [line.split(" | ")[0].strip("| ") for line in layers.split("\n\n")[1].splitlines()]
    assert rows[2:] == [
        "embedding",
        *(f"block {i}" for i in range(1, 4)),
        "final norm",
        "mean over blocks",
    ]


def test_attribution_in_words(tmp_path):
    simulation = simulated(effects={"velocity": 0.5})
    metric_tables.write(Found(simulation.records()), tmp_path)
    text = (tmp_path / "attribution.md").read_text()
    line = next(l for l in text.splitlines() if l.startswith("| residual stream | velocity |"))
    assert "| architecture | implementations agree to" in line
    assert "PARITY" not in text


@pytest.mark.parametrize("part", PARTS)
def test_what_is_there_is_shown(part, tmp_path):
    records = simulated(**{"seeds": 2} | PARTS[part]).records()
    assert len(metric_tables.write(Found(records), tmp_path)) == 15
    text = printed(records)
    said = metric_tables.sentences(Found(records))
    assert text.strip()
    assert said
    assert "nan" not in text.split()
    assert not any("nan" in sentence.split() for sentence in said)


def test_no_records():
    assert "No representation metric was measured." in printed([])
    assert metric_tables.sentences(Found([])) == ["No representation metric was measured."]


def test_the_terminal_is_short_and_complete():
    simulation = simulated(
        effects={"norm": 2.0}, sessions=12, unavailable={"cuda": "no CUDA device"}
    )
    text = printed(simulation.records())
    assert "Representation at 512 tokens (initial weights" in text
    line = next(l for l in text.splitlines() if l.startswith(" residual stream: norm"))
    assert line.rstrip().endswith("architecture")
    assert (
        "Shift scores stand on 12 sessions: intervals are wide; use at least 80 for a verdict."
        in text
    )
    assert "attention is nearly uniform" in " ".join(text.split())
    assert "no CUDA device" in text
    assert "PARITY" not in text
    assert len(text.splitlines()) < 130


def test_parity_failures_come_first_and_once():
    simulation = simulated(broken={("mamba", "cpu"): 1.5})
    failed = [l for l in metric_tables.sentences(Found(simulation.records())) if "PARITY" in l]
    assert len(failed) == 1
    assert failed[0].startswith("PARITY FAILURE: mamba under cpu against hf at 512 tokens (fp32): ")
    assert "PARITY FAILURE: mamba under cpu" in printed(simulation.records())
    table = cells(Found(simulation.records())).set_index(["arch", "impl"])
    assert table.loc[("mamba", "cpu"), "parity"].startswith("FAILED in ")
    assert table.loc[("llama", "cpu"), "parity"] == "passed"
    assert table.loc[("llama", "hf"), "parity"] == "baseline"
    assert table.loc[("llama", "reference"), "parity"] == "gold"


def test_enough_sessions_carry_a_verdict():
    said = metric_tables.sentences(Found(simulated(sessions=96).records()))
    assert "Shift scores stand on 96 sessions." in said


def test_sentences_come_from_the_data():
    said = metric_tables.sentences(Found(simulated(effects={"norm": 2.0}, noise=0.01).records()))
    assert any(
        s.startswith("Mamba / LLaMA, by architecture: norm (residual stream) 2.0") for s in said
    )
    assert any("attention spreads almost evenly at 512 tokens" in s for s in said)
    assert any(s.startswith("Implementations agree in all ") for s in said)
    assert any("best baseline 0.680 [0.650, 0.710] (input embeddings)" in s for s in said)
    assert any(
        "CKA, mamba, hf against cpu (512 tokens): lowest of the same layers 1 - 1.0e-07" in s
        for s in said
    )
    peaked = simulated(attention={"entropy": 2.0}).records()
    assert any("attention is concentrated" in s for s in metric_tables.sentences(Found(peaked)))
    one = metric_tables.sentences(Found(simulated(archs=("mamba",)).records()))
    assert (
        "512 tokens, fp32, initial weights: only mamba was measured, so nothing is compared." in one
    )


def test_what_failed_says_why():
    simulation = simulated(errors={("context", "mamba"): "OutOfMemoryError: 5 GiB"})
    said = metric_tables.sentences(Found(simulation.records()))
    assert "hf, cpu failed for mamba (context) at 512 tokens: OutOfMemoryError: 5 GiB." in said
    table = implementations(Found(simulation.records()))
    reasons = table[table.arch == "mamba"]["kernels, or why not"]
    assert reasons.str.contains("OutOfMemoryError").any()


def test_headlines_prefer_seeds_to_length():
    rows = simulated(groups=("hidden",)).records()
    rows += simulated(groups=("hidden",), seqlen=8192, seeds=1).records()
    assert "Representation at 512 tokens" in printed(rows)
    assert "8,192 tokens, fp32, initial weights gives no interval" in " ".join(
        metric_tables.sentences(Found(rows))
    )


def test_layers_without_a_similarity_are_left_out():
    rows = simulated(groups=("similarity",), gold=False).records()
    for row in rows:
        row["extra"]["cka"]["values"][0] = ["nan"] * 5
        row["extra"]["cka"]["null"] = None
    table = similarity(rows)
    assert len(table) == 5
    assert (table["shuffled tokens"] == "-").all()
    rows[0]["extra"]["cka"]["values"] = [["nan"] * 5] * 5
    assert len(similarity(rows)) == 4


def test_the_tables_of_the_sweep_are_not_overwritten(results, tmp_path):
    theirs = {
        p.name for p in tables.write(results(Simulation(seqlens=(128, 256), rounds=2)), tmp_path)
    }
    ours = {p.name for p in metric_tables.write(Found(simulated(seeds=1).records()), tmp_path)}
    assert not theirs & ours
