import numpy as np
import pandas as pd
import pytest

from analysis import effects_tables, tables
from analysis.wording import interval
from tests.analysis.planted import PEAKS, factors, results, world

COSTS = factors() | {("llama", "torch"): 0.4}


@pytest.fixture(scope="module")
def found():
    return results(world(COSTS, seqlens=(512, 1024), modes=("prefill", "decode")))


@pytest.mark.parametrize("name", ["identity", "effects", "shapley"])
def test_csv_and_markdown_are_written(found, name, tmp_path):
    written = {path.name for path in tables.write(found, tmp_path)}
    assert {f"{name}.csv", f"{name}.md"} <= written
    read, frame = pd.read_csv(tmp_path / f"{name}.csv"), getattr(found, name)
    assert list(read) == list(frame)
    for column in frame.select_dtypes(float):
        np.testing.assert_array_equal(
            read[column].astype(float), frame[column]
        )  # not a digit is lost
    text = (tmp_path / f"{name}.md").read_text()
    assert text.count("prefill") == text.count("decode (one token at context L)")


def test_identity_shows_both_factors_with_the_interval(found):
    (_, shown), *_ = effects_tables.identity(found.identity)
    row = found.identity.iloc[0]
    assert shown["time, llama / mamba"][0] == interval(row.ratio, row.low, row.high)
    assert shown.implementation[0] == interval(
        row.implementation, row.implementation_low, row.implementation_high
    )
    assert "%" in shown["efficiency llama"][0]


def test_a_range_is_shown_as_one():
    found = results(world(COSTS, peaks={**PEAKS, "exp_per_s": None}))
    ((title, shown),) = effects_tables.identity(found.identity)
    assert title.endswith(
        "No peak was measured for the exponential work, so architecture is a range"
    )
    assert shown.architecture.str.contains(" to ").all()
    assert shown.implementation.str.contains(" to ").all()
    assert shown["efficiency mamba"].str.startswith("at least").all()


def test_floors_that_are_missing_are_explained():
    ((_, shown),) = effects_tables.identity(results(world(COSTS, peaks=None)).identity)
    assert set(shown.architecture) == {"-"}
    assert set(shown["unavailable, because"]) == {"machine.json holds no measured peaks"}


def test_effects_say_what_was_compared(found):
    sections = dict(effects_tables.effects(found.effects))
    grids = sections["Compared in time, paper-50m, batch 1, prefill"]
    assert grids.tokens.tolist() == ["512, 1,024"]
    assert grids["left out"].tolist() == ["impl torch, because mamba torch was not planned"]
    shown = sections["Effects on time, paper-50m, batch 1, prefill"]
    assert set(shown.term) == {"arch", "impl", "arch x impl", "rounds", "residual"}


@pytest.mark.parametrize(
    "simulation",
    [
        world(COSTS, rounds=0, unavailable={"hf": "no"}),
        world({("mamba", "hf"): 1.0}),
        world(COSTS, out_of_memory=dict.fromkeys(COSTS, 1)),
    ],
)
def test_runs_without_a_comparison_have_tables(simulation, tmp_path):
    tables.write(results(simulation), tmp_path)
    for name in ("identity", "effects", "shapley"):
        assert (tmp_path / f"{name}.csv").stat().st_size > 50
        assert (tmp_path / f"{name}.md").exists()
