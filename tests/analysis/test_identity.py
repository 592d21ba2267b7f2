import itertools
import json
import math

import numpy as np
import pytest

from analysis import effects_figure
from analysis.load import of
from bench.options import given, make_parser, resolve
from bench.planning import make_plan
from models.architectures import REGISTRY
from models.build import build
from models.floor import model_floor
from models.presets import PAIR, PRESETS
from tests.analysis.planted import PEAKS, factors, results, world

LENGTH = 1024
FLOORS = {  # ms: the matrix FLOPs of paper-50m at 1,024 tokens with the logits of the last, at 1 TFLOP/s
    "llama": 2e-9
    * (8 * (1024 * (4 * 512 * 512 + 3 * 512 * 1024) + 2 * 512 * 1024 * 1025 / 2) + 512 * 32000),
    "mamba": 2e-9 * (8 * 1024 * (512 * 2048 + 1024 * 64 + 32 * 1024 + 1024 * 512) + 512 * 32000),
}


def efficient(shares, **options):
    """A world in which each (arch, impl) reaches a known share of its floor."""
    return world(
        {cell: FLOORS[cell[0]] / share / LENGTH for cell, share in shares.items()}, **options
    )


SHARES = {
    ("llama", "hf"): 0.1,
    ("llama", "cuda"): 0.4,
    ("mamba", "hf"): 0.02,
    ("mamba", "cuda"): 0.5,
}


def row_of(table, llama, mamba):
    (row,) = table[(table.llama_impl == llama) & (table.mamba_impl == mamba)].itertuples()
    return row


def test_planted_split_is_returned():
    hits = []
    for seed in range(10):
        table = results(efficient(SHARES, between=0.03, seed=seed)).identity
        for row in table.itertuples():
            assert row.architecture == pytest.approx(FLOORS["llama"] / FLOORS["mamba"])
            truth = SHARES["mamba", row.mamba_impl] / SHARES["llama", row.llama_impl]
            hits.append(row.implementation_low <= truth <= row.implementation_high)
            assert row.llama_efficiency == pytest.approx(SHARES["llama", row.llama_impl], rel=0.1)
    assert 0.85 <= np.mean(hits) <= 1


def test_the_identity_is_exact():
    table = results(efficient(SHARES)).identity
    logs = np.log(table[["architecture", "implementation", "ratio"]])
    np.testing.assert_allclose(logs.architecture + logs.implementation, logs.ratio, rtol=1e-12)
    np.testing.assert_allclose(
        table.mamba_efficiency / table.llama_efficiency, table.implementation, rtol=1e-12
    )
    assert (table.architecture_least == table.architecture).all()
    assert (table.architecture_most == table.architecture).all()


def test_rounds_of_one_side_alone_do_not_break_it():
    found = results(efficient(SHARES, between=0.1))
    next(r for r in found.run.records if r["cell"]["impl"] == "hf" and r["round"] == 2)[
        "status"
    ] = "error"
    table = found.identity
    assert set(table.rounds) == {4, 5}
    np.testing.assert_allclose(
        table.mamba_efficiency / table.llama_efficiency, table.implementation, rtol=1e-12
    )


def test_equals_differ_by_architecture_alone():
    """The same share of the floor on both sides: no effect of the implementation."""
    row = row_of(results(efficient(dict.fromkeys(SHARES, 0.3))).identity, "hf", "cuda")
    assert row.implementation_low <= 1 <= row.implementation_high
    assert row.implementation == pytest.approx(1, abs=0.02)


def test_a_missing_peak_leaves_a_range_that_holds_the_truth():
    slow = {
        **PEAKS,
        "exp_per_s": 1e11,
    }  # so slow that the exponentials of the scan decide its floor
    known = row_of(results(efficient(SHARES, peaks=slow)).identity, "cuda", "cuda")
    shares = {cell: share * 0.8 for cell, share in SHARES.items()}
    found = results(efficient(shares, peaks={**PEAKS, "exp_per_s": None}))
    row = row_of(found.identity, "cuda", "cuda")
    assert (row.llama_missing, row.mamba_missing) == ("exponential", "exponential")
    assert known.mamba_floor_ms > 1.05 * row.mamba_floor_ms
    assert row.architecture_least < known.architecture < row.architecture < row.architecture_most
    # no floor is above the fastest time
    fastest = {"llama": FLOORS["llama"] / 0.32, "mamba": FLOORS["mamba"] / 0.4}
    assert row.architecture_least == pytest.approx(FLOORS["llama"] / fastest["mamba"], rel=0.03)
    assert row.architecture_most == pytest.approx(fastest["llama"] / FLOORS["mamba"], rel=0.03)


@pytest.mark.parametrize(
    ("peaks", "plan", "reason"),
    [
        (None, {}, "machine.json holds no measured peaks"),
        (PEAKS, {"preset": "paper-50m+checkpoint"}, "plan.json holds no sizes of llama, and paper-50m"),
        (PEAKS, {"architectures": {"llama": {"config": {"hidden_size": 8}}}}, "no 'num_attention_heads' among"),
    ],
)  # fmt: skip
def test_floors_that_cannot_be_had_are_explained(peaks, plan, reason):
    found = results(efficient(SHARES, peaks=peaks))
    found.run.plan.update(plan)
    row = row_of(found.identity, "hf", "cuda")
    assert row.reason.startswith(reason)
    assert math.isnan(row.architecture)
    assert math.isnan(row.implementation)
    assert row.ratio > 1


def test_sizes_of_the_plan_come_before_those_of_a_preset():
    found = results(efficient(SHARES))
    config = {
        name: value
        for name, value in PRESETS["paper-50m"].llama.items()
        if name in REGISTRY["llama"].settings
    }
    found.run.plan["architectures"]["llama"]["config"] = config | {"num_hidden_layers": 16}
    floors = found.floors.set_index("arch").floor_ms
    head = 2e-9 * 512 * 32000
    assert floors["llama"] - head == pytest.approx(2 * (FLOORS["llama"] - head))
    assert floors["mamba"] == pytest.approx(FLOORS["mamba"])


@pytest.mark.parametrize(
    ("mode", "options", "logits", "tokens"),
    [
        ("prefill", {"logits": "all"}, "all", 1024),
        ("decode", {}, "last", 1025),
        ("train", {}, "last", 1024),
    ],
)
def test_floors_are_those_of_what_ran(mode, options, logits, tokens):
    found = results(efficient(SHARES, modes=(mode,), options=options))
    for arch, seconds in found.floors.set_index("arch").floor_ms.items():
        sizes = getattr(PRESETS["paper-50m"], arch)
        expected = model_floor(sizes, arch, 1, tokens, "fp32", PEAKS, logits, mode).seconds
        assert seconds == pytest.approx(1e3 * expected)


@pytest.mark.parametrize("peaks", [PEAKS, None])
def test_the_work_of_a_pass_is_counted_with_or_without_peaks(peaks):
    """LLaMA's FLOPs by hand: projections of 8 layers, the head at one position, and the products of attention."""
    rows = results(efficient(SHARES, peaks=peaks)).floors.set_index("arch")
    sizes = PRESETS["paper-50m"].llama
    hidden, inner, tokens = sizes["hidden_size"], sizes["intermediate_size"], 1024
    heads, head = sizes["num_attention_heads"], hidden // sizes["num_attention_heads"]
    kept = tokens * (tokens + 1) // 2
    layer = 2 * tokens * hidden * (4 * hidden + 3 * inner) + 4 * heads * head * kept
    total = sizes["num_hidden_layers"] * layer + 2 * hidden * sizes["vocab_size"]
    assert rows.flops["llama"] == pytest.approx(total)
    assert rows.exps["llama"] == pytest.approx(sizes["num_hidden_layers"] * heads * kept, rel=0.01)
    assert rows.bytes["mamba"] > 4 * 13e6  # its weights in float32, without the embedding
    assert rows.exps["mamba"] > 16 * 1024 * 1024 * PRESETS["paper-50m"].mamba["num_hidden_layers"]


def test_out_of_memory_is_the_implementation():
    found = results(efficient(SHARES, out_of_memory={("llama", "hf"): 1, ("mamba", "hf"): 1}))
    row = row_of(found.identity, "hf", "cuda")
    assert (row.ratio, row.implementation, row.llama_efficiency) == (math.inf, math.inf, 0)
    assert row.architecture > 1
    assert row_of(found.identity, "hf", "hf").reason == "both out of memory"


def test_one_architecture_has_floors_and_no_ratio():
    found = results(world({("llama", "hf"): 1.0}))
    assert found.identity.empty
    assert found.floors.floor_ms.notna().all()


def test_a_plan_records_every_size_that_a_floor_needs():
    said = ["--preset", "tiny", "--seqlens", "16", "--impl", "hf", "--device", "cpu"]
    parser = make_parser("")
    plan, _ = make_plan(resolve(parser.parse_args(said), given(parser, said)))
    recorded = json.loads(json.dumps(plan.to_json()))["architectures"]
    for arch, mode in itertools.product(PAIR, ("prefill", "decode", "train")):
        sizes, config = recorded[arch]["config"], build(arch, "tiny").config.to_dict()
        arguments = (arch, 2, 64, "fp32", PEAKS)
        assert model_floor(sizes, *arguments, mode=mode) == model_floor(
            config, *arguments, mode=mode
        )


def test_figure_of_the_factors():
    found = results(efficient(SHARES, seqlens=(512, 1024, 2048)))
    ((setting, _, _), *_) = found.curves["time"]
    figure = effects_figure.draw(of(found.identity, setting), setting)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "paper's pairing: llama hf, mamba cuda",
        "best against best: llama cuda, mamba cuda",
    ]
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    measured, architecture, implementation = (
        np.array(line.get_ydata(), dtype=float) for line in lines
    )
    np.testing.assert_allclose(architecture * implementation, measured)


def test_figure_draws_a_range_where_a_peak_is_missing():
    found = results(efficient(SHARES, seqlens=(512, 1024), peaks={**PEAKS, "exp_per_s": None}))
    ((setting, _, _), *_) = found.curves["time"]
    figure = effects_figure.draw(of(found.identity, setting), setting)
    assert len([line for line in figure.axes[0].lines if line.get_marker() == "o"]) == 1
    assert "architecture: range" in [text.get_text() for text in figure.axes[0].texts]
    without = results(world(factors(), peaks=None))
    assert effects_figure.draw(of(without.identity, setting), setting) is None
