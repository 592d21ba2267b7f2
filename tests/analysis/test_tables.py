import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import render, tables
from analysis.summary import Results
from analysis.wording import brief, crossing, interval, number
from bench.records import read_run
from tests.analysis.simulate import Simulation


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    simulation = Simulation(unavailable={"cuda": "no GPU | none"}, interpreted=("triton",))
    found = Results(read_run(simulation.write(folder)))
    tables.write(found, folder / "tables")
    return found, folder / "tables"


@pytest.mark.parametrize("name", ["cells", "ratios", "fits", "slopes", "crossovers", "paper"])
def test_csv_equals_the_frame(written, name):
    found, folder = written
    frame = getattr(found, {"ratios": "matrix"}.get(name, name))
    if isinstance(frame, dict):
        frame = pd.concat(frame.values(), ignore_index=True)
    read = pd.read_csv(folder / f"{name}.csv")
    assert list(read.columns) == list(frame.columns)
    assert len(read) == len(frame) > 0
    for column in frame:
        if frame[column].dtype.kind == "f":
            assert np.array_equal(read[column], frame[column], equal_nan=True), (
                column
            )  # not a digit is lost
        else:
            ours = frame[column].map(lambda v: "" if v is None else str(v))
            assert (
                read[column].map(lambda v: "" if pd.isna(v) else str(v)).tolist() == ours.tolist()
            ), column


def test_markdown_equals_the_tables(written):
    found, folder = written
    pages = tables.pages(found)
    assert {p.stem for p in folder.glob("*.md")} == set(pages)
    for name, sections in pages.items():
        text = (folder / f"{name}.md").read_text()
        for title, table in sections:
            body = text.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
            cells = [[c.strip().replace("\\|", "|") for c in split(line)] for line in body]
            assert cells[0] == [c.strip() for c in table.columns]
            assert cells[2:] == table.astype(str).to_numpy().tolist()


def split(line):
    """The cells of a Markdown row; an escaped bar is part of a cell."""
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def test_cells_page_shows_the_numbers_of_the_frame(written):
    found, _ = written
    shown = tables.cells(found.cells)
    assert len(shown) == len(found.cells)
    for (_, text), row in zip(shown.iterrows(), found.cells.itertuples(), strict=True):
        if row.status == "ok":
            assert text["ms [95 % interval]"] == interval(row.time_ms, row.time_low, row.time_high)
            assert float(text["tokens/s"].replace(",", "")) == pytest.approx(
                row.tokens_per_s, rel=0.01
            )
            assert text["memory beyond weights, MiB"] == number(row.memory_bytes / 2**20)
        else:
            assert text["reason"] == row.reason


def test_terminal_is_whole_at_120_columns(results):
    found = results(
        Simulation(unavailable={"cuda": "no CUDA device: " + "a long explanation " * 9})
    )
    out = io.StringIO()
    console = Console(file=out, width=120)
    for renderable in tables.terminal(found):
        console.print(renderable)
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    for row in found.cells[found.cells.status == "ok"].itertuples():
        assert interval(row.time_ms, row.time_low, row.time_high) in text
    for row in found.matrix["time"][found.matrix["time"].diagonal].itertuples():
        assert brief(row) in text
    assert " ".join(text.split()).count("a long explanation") >= 1


def test_brackets_are_text_and_no_markup():
    out = io.StringIO()
    Console(file=out, width=80).print(
        render.rich_table("t", pd.DataFrame({"a": ["1,469 [unbounded, 1,817]"]}))
    )
    assert "1,469 [unbounded, 1,817]" in out.getvalue()


def test_several_settings_are_told_apart(results):
    simulation = Simulation(seqlens=(128, 256))
    found = results(simulation)
    other = found.run.records[0]["cell"]
    for record in list(found.run.records):
        found.run.records.append({**record, "cell": {**record["cell"], "dtype": "bf16"}})
    assert other["dtype"] == "fp32"
    titles = [title for title, _ in tables.winners(found, "time")]
    assert any("fp32" in t for t in titles)
    assert any("bf16" in t for t in titles)
    assert set(tables.cells(found.cells).dtype) == {"fp32", "bf16"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (1.7, "1.70"), (0.04567, "0.0457"), (3e-5, "3.00e-05"), (0, "0"), (float("nan"), "-"),
     (999.96, "1,000"), (float("inf"), "inf"), (None, "-")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_crossing_in_words():
    row = pd.Series(
        {"answer": "crossover", "seqlen": 1469.0, "low": 0.0, "high": 1817.2, "better_above": "mamba",
         "extrapolated": False, "note": ""}
    )  # fmt: skip
    assert crossing(row) == "1,469 [unbounded, 1,817]"
    assert crossing(
        pd.concat([row, pd.Series({"extrapolated": True})]).groupby(level=0).last()
    ).startswith("extra")
    row["seqlen"], row["low"] = float("nan"), 1024.0
    assert crossing(row) == "between 1,024 and 1,817"
    row["better_above"] = "llama"
    assert crossing(row) == "between 1,024 and 1,817, llama above"


@pytest.fixture(scope="module")
def three_modes(tmp_path_factory):
    simulation = Simulation(
        seqlens=(128, 256, 512),
        rounds=3,
        modes=("prefill", "decode", "train"),
        unavailable={"cuda": "no GPU"},
    )
    return Results(read_run(simulation.write(tmp_path_factory.mktemp("modes"))))


def test_no_table_mixes_modes(three_modes):
    for name, sections in tables.pages(three_modes).items():
        for title, table in sections:
            apart = "decode (" in title or "train (" in title or "prefill" in title
            assert apart or "mode" in table or name in ("implementations", "paper"), title
    shown = tables.pages(three_modes)
    assert len(shown["crossovers"]) == 3
    assert len(shown["winners"]) == 2 * 3
    implementations = shown["implementations"][0][1]
    assert set(implementations["mode"]) == {"prefill", "decode", "train"}
    assert len(tables.caches(three_modes.cells)) == 1


def test_titles_say_what_a_mode_is(three_modes):
    out = io.StringIO()
    for renderable in tables.terminal(three_modes):
        Console(file=out, width=120).print(renderable)
    text = " ".join(out.getvalue().split())
    for words in (
        "Time of a forward, ms", "Time of a token, ms", "Time of a step, ms",
        "one token at context L", "forward + backward", "context L",
    ):  # fmt: skip
        assert words in text


def test_tokens_per_second_are_those_of_the_mode(three_modes):
    cells = three_modes.cells
    ok = cells[(cells.status == "ok") & (cells.seqlen == 512)]
    for row in ok.itertuples():
        tokens = 1 if row.mode == "decode" else 512
        assert row.tokens_per_s == pytest.approx(1000 * tokens / row.time_ms)


def test_the_paper_is_beside_prefill_only(three_modes, results):
    matrix = three_modes.matrix["time"]
    assert set(matrix[matrix.paper]["mode"]) == {"prefill"}
    assert len(three_modes.paper) == 9
    decode = results(Simulation(seqlens=(128, 256), modes=("decode",)))
    assert decode.paper.empty
    titles = [title for title, table in tables.paper(decode.paper) if len(table)]
    assert titles == []


def test_caches_are_shown_by_context(three_modes):
    ((title, shown),) = tables.caches(three_modes.cells)
    assert "one token at context L" in title
    assert list(shown["context L"]) == ["128", "256", "512"]
    assert list(shown["llama, keys and values"]) == ["4.00", "8.00", "16.0"]
    assert set(shown["mamba, states"]) == {"0.625"}
    assert list(shown["llama / mamba"]) == ["6.40", "12.8", "25.6"]


def test_caches_that_differ_have_columns_of_their_own(three_modes):
    cells = three_modes.cells.copy()
    cells.loc[(cells.arch == "mamba") & (cells.impl == "hf"), "cache_bytes"] *= 0.5
    ((_, shown),) = tables.caches(cells)
    assert {"mamba cpu, states", "mamba hf, states"} < set(shown)
    assert "llama / mamba" not in shown
