"""Scores of candidates from hidden states: planted changes are found, and tokens of turns are those of the sweep."""

from dataclasses import replace

import pytest
import torch

from analysis.measured import NotFinite
from analysis.shift_instruments import (
    one_minus_cosine,
    state_change,
    step_size,
    velocity,
    window_change,
)
from analysis.shifts import Encoded, boundaries, described, encode, merged, session_scores
from bench.sessions import generate, text
from bench.sessions.session import Session, Turn
from kernels.selective_scan.problem import SelectiveScanProblem
from kernels.selective_scan.reference import selective_scan_ref
from models.bind import use
from models.build import build
from models.tokenizer import load


@pytest.fixture(scope="module")
def sessions():
    return generate(2)


@pytest.fixture(scope="module")
def tokenizer():
    return load("gpt2-32k")


def test_turns_begin_where_their_text_does(sessions, tokenizer):
    encoded = encode(sessions[0], tokenizer)
    assert encoded.ids.tolist() == tokenizer.encode(text(sessions[0]) + "\n")
    bounds = [*encoded.starts, len(encoded.ids)]
    for turn, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):  # noqa: RUF007
        said = tokenizer.decode(encoded.ids[first:last].tolist())
        assert said == f"{sessions[0].turns[turn].speaker}: {sessions[0].turns[turn].text}\n"
    assert encoded.shifts == sessions[0].shifts


def test_long_sessions_are_cut_after_a_whole_turn(sessions, tokenizer):
    whole, cut = encode(sessions[0], tokenizer), encode(sessions[0], tokenizer, 1000)
    assert 900 < len(cut.ids) <= 1000
    assert len(cut.ids) in whole.starts
    assert cut.starts == whole.starts[: len(cut.starts)]
    assert all(turn < len(cut.starts) for turn in cut.shifts)
    with pytest.raises(ValueError, match="more than max_tokens=2"):
        encode(sessions[0], tokenizer, 2)


def test_a_session_without_labels_has_none(tokenizer):
    turns = tuple(Turn("Client", "client", f"number {i} of them") for i in range(40))
    found = described(encode(Session("plain", "transcript", turns), tokenizer), 16)
    assert found["labels"] is None
    assert found["candidates"]


def test_candidates_have_a_window_on_both_sides():
    encoded = Encoded("s", torch.zeros(100, dtype=torch.int64), (0, 10, 30, 50, 70, 90), (3,))
    found = described(encoded, 25)
    assert found["candidates"] == [2, 3, 4]
    assert found["labels"] == [0, 1, 0]
    assert described(encoded, 8)["candidates"] == []  # shorter than what a window must have
    assert described(encoded)["window"] == 25  # a quarter of a short session
    with pytest.raises(ValueError, match="window must be a whole number of tokens, got -1"):
        described(encoded, -1)


def test_window_change_is_the_definition():
    hidden, at = torch.randn(90, 7, dtype=torch.float64), torch.tensor([20, 33, 70])
    found = window_change(hidden, at, 20)
    for t, value in zip(at.tolist(), found.tolist(), strict=True):
        a, b = hidden[t - 20 : t].mean(0), hidden[t : t + 20].mean(0)
        assert value == pytest.approx(1 - torch.cosine_similarity(a, b, dim=0).item(), abs=1e-10)


def test_equal_and_vanishing_windows():
    same = window_change(torch.ones(40, 3), torch.tensor([20]), 20)
    assert same.item() == pytest.approx(0, abs=1e-12)
    assert one_minus_cosine(torch.zeros(3, 1)).item() == 0
    assert one_minus_cosine(torch.tensor([[0.0], [0.0], [2.0]])).item() == 1


def test_state_change_is_that_of_all_states():
    operands = SelectiveScanProblem(1, 60, 6, 4, has_z=False, has_D=False).inputs(torch.float64)
    operands["B"], operands["C"] = (operands[n] for n in "BC")
    at = torch.tensor([20, 31, 40])
    *_, states = selective_scan_ref(
        *(operands[n] for n in ("u", "delta", "A", "B", "C")), None, None, operands["delta_bias"], True, None,
        return_states=1,
    )  # fmt: skip
    expected = window_change(states[0].flatten(1), at, 16)
    torch.testing.assert_close(state_change(operands, at, 16), expected, rtol=0, atol=1e-10)


def test_velocity_and_step_size_read_the_first_tokens_alone():
    hidden = torch.zeros(10, 2)
    hidden[5:] = 3.0
    first = torch.tensor([[4, 5], [7, -1]])
    assert velocity(hidden, first).tolist() == pytest.approx([0.5 * 18**0.5, 0.0])
    delta = torch.zeros(1, 2, 10)
    delta[..., 5] = torch.tensor([1.0, 3.0])
    assert step_size({"delta": delta}, first).tolist() == [2.0, 0.0]


def test_the_last_turn_ends_with_the_session():
    encoded = Encoded("s", torch.zeros(60, dtype=torch.int64), (0, 20, 40, 57), ())
    found = {"candidates": [2, 3]}
    at, first = boundaries(encoded, found)
    assert at.tolist() == [40, 57]
    assert first[1].tolist() == [57, 58, 59, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(("arch", "instruments"), [("llama", 2), ("mamba", 4)])
def test_a_model_scores_a_session(sessions, tokenizer, arch, instruments):
    model, encoded = build(arch, "tiny"), encode(sessions[0], tokenizer, 700)
    with use(model, "torch"):
        found = session_scores(model, encoded)
    assert {key.split("/")[0] for key in found["scores"]} - {"input embeddings"} == set(
        ("window cosine", "velocity", "ssm state", "step size")[:instruments]
    )
    assert all(len(s) == len(found["candidates"]) for s in found["scores"].values())
    words = sessions[0].turns[0].text.split()
    assert not any(word in str(found) for word in words if len(word) > 6)


def test_nan_is_named(sessions, tokenizer):
    model = build("mamba", "tiny")
    with torch.no_grad():
        model.backbone.layers[1].mixer.D[0] = float("nan")
    with use(model, "torch"), pytest.raises(NotFinite, match="block 2 holds NaN"):
        session_scores(model, encode(sessions[0], tokenizer, 400))


def test_only_scores_of_the_same_candidates_are_merged():
    encoded = Encoded("s", torch.zeros(100, dtype=torch.int64), (0, 30, 60), (1,))
    a = described(encoded, 20) | {"scores": {"x/": [1, 2]}}
    b = described(encoded, 20) | {"scores": {"y/": [3, 4]}}
    assert merged(a, b)["scores"] == {"x/": [1, 2], "y/": [3, 4]}
    with pytest.raises(ValueError, match="candidates differ"):
        merged(a, described(replace(encoded, shifts=()), 20))
