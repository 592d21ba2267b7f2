import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.findings import __main__ as findings
from analysis.findings import figure, runs
from analysis.findings.growth import octave
from analysis.findings.page import COLUMNS
from tests.analysis.metric_simulate import MetricSimulation
from tests.analysis.simulate import MACHINE, Simulation

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "profiles" / "records" / "cpu-epyc-2-cores"
GPU = {"name": "NVIDIA H200", "memory_bytes": 141 << 30}
PEAKS = {"copy_bytes_per_s": 1e18, "exp_per_s": 1e18, "matmul_flops": {"fp32": 1e12}}


def world(llama_hf=4.0, llama_cpu=1.0, mamba_cpu=0.8, mamba_hf=8.0, memory=1e5, **options):
    """Times proportional to length, without noise; memory beyond the weights is `memory` bytes a token and ms."""
    costs = {
        ("llama", "hf"): (0.0, llama_hf, 0.0), ("llama", "cpu"): (0.0, llama_cpu, 0.0),
        ("mamba", "hf"): (0.0, mamba_hf, 0.0), ("mamba", "cpu"): (0.0, mamba_cpu, 0.0),
    }  # fmt: skip
    options = {
        "costs": costs, "memory": {cell: (0.0, memory * cost[1], 0.0) for cell, cost in costs.items()},
        "seqlens": (2048, 4096), "rounds": 2, "samples": 1, "within": 0.0, "between": 0.0,
        "machine": MACHINE | {"peaks": PEAKS, "git": {"revision": "abcdef1234", "dirty": False}},
    } | options  # fmt: skip
    return Simulation(**options)


def page(tmp_path, *folders):
    """The text made of folders, on single lines, by its sections; the whole table as a dictionary of cells."""
    given = findings.readable(folders, tmp_path)
    text = findings.findings(given, folders, tmp_path)
    rows, claim = {}, ""
    for line in re.findall(r"^\| (?!claim|---)(.+) \|$", text.split("\n## ")[0], re.MULTILINE):
        cells = dict(zip(COLUMNS, (cell.strip() for cell in line.split(" | ")), strict=True))
        claim = re.sub(r"\[\d+\]\(\S+\) ", "", cells["claim"])
        rows[claim] = cells
    sections = {part.split("\n")[0]: " ".join(part.split()) for part in text.split("\n## ")[1:]}
    return rows, sections, text


def section(sections, number):
    return next(text for heading, text in sections.items() if heading.startswith(f"{number}. "))


def verdicts(rows):
    return [row["verdict"].strip("*") for row in rows.values() if row["verdict"]]


def changed(run, **plan):
    """A run whose plan, and preset, say something else."""
    data = json.loads((run / "plan.json").read_text()) | plan
    (run / "plan.json").write_text(json.dumps(data))
    if "preset" in plan:
        file = run / "records.jsonl"
        file.write_text(file.read_text().replace('"paper-50m"', f'"{plan["preset"]}"'))
    return run


def test_planted_ratios_are_told_apart_by_implementation(tmp_path):
    rows, sections, text = page(tmp_path, world().write(tmp_path / "record"))
    time = rows["time, 4,096 tokens"]
    assert time["published"] == "10.67"
    assert time["paper's kind of pairing, here"] == "5.00 (`hf` / `cpu`)"
    assert time["held equal"] == "`cpu` 1.25<br>`hf` 0.500"
    assert time["best against best"] == "1.25 (`cpu` / `cpu`)"
    assert time["verdict"] == "**depends on the implementation**"
    assert "LLaMA is faster under `hf` (2.00x); Mamba is faster under `cpu` (1.25x)" in section(
        sections, 1
    )
    assert "4,096 tokens, 2 rounds" in section(sections, 1)
    assert "Repeat: `python -m bench.sweep` ([`record`](record), revision `abcdef1`)" in section(
        sections, 1
    )
    assert text.startswith("<!-- findings of record: ")
    assert "# Findings on a CPU: 2 cores of simulated" in text
    assert "no GPU has been measured yet" in text
    assert "from 0.125" not in text
    assert "| 4,096 | 0.125 | 5.00 | 40.0 |" in text


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({"mamba_cpu": 1.2}, "reversed"),
        ({"llama_hf": 10.67 * 8, "llama_cpu": 10.67 * 0.8}, "stands"),
        ({"mamba_hf": 2.0}, "direction stands, smaller"),
        ({"llama_hf": 8.0 * 50, "llama_cpu": 0.8 * 40}, "direction stands, larger"),
        ({"llama_hf": 8.0, "llama_cpu": 0.8}, "no difference shown"),
    ],
)
def test_the_verdict_follows_the_ratios(tmp_path, costs, said):
    rows, _, _ = page(tmp_path, world(**costs).write(tmp_path / "run"))
    assert rows["time, 4,096 tokens"]["verdict"] == f"**{said}**"


def test_fewer_weights_are_told_from_less_memory(tmp_path):
    run = world(mamba_cpu=1.1, mamba_hf=4.4, memory=100.0)
    rows, sections, _ = page(tmp_path, run.write(tmp_path / "run"))
    name = "peak memory, weights included, 4,096 tokens"
    assert rows[name]["verdict"] == "**only because its weights are fewer**"
    assert (
        rows["peak memory beyond the weights, 4,096 tokens"]["held equal"]
        == "`cpu` 0.909<br>`hf` 0.909"
    )
    assert "llama 53.7M, mamba 29.9M" in section(sections, 2)


def test_crossovers_that_are_where_the_paper_has_them_stand(tmp_path):
    lengths = (128, 256, 512, 1024)
    quadratic = {("llama", impl): (0.0, 0.0, 1 / 370) for impl in ("hf", "cpu")}
    costs = quadratic | {("mamba", impl): (0.0, 1.0, 0.0) for impl in ("hf", "cpu")}
    rows, sections, _ = page(tmp_path, world(costs=costs, seqlens=lengths).write(tmp_path / "run"))
    crossing = rows["crossover of time"]
    assert re.match(r"`cpu` 3(69|70|71)\b", crossing["held equal"])
    assert crossing["verdict"] == "**stands**"
    assert "below its smallest length, 512 tokens" in section(sections, 3)
    assert re.search(
        r"pairing time crosses at 3(69|70|71)\b.* tokens, as published", section(sections, 3)
    )
    assert rows["growth of time, LLaMA; Mamba (slopes)"]["verdict"] == "**stands; Mamba linear**"


def test_quadratic_under_one_implementation_alone_depends_on_it(tmp_path):
    costs = dict(world().costs) | {
        ("llama", "hf"): (0.0, 0.0, 1.0),
        ("mamba", "hf"): (0.0, 0.0, 1.0),
    }
    rows, sections, _ = page(tmp_path, world(costs=costs).write(tmp_path / "run"))
    growth = rows["growth of time, LLaMA; Mamba (slopes)"]
    assert re.fullmatch(r"`cpu` 1.000?; 1.000?<br>`hf` 2.00; 2.00", growth["held equal"])
    assert growth["verdict"] == "**depends on the implementation; Mamba not linear under `hf`**"
    assert "| LLaMA `hf` | 2.00 |" in section(sections, 5)


def test_a_slope_over_an_octave_has_its_interval():
    curve = pd.DataFrame({512: [1.0, 1.0], 1024: [2.0, 2.0], 1448: [9.0, 9.0], 2048: [8.0, 4.0]})
    slope, low, high = octave(curve)
    assert slope == pytest.approx(1.5)
    assert low < 1 < 2 < high
    assert math.isnan(octave(curve[[512]])[0])


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ({("llama", "hf"): 8192}, "stands"),
        ({("llama", "hf"): 4096}, "stands"),
        ({}, "not reproduced"),
    ],
)
def test_running_out_of_memory_is_looked_for_at_the_paper_s_length(tmp_path, out, said):
    run = world(seqlens=(2048, 4096, 8192), out_of_memory=out).write(tmp_path / "run")
    rows, _, _ = page(tmp_path, run)
    row = rows["peak of LLaMA at 8,192, weights included"]
    assert row["verdict"] == f"**{said}**"
    assert "(measured)" in row["held equal"]
    hf = row["paper's kind of pairing, here"]
    assert hf == "`hf` out of memory (measured)" if out else "GiB (measured)" in hf


def test_what_was_not_measured_is_predicted_and_named_so(tmp_path):
    run = world().write(tmp_path / "run")
    recorded = json.loads((RECORD / "plan.json").read_text())["architectures"]
    rows, sections, _ = page(tmp_path, changed(run, architectures=recorded))
    row = rows["peak of LLaMA at 8,192, weights included"]
    assert row["paper's kind of pairing, here"] == "`hf` 4.55 GiB (predicted)"
    assert row["verdict"] == "**cannot be tested here**"
    assert "would add 16.0 GiB" in section(sections, 6)
    assert "Predictions are of `bench.memory_model`" in section(sections, 6)
    assert "under the implementation that needs least: LLaMA 0.841 GiB (predicted)" in section(
        sections, 7
    )


def test_the_paper_s_protocol_gives_its_longest_length(tmp_path):
    world().write(tmp_path / "record")
    theirs = world(seqlens=(4096, 8192), mamba_cpu=0.4).write(
        tmp_path / "record" / "paper-protocol"
    )
    changed(theirs, protocol="paper", command="python -m bench.sweep --protocol paper")
    rows, sections, _ = page(tmp_path, tmp_path / "record")
    assert rows["time, 4,096 tokens"]["paper's kind of pairing, here"] == "5.00 (`hf` / `cpu`)"
    assert (
        "zero-padded input, logits of all positions): time at 4,096 tokens, 2 rounds: 10.0"
        in section(sections, 1)
    )
    assert "`python -m bench.sweep --protocol paper` ([`record/paper-protocol`]" in section(
        sections, 1
    )
    assert rows["peak of LLaMA at 8,192, weights included"]["verdict"] == "**not reproduced**"
    assert (
        "(measured by its protocol)"
        in rows["peak of LLaMA at 8,192, weights included"]["held equal"]
    )


def test_reach_is_no_privilege_of_the_one_that_was_claimed(tmp_path):
    run = world(seqlens=(4096, 32768)).write(tmp_path / "run")
    assert page(tmp_path, run)[0]["longest context"]["verdict"] == "**not peculiar to Mamba**"
    alone = world(seqlens=(4096, 32768), out_of_memory={("llama", i): 32768 for i in ("hf", "cpu")})
    assert (
        page(tmp_path, alone.write(tmp_path / "alone"))[0]["longest context"]["verdict"]
        == "**stands**"
    )


def test_long_contexts_count_as_reach(tmp_path):
    world().write(tmp_path / "record")
    (tmp_path / "record" / "long").mkdir()
    row = {"arch": "mamba", "impl": "cpu", "preset": "paper-50m", "dtype": "fp32", "chunk": 16384}
    row |= {"status": "ok", "seqlen": 131072}
    lines = [row, row | {"arch": "llama", "status": "timeout"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "record" / "long" / "long.jsonl").write_text(text)
    rows, sections, _ = page(tmp_path, tmp_path / "record")
    assert rows["longest context"]["held equal"] == "LLaMA 4,096 ran; Mamba 131,072 ran"
    again = "--seqlens 131072 --arch mamba --impl cpu --preset paper-50m --dtype fp32 --chunk 16384"
    assert f"`python -m bench.long_context {again}` ([`record/long`](record/long))" in section(
        sections, 7
    )
    (tmp_path / "record" / "long" / "long.jsonl").write_text("{\n")
    with pytest.raises(runs.RecordError, match="not what bench"):
        page(tmp_path, tmp_path / "record")


def test_equal_size_decoding_and_training_are_found_in_folders(tmp_path):
    world().write(tmp_path / "record")
    sizes = {
        arch: {"total": 53_000_000 + i, "embedding": 1, "other": 1}
        for i, arch in enumerate(("llama", "mamba"))
    }
    equal = world(mamba_cpu=0.5).write(tmp_path / "record" / "matched")
    changed(equal, preset="matched-50m", architectures=sizes)
    world(modes=("decode",), llama_cpu=3.2).write(tmp_path / "record" / "decode")
    world(modes=("train",), mamba_cpu=2.0).write(tmp_path / "record" / "train")
    rows, sections, _ = page(tmp_path, tmp_path / "record")
    assert rows["time, 4,096 tokens"]["best against best"] == "1.25 (`cpu` / `cpu`)"
    assert rows["time, matched-50m, 4,096"]["held equal"] == "`cpu` 2.00<br>`hf` 0.500"
    assert rows["time, matched-50m, 4,096"]["verdict"] == "**depends on the implementation**"
    assert "LLaMA 53.0M, Mamba 53.0M" in section(sections, 11)
    assert rows["time, decode at 4,096"]["best against best"] == "4.00 (`cpu` / `cpu`)"
    assert (
        "What is kept of 4,096 tokens: LLaMA 128 MiB, Mamba 0.625 MiB; equal at 20 tokens"
        in section(sections, 12)
    )
    assert rows["time, train at 4,096"]["held equal"] == "`cpu` 0.500<br>`hf` 0.500"
    assert rows["time, train at 4,096"]["verdict"] == "**LLaMA, under every implementation**"


def test_the_main_run_is_the_one_with_the_paper_s_pairing(tmp_path):
    fused = {cell: cost for cell, cost in world().costs.items() if "hf" not in cell}
    lengths = tuple(256 * 2**i for i in range(6))
    world(costs=fused, seqlens=lengths).write(tmp_path / "suite" / "sweep-octaves")
    world().write(tmp_path / "suite" / "sweep-paper")
    rows, sections, text = page(tmp_path, tmp_path / "suite")
    assert rows["time, 4,096 tokens"]["paper's kind of pairing, here"] == "5.00 (`hf` / `cpu`)"
    assert "([`suite/sweep-paper`](suite/sweep-paper)" in section(sections, 1)
    assert re.search(
        r"LLaMA `cpu` \| 1.0000? \| 1.0000? \| 256-8,192 \|", text.replace("1.00 ", "1.000 ")
    )
    assert re.search(r"LLaMA `hf` \| .* \| 2,048-4,096 \|", text)
    assert "(suite/sweep-octaves)" in section(sections, 5)


def test_a_claim_without_its_run_names_the_command(tmp_path):
    rows, sections, _ = page(tmp_path, world().write(tmp_path / "run"))
    assert verdicts(rows).count("not measured") == 5
    assert "Needs `python -m analysis.metrics RUN --groups context --context 1847`" in section(
        sections, 8
    )
    assert "Needs `python -m bench.sweep --preset matched-50m`" in section(sections, 11)
    assert "Needs `python -m bench.sweep --mode train`" in section(sections, 13)
    assert "not measured, needs `python -m bench.sweep --protocol paper`" in section(sections, 1)
    assert rows["shift detection, AUC"]["verdict"] == "**impossible as published**"


def metrics(folder, *groups, **options):
    planted = MetricSimulation(impls=("hf", "cpu"), groups=groups, gold=False, **options)
    planted.write(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    ("effect", "said"), [(0.1, "reversed"), (3.0, "stands"), (1.0, "no difference shown")]
)
def test_context_is_judged_by_one_instrument(tmp_path, effect, said):
    run = world().write(tmp_path / "run")
    metrics(run, "context", effects={"count": effect})
    rows, sections, _ = page(tmp_path, run)
    row = rows["effective context, tokens"]
    assert row["verdict"] == f"**{said}**"
    low, high = map(
        float, re.search(r"Mamba / LLaMA = \S+ \[(\S+), (\S+)\]", row["held equal"]).groups()
    )
    assert low <= 1.02 * effect and high >= 0.98 * effect  # noqa: PT018
    assert "One instrument on both, 512 tokens, 5 initialisations" in section(sections, 8)
    assert "python -m analysis.metrics RUN --groups context --context 512" in section(sections, 8)


def test_numbers_of_hidden_states_are_counted(tmp_path):
    run = world().write(tmp_path / "run")
    metrics(run, "hidden", "attention", effects={"drift": 12.7834 / 4.1})
    rows, sections, _ = page(tmp_path, run)
    assert rows["Table 3, mean velocity, final drift"]["verdict"] == "**not reproduced (1 of 22)**"
    assert "attention entropy, nats (llama): published 2.12 to 3.72, measured 5." in section(
        sections, 9
    )
    assert "Attention is nearly uniform here (99." in section(sections, 9)


@pytest.mark.parametrize(
    ("sessions", "said"),
    [
        (80, "no difference shown"),
        (79, "too few sessions"),
    ],
)
def test_shifts_need_sessions(tmp_path, sessions, said):
    run = world().write(tmp_path / "run")
    metrics(run, "shifts", layers=2, seeds=1, sessions=sessions)
    rows, sections, _ = page(tmp_path, run)
    assert rows["shift detection, AUC"]["verdict"] == f"**{said}; impossible as published**"
    assert "no split of 12 samples into two classes gives an AUC of 0.7834 or of 0.7123" in section(
        sections, 10
    )
    assert "input embeddings 0.680" in section(sections, 10)


def test_the_metrics_nearest_to_the_paper_s_session_count(tmp_path):
    run = world().write(tmp_path / "run")
    metrics(run, "context", effects={"count": 5.0}, seqlen=128)
    there = world().write(run / "representation")
    (there / "records.jsonl").unlink()
    metrics(there, "context", effects={"count": 0.1}, seqlen=1847)
    rows, sections, _ = page(tmp_path, run)
    assert rows["effective context, tokens"]["verdict"] == "**reversed**"
    assert "([`run/representation`](run/representation)" in section(sections, 8)


def test_a_gpu_is_named_and_nothing_is_said_of_a_cpu(tmp_path):
    run = world(machine=world().machine | {"gpu": GPU}).write(tmp_path / "run")
    text = page(tmp_path, run)[2]
    assert "# Findings on a GPU: NVIDIA H200" in text
    assert "no GPU has been measured" not in text
    assert "Everything on a GPU" not in text


def test_the_picture_has_a_line_for_each_pairing(tmp_path):
    main = findings.readable([world(seqlens=(1024, 2048)).write(tmp_path / "run")], tmp_path).main
    axes = figure.draw(main).axes[0]
    names = {text.get_text() for text in axes.texts}
    assert {"hf / cpu, the paper's kind", "cpu / cpu", "hf / hf", "the paper: 10.67"} <= names
    assert list(axes.lines[0].get_ydata()) == pytest.approx([5.0, 5.0])
    assert figure.write(main).read_bytes().startswith(b"\x89PNG")


def command(*argv):
    return findings.main(list(map(str, argv)))


def test_check_reads_the_runs_that_the_file_names(tmp_path, capsys):
    world().write(tmp_path / "record")
    world(modes=("decode",)).write(tmp_path / "other")
    out = tmp_path / "FINDINGS.md"
    assert command(tmp_path / "record", tmp_path / "other", "--out", out) == 0
    assert "(record/figures/ratio_over_length.png)" in out.read_text()
    assert command("--check", "--out", out) == 0
    before = out.read_text().replace("5.00", "6.00", 1)
    out.write_text(before)
    capsys.readouterr()
    assert command("--check", "--out", out) == 1
    assert "6.00" in capsys.readouterr().err
    assert out.read_text() == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "RUN: which one?"),
        (["nowhere"], "so it is no run"),
        (["alone"], "no prefill of both llama and mamba"),
        (
            ["run", "elsewhere"],
            "times of several machines: 2 cores of simulated (run) and NVIDIA H200 (elsewhere)",
        ),
        (["--check"], "names no runs"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, argv, said):
    world().write(tmp_path / "run")
    world(machine=MACHINE | {"gpu": GPU}).write(tmp_path / "elsewhere")
    world(costs={("mamba", "cpu"): (0.0, 1.0, 0.0)}).write(tmp_path / "alone")
    out = tmp_path / "FINDINGS.md"
    out.write_text("by hand")
    with pytest.raises(SystemExit, match="2"):
        command(*(tmp_path / a if not a.startswith("-") else a for a in argv), "--out", out)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert out.read_text() == "by hand"


def test_one_round_gives_no_verdict(tmp_path):
    rows, _, text = page(tmp_path, world(rounds=1).write(tmp_path / "run"))
    assert rows["time, 4,096 tokens"]["verdict"] == "**no difference shown**"
    assert "nan" not in text


def test_the_findings_of_the_lab_say_what_its_records_say(capsys):
    assert command("--check", "--out", ROOT / "FINDINGS.md") == 0, capsys.readouterr().err


def test_their_links_and_pictures_are_there():
    text = (ROOT / "FINDINGS.md").read_text()
    assert all((ROOT / link).exists() for link in re.findall(r"\]\((profiles/[^)#]+)\)", text))
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
