"""The benchmark of attention statistics beside `output_attentions=True`, on a model that is small."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench import attention_memory
from bench.attention_memory import dense, kept_bytes, main, measure, streamed
from models.build import build


@pytest.fixture(scope="module")
def model():
    return build("llama", "tiny")


def test_both_ways_give_the_same_statistics(model):
    ids = torch.randint(1000, (1, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = streamed(model, ids, "torch"), dense(model, ids)
    assert list(ours) == list(theirs) == ["block 1", "block 2"]
    for layer, found in ours.items():
        for name, dense_one in zip(found._fields, theirs[layer], strict=True):
            torch.testing.assert_close(getattr(found, name), dense_one, rtol=1e-4, atol=1e-4)


def test_what_would_be_kept():
    """The 8 layers of 8 heads of the paper at 8,192 tokens."""
    config = SimpleNamespace(num_hidden_layers=8, num_attention_heads=8)
    assert kept_bytes(config, 8192) == (8 * 8 * 8192**2 * 4, 11 * 8 * 8192**2 * 4)


def test_streaming_holds_less_than_the_weights(model):
    rows = {row["way"]: row for row in measure(model, 300, "torch")}
    kept, _ = kept_bytes(model.config, 300)
    assert rows["dense"]["peak_bytes"] > kept
    assert rows["streamed (torch)"]["peak_bytes"] < rows["dense"]["peak_bytes"] / 2
    assert all(row["seconds"] > 0 and not row["reason"] for row in rows.values())


def test_weights_that_do_not_fit_are_said_to_be_unavailable(model, monkeypatch):
    monkeypatch.setattr(attention_memory, "free_bytes", lambda device: 1000)
    row = measure(model, 20, "torch")[-1]
    assert row["seconds"] is None
    assert row["reason"].startswith("unavailable, because it would keep 0.0 GB of weights")


def test_command_line(tmp_path, capsys):
    out = tmp_path / "rows.json"
    main(["--preset", "tiny", "--seqlens", "3,40", "--out", str(out)])
    written = json.loads(out.read_text())
    assert [row["seqlen"] for row in written["rows"]] == [3] * 3 + [40] * 3
    assert "MiB beyond the weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seqlens", "0"], "--seqlens takes positive integers, separated by commas, got '0'"),
        (["--seqlens", "99999"], "has 32,768 positions, got 99,999"),
        (["--impl", "cpu", "--preset", "tiny"], "--impl: attention_statistics: impl 'cpu' is unavailable"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
