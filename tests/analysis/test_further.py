"""Architectures beside the pair: they are in every table by their name, and change nothing that is said of the pair."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import figures, load, readme, summary, tables
from analysis.headline import central, headline
from analysis.ratios import against
from analysis.report import charts, overlay, sections, vega
from analysis.summary import Results
from analysis.wording import between, brief, listed, pairing
from bench.records import read_run
from bench.verdict import ratio_interval
from models.floor import model_floor
from models.presets import PRESETS
from tests.analysis.simulate import COSTS, FURTHER, MACHINE, MEMORY, Simulation

PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e11}, "exp_per_s": 1e9}
SETTINGS = {
    "seqlens": (128, 256, 512, 724, 1024, 1448, 2048, 2896),
    "rounds": 3,
    "modes": ("prefill", "decode"),
    "unavailable": {"cuda": "no GPU"},
    "out_of_memory": {("mamba", "hf"): 2896, ("mamba2", "hf"): 2048},
    "machine": MACHINE | {"peaks": PEAKS},
}
OTHERS = ("mamba2", "hybrid")


def of_arch(arch):
    return {key: cost for key, cost in COSTS.items() if key[0] == arch}


def read(folder, **options):
    return Results(read_run(Simulation(**SETTINGS | options).write(folder)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return read(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    found = read(tmp_path_factory.mktemp("more"), further=OTHERS)
    hybrid = PRESETS["paper-50m"].of("hybrid") | {"mamba_dt_rank": 32}
    found.run.plan["architectures"]["hybrid"]["config"] = hybrid
    return found


@pytest.fixture(scope="module")
def without_mamba(tmp_path_factory):
    return read(tmp_path_factory.mktemp("without"), costs=of_arch("llama"), further=("mamba2",))


def joined(found, name):
    table = getattr(found, name)
    return pd.concat(table.values(), ignore_index=True) if isinstance(table, dict) else table


def of_pair(table):
    """The rows about the pair, without the note on what was left out."""
    if "mamba_impl" in table:
        table = load.versus(table, "mamba")
    if "arch" in table:
        table = table[table.arch.isin(load.PAIR)]
    return table.drop(columns="left_out", errors="ignore").reset_index(drop=True)


@pytest.mark.parametrize(
    "name",
    ["cells", "matrix", "spread", "fits", "slopes", "crossovers", "floors", "identity", "effects", "shapley", "paper"],
)  # fmt: skip
def test_the_pair_is_as_without_them(alone, more, name):
    expected = of_pair(joined(alone, name))
    assert len(expected)
    pd.testing.assert_frame_equal(of_pair(joined(more, name)), expected)


def test_what_is_said_of_the_pair_is_as_without_them(alone, more):
    said = summary.sentences(more)
    for sentence in summary.sentences(alone):
        counts = "proven for" in sentence  # of all cells
        lists = "cuda" in sentence  # who has no cuda
        assert counts or lists or sentence in said
    for mode in ("prefill", "decode"):
        assert (
            central(more, mode).drop("mamba_impl").equals(central(alone, mode).drop("mamba_impl"))
        )
    expected, pages = tables.pages(alone), tables.pages(more)
    for name in ("winners", "ratios", "shapley", "paper", "identity", "crossovers"):
        shown = {title: table.to_dict() for title, table in pages[name]}
        assert {title: table.to_dict() for title, table in expected[name]}.items() <= shown.items()


def test_results_of_a_readme_differ_in_sentences_alone(alone, more, tmp_path):
    lines = [
        [line for line in readme.block(found, tmp_path, "r").splitlines() if line.startswith("|")]
        for found in (alone, more)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 3


def test_every_alternative_stands_beside_llama(more):
    matrix = more.matrix["time"]
    labels = ["cpu", "hf", "mamba2 cpu", "mamba2 hf", "hybrid cpu", "hybrid hf"]
    assert list(dict.fromkeys(matrix.mamba_impl)) == labels
    assert set(matrix.llama_impl) == {"cpu", "hf"}
    assert load.alternatives(matrix) == ["mamba", "mamba2", "hybrid"]
    assert load.named("mamba2 cpu") == ("mamba2", "cpu")
    assert load.named("cpu") == ("mamba", "cpu")


def test_a_ratio_is_that_of_the_records(more):
    matrix, records = more.matrix["time"], more.records
    at = (matrix.seqlen == 1024) & (matrix["mode"] == "prefill")
    row = matrix[at & (matrix.llama_impl == "hf") & (matrix.mamba_impl == "mamba2 cpu")].iloc[0]
    sides = []
    for arch, impl in (("llama", "hf"), ("mamba2", "cpu")):
        r = records[(records.arch == arch) & (records.impl == impl) & (records.seqlen == 1024)]
        r = r[r["mode"] == "prefill"]
        sides.append(dict(zip(r["round"], r.time, strict=True)))
    expected = ratio_interval(*sides)
    assert (row.ratio, row.low, row.high) == (expected.ratio, expected.low, expected.high)
    assert pairing(row) == "llama hf / mamba2 cpu"


def test_places_of_the_matrix_are_marked_for_each(more):
    matrix = more.matrix["time"]
    beyond = matrix[matrix.mamba_impl.str.contains(" ")]
    assert not beyond[["diagonal", "best", "paper"]].any(axis=None)
    rows = against(matrix, more.curves["time"], "hybrid")
    assert set(zip(rows[rows.diagonal].llama_impl, rows[rows.diagonal].mamba_impl, strict=True)) == {
        ("cpu", "hybrid cpu"), ("hf", "hybrid hf"),
    }  # fmt: skip
    assert set(rows[rows.best].mamba_impl) == {"hybrid cpu"}
    assert not rows.paper.any()
    pair = against(matrix, more.curves["time"], "mamba")
    pd.testing.assert_frame_equal(pair, load.versus(matrix, "mamba"))


def test_who_wins_is_said_by_name(more):
    matrix = more.matrix["time"]
    beside = load.versus(matrix, "mamba2")
    assert set(beside.winner) <= {"mamba2", "llama", "equivalent", "undecided"}
    won = beside[(beside.winner == "mamba2") & (beside.ratio < 99)].iloc[0]
    assert brief(won).endswith(" mamba2")
    out = beside[(beside.ratio == 0)].iloc[0]
    assert between(out) == "mamba2 out of memory"
    assert brief(out) == "mamba2 OOM L"
    crossings = more.crossovers["time"]
    assert set(load.versus(crossings, "mamba2").better_above) == {"mamba2", "llama", ""}
    notes = " ".join(load.versus(crossings, "mamba2").note)
    assert "mamba2 out of memory at 2,048" in notes
    assert "mamba " not in notes


def test_each_has_a_sentence(more):
    said = headline(more)
    for arch, name in (("mamba2", "Mamba-2"), ("hybrid", "the hybrid")):
        mine = [s for s in said if f"{name} (cpu)" in s]
        assert len(mine) == 2  # prefill and decode
        hf = f"The same implementation on both sides: {name} (hf) takes "
        assert all((hf in s) == (arch == "hybrid") for s in mine)  # the other is out of memory
        assert all("This is best against best." in s and "rchitecture " in s for s in mine)
        rows = against(more.matrix["time"], more.curves["time"], arch)
        rows = rows[rows.best & (rows["mode"] == "prefill") & (rows.seqlen == 2896)]
        factor = max(rows.ratio.iloc[0], 1 / rows.ratio.iloc[0])
        assert any(f"takes {factor:.2f}x" in s for s in mine)
    assert listed(["a", "b", "c"]) == "a, b and c"
    text = "\n".join(summary.sentences(more))
    assert "Time of llama and mamba2 at 2,896 tokens" in text
    assert "llama/hybrid = " in text


def test_out_of_memory_is_said_of_each(more):
    rows = load.versus(more.matrix["memory"], "mamba2")
    assert (rows[(rows.mamba_impl == "mamba2 hf") & (rows.seqlen == 2048)].ratio == 0).all()
    failed = [s for s in summary.sentences(more) if s.startswith("mamba2 under hf ran out")]
    assert len(failed) == 2


def test_floors_are_those_of_their_own_models(more):
    table = more.identity
    row = table[(table.mamba_impl == "hybrid cpu") & (table.seqlen == 512)]
    row = row[(row["mode"] == "prefill") & (row.llama_impl == "cpu")].iloc[0]
    sizes = {arch: more.run.plan["architectures"][arch].get("config") for arch in ("hybrid",)}
    sizes["llama"] = PRESETS["paper-50m"].llama
    floors = {arch: model_floor(sizes[arch], arch, 1, 512, "fp32", PEAKS) for arch in sizes}
    assert row.architecture == pytest.approx(floors["llama"].seconds / floors["hybrid"].seconds)
    assert row.mamba_floor_ms == pytest.approx(1e3 * floors["hybrid"].seconds)
    assert row.ratio == pytest.approx(row.architecture * row.implementation)


def test_effects_say_whom_they_leave_out(more):
    assert more.effects.left_out.str.endswith("arch mamba2, hybrid, because the factor is the pair").all()  # fmt: skip


def test_caches_of_all(more):
    ((_, shown),) = tables.caches(more.cells)
    kept = ["llama, keys and values", "mamba, states", "mamba2, states", "hybrid, states, keys and values"]  # fmt: skip
    ratios = ["llama / mamba", "llama / mamba2", "llama / hybrid"]
    assert list(shown) == ["context L", *kept, *ratios]
    assert list(shown["llama / mamba2"])[:3] == ["0.500", "1.00", "2.00"]


def test_without_mamba_the_others_are_compared(without_mamba, tmp_path):
    run = without_mamba
    said = summary.sentences(run)
    assert said[1].startswith("At 2,896 tokens LLaMA (cpu) takes ")
    assert "as long as Mamba-2 (cpu)" in said[1]
    text = "\n".join(said)
    assert "only one architecture" not in text
    assert "Only LLaMA" not in text
    assert "llama/mamba " not in text
    assert run.spread["time"].empty
    assert set(run.effects.levels) == {"arch: llama; impl: hf, cpu; launch: eager; dtype: fp32"}
    pages = tables.pages(run)
    assert all("llama / mamba2" in title for title, _ in pages["winners"])
    with pytest.raises(readme.ReadmeError, match="no prefill of both architectures"):
        readme.block(run, tmp_path, "r")


def test_without_llama_nothing_is_compared(tmp_path):
    found = read(tmp_path, costs=of_arch("mamba"), further=("mamba2",), modes=("prefill",))
    assert headline(found)[0] == "LLaMA has no time, only Mamba and Mamba-2: nothing is compared."
    assert "only one architecture" not in "\n".join(summary.sentences(found))
    assert tables.winners(found, "time") == []


def test_tables_fit_80_columns(tmp_path):
    costs = {
        (arch, impl): FURTHER["mamba2", "hf"]
        for arch in (*load.PAIR, *OTHERS)
        for impl in load.ORDER
    }
    memory = dict.fromkeys(costs, MEMORY["mamba", "hf"])
    found = read(
        tmp_path, costs=costs, memory=memory, seqlens=(128, 256), modes=("prefill",),
        unavailable={}, out_of_memory={},
    )  # fmt: skip
    out = io.StringIO()
    console = Console(file=out, width=80)
    for renderable in tables.terminal(found):
        console.print(renderable)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    matrices = dict(tables.matrices(found.matrix["time"], "time"))
    assert len(matrices) == 2 * 3
    assert all(shown.shape == (5, 6) for shown in matrices.values())


def test_pictures_of_all(more, tmp_path):
    setting = next(key[0] for key in more.curves["time"] if key[0].mode == "prefill")
    found = {key[1:]: c for key, c in more.curves["time"].items() if key[0] == setting}
    drawn = figures.curves(found, "time", setting)
    assert [ax.get_title() for ax in drawn.axes] == ["mamba", "llama", "mamba2", "hybrid"]
    assert drawn.get_figwidth() < 10
    rows = against(more.matrix["time"], more.curves["time"], "mamba2")
    drawn = figures.heat_map(load.of(rows, setting), "time", setting)
    assert "llama / mamba2" in drawn.get_suptitle()
    assert "Mamba-2 is better" in drawn.get_suptitle()
    assert drawn.axes[0].get_xlabel() == "mamba2"
    assert [t.get_text() for t in drawn.axes[0].get_xticklabels()] == ["cpu", "hf"]


def test_charts_of_all(more, alone):
    setting = next(key[0] for key in more.curves["time"] if key[0].mode == "prefill")
    chart = charts.ratios(more, setting, "time", "mamba2")
    data = chart.spec["data"]["values"]
    assert {row["mamba2"] for row in data} == {"cpu", "hf"}
    assert {row["winner"] for row in data} >= {"mamba2", "llama"}
    assert chart.id != charts.ratios(more, setting, "time").id
    assert charts.ratios(more, setting, "time") == charts.ratios(alone, setting, "time")
    drawn = [part for part in sections.matrix(more, tables.pages(more)) if hasattr(part, "spec")]
    assert len({part.id for part in drawn}) == len(drawn) == 2 * 2 * 3
    lines = charts.curves(more, setting, "time").spec["layer"]
    scale = next(x["encoding"]["shape"]["scale"] for x in lines if "shape" in x["encoding"])
    assert scale["domain"] == ["mamba", "llama", *OTHERS]
    assert len({str(v) for v in scale["range"]}) == 4
    assert vega.by_arch("shape")["scale"]["domain"] == ["mamba", "llama"]
    both = overlay.times(more, alone, setting, "a", "b").spec["layer"][0]["encoding"]["strokeDash"]
    assert len(both["scale"]["domain"]) == len(both["scale"]["range"]) == 8
    assert "hybrid, a" in both["scale"]["domain"]
    split = charts.split(more, setting)
    pairings = {row["pairing"] for row in split.spec["data"]["values"]}
    assert {"llama hf / mamba cpu", "llama cpu / mamba2 hf", "llama hf / hybrid cpu"} <= pairings


def test_a_whole_run_without_mamba(tmp_path):
    small = {"seqlens": (128, 256), "rounds": 2, "modes": ("prefill",), "out_of_memory": {}}
    found = read(tmp_path, costs=of_arch("llama"), further=("hybrid",), **small)
    summary.write(found.run.path)
    ratios = pd.read_csv(tmp_path / "tables" / "ratios.csv")
    assert set(ratios.mamba_impl) == {"hybrid cpu", "hybrid hf"}
    assert np.isfinite(ratios.ratio).all()
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"ratio_time_hybrid.png", "time.png"} < names
    assert "ratio_time.png" not in names
