import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.plan import (
    MODES,
    PAPER_LENGTHS,
    Cell,
    Plan,
    PlanError,
    changed_options,
    default_lengths,
    gradient_path,
    half_octaves,
    make_cells,
    read_plan,
    references,
    round_order,
)

CELLS = make_cells(["mamba", "llama"], ["hf", "torch"], "tiny", [64, 128], [1], ["fp32"], ["eager"])


def a_plan(**changes):
    fields = {"cells": CELLS, "rounds": 3, "seed": 0, "protocol": "lab", "preset": "tiny"}
    return Plan(**fields | changes)


def test_the_default_lengths_are_half_octaves():
    assert default_lengths("cpu", "lab") == (128, 181, 256, 362, 512, 724, 1024, 1448, 2048)
    assert default_lengths("cuda", "lab")[0::2] == (512, 1024, 2048, 4096, 8192)
    assert default_lengths("cpu", "paper") == default_lengths("cuda", "paper") == PAPER_LENGTHS


@given(st.integers(1, 1000), st.integers(1, 100_000))
def test_half_octaves_stay_within_their_ends(low, high):
    lengths = half_octaves(low, high)
    assert all(low <= n <= high for n in lengths)
    assert bool(lengths) == (low <= high)
    assert list(lengths[2::2]) == [n * 2 for n in lengths[:-2:2]]


def test_cells_are_the_cross_product_without_repeats():
    assert len(CELLS) == len(set(CELLS)) == 2 * 2 * 2
    assert {cell.impl for cell in CELLS} == {"hf", "torch"}


def test_the_name_of_a_cell_holds_every_factor():
    cell = Cell("mamba", "triton", "paper-50m", 2048)
    assert cell.id == "mamba-triton-paper-50m-2048-b1-fp32-prefill-eager"
    assert len({cell.id for cell in CELLS}) == len(CELLS)


def test_rounds_are_shuffled_repeatably_and_differently():
    first, again, second = (round_order(CELLS, 0, r) for r in (0, 0, 1))
    assert first == again
    assert sorted(map(str, first)) == sorted(map(str, CELLS))
    assert first != second
    assert first != round_order(CELLS, 1, 0)


def test_a_plan_survives_its_file(tmp_path):
    plan = a_plan(
        options={"impl": ["hf"]}, tokens={"padded": {"64": 0}}, created="now", command="x"
    )
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["version"] == 1
    assert stored["cells"][0]["arch"] == "mamba"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no plan.json"),
        ("{", "not readable as JSON"),
        ("[]", "not a plan"),
        ("{}", "not a plan"),
        ('{"version": 99}', "another version"),
        ('{"version": 1, "cells": [{"arch": "mamba"}]}', "not a plan"),
        ('{"version": 1, "cells": [], "surprise": 1}', "not a plan"),
    ],
)
def test_a_broken_plan_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(PlanError, match=says) as error:
        read_plan(tmp_path / "plan.json")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_of_nothing_is_refused(tmp_path):
    a_plan(rounds=0).write(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="plans nothing"):
        read_plan(tmp_path / "plan.json")


def test_only_more_rounds_may_change_on_resume():
    planned = {"seqlens": [64], "rounds": 3}
    assert changed_options(planned, {"seqlens": [64], "rounds": 3, "cell_timeout": 5}) == []
    assert changed_options(planned, {"rounds": 5}) == []
    assert changed_options(planned, {"rounds": 2}) == [("rounds", 3, 2)]
    assert changed_options(planned, {"seqlens": [128]}) == [("seqlens", [64], [128])]


def test_references_reach_as_far_as_the_cells():
    cells = [Cell("mamba", "hf", "tiny", n, batch) for n, batch in ((64, 1), (32, 4))]
    cells += [Cell("llama", "hf", "tiny", 16, dtype="bf16")]
    assert references(cells) == {("mamba", "fp32"): (64, 4), ("llama", "bf16"): (16, 1)}
    cells = [Cell("mamba", "hf", "tiny", n, mode=mode) for n in (8, 64) for mode in MODES]
    assert references(cells) == {("mamba", "fp32"): (65, 1)}  # the token after 64
    assert references([cell for cell in cells if cell.mode == "train"]) == {}


def test_modes_are_a_factor():
    modes = ["prefill", "decode"]
    cells = make_cells(["llama"], ["hf"], "tiny", [8, 16], [1], ["fp32"], ["eager"], modes)
    assert [(cell.mode, cell.seqlen, cell.tokens) for cell in cells] == [
        ("prefill", 8, 8), ("prefill", 16, 16), ("decode", 8, 9), ("decode", 16, 17),
    ]  # fmt: skip
    assert gradient_path("run", "llama", "fp32", 8, 2).name == "llama-fp32-train-8-b2.safetensors"
