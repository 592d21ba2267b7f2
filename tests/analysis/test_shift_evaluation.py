"""What is said of planted scores, and of sessions that say nothing."""

import math

import numpy as np
import pytest

from analysis.shift_baselines import POSITION, TF_IDF, baseline_scores, depths, position
from analysis.shift_evaluation import compare, evaluate
from analysis.shifts import described, encode
from bench.sessions import generate
from bench.sessions.session import Session, Turn
from models.tokenizer import load


def session(index, score, n=40, every=8):
    """A session whose shifts are every eighth turn; `score(labels, draw)` makes what is evaluated."""
    labels = [int(turn % every == 0) for turn in range(1, n)]
    draw = np.random.default_rng(index)
    return {
        "session": f"s{index}", "turns": n, "tokens": 30 * n, "window": 30, "candidates": list(range(1, n)),
        "labels": labels, "scores": {"window cosine/block 1": score(np.array(labels), draw).tolist()},
    }  # fmt: skip


perfect = lambda y, draw: np.maximum(y, 0.1 * draw.random(len(y)))
noise = lambda y, draw: draw.random(len(y))


def by_metric(values):
    return {row["metric"]: row for row in values}


def test_planted_shifts_are_found():
    values, extra = evaluate([session(i, perfect) for i in range(6)], bootstrap=50)
    found = by_metric(values)
    for metric in ("auc", "ap", "f1", "f1_cross", "tpr_at_fpr_10", "covering", "margin_f1"):
        assert found[metric]["value"] == pytest.approx(1), metric
    for metric in ("pk", "window_diff", "location_error"):
        assert found[metric]["value"] == 0, metric
    assert found["p_null"]["value"] < 0.01
    assert (extra["sessions"], extra["positives"], extra["candidates"]) == (6, 24, 234)


def test_noise_is_at_chance():
    found = by_metric(evaluate([session(i, noise) for i in range(20)], bootstrap=200)[0])
    assert found["auc"]["low"] < 0.5 < found["auc"]["high"]
    assert found["p_null"]["value"] > 0.01


def test_better_scores_differ_from_noise_and_equal_ones_do_not():
    a, b = ([session(i, score) for i in range(8)] for score in (perfect, noise))
    key = "window cosine/block 1"
    found = compare(a, b, key, key, bootstrap=100)
    assert found["low"] > 0
    assert found["p"] < 1e-3
    same = compare(a, a, key, key, bootstrap=100)
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="same candidates"):
        compare(a, b[1:], key, key)
    with pytest.raises(ValueError, match="has no score 'ssm state/block 1'"):
        compare(a, b, key, "ssm state/block 1")


def test_a_single_session_has_no_interval_and_no_threshold_of_others():
    values, extra = evaluate([session(0, perfect)], bootstrap=10)
    found = by_metric(values)
    assert found["auc"]["low"] is None
    assert "f1_cross" not in found
    assert "at least 2 sessions" in extra["unavailable"]["f1_cross"]


def test_what_cannot_be_evaluated_is_said():
    unlabelled = session(0, perfect) | {"labels": None}
    short = session(1, perfect) | {"candidates": [], "labels": [], "window": 10}
    with pytest.raises(ValueError, match="1 with no labels of phases or shifts; 1 with too short"):
        evaluate([unlabelled, short])
    with pytest.raises(ValueError, match="none was given"):
        evaluate([])
    one_class = session(2, perfect, every=100)
    with pytest.raises(ValueError, match="no shifts among the 39 candidates of 1 sessions"):
        evaluate([one_class])
    _, extra = evaluate([unlabelled, session(3, perfect), session(4, perfect)], bootstrap=10)
    assert extra["left_out"] == {"no labels of phases or shifts": 1}
    assert extra["sessions"] == 2


def test_models_are_compared_with_baselines():
    sessions = [session(i, perfect) for i in range(4)]
    for s in sessions:
        s["scores"][TF_IDF] = noise(np.array(s["labels"]), np.random.default_rng(1)).tolist()
    _, extra = evaluate(sessions, bootstrap=50)
    (found,) = extra["against_baselines"]
    assert found["score"] == "window cosine/block 1"
    assert found["baseline"] == TF_IDF
    assert found["low"] > 0


def test_position_alone_solves_equal_quarters():
    """The paper's boundaries are equal quarters: a clock finds them all."""
    turns = np.arange(1, 40)
    score = position(30 * turns, 1200)
    assert set(turns[np.argsort(-score)[:3]]) == {10, 20, 30}
    assert score.max() == 0


def test_depth_is_measured_from_the_peaks_on_both_sides():
    found = depths([0.5, 0.9, 0.4, 0.6, 0.1, 0.8])
    assert found.tolist() == pytest.approx([0.4, 0, 0.7, 0, 1.2, 0])
    assert depths([0.3]).tolist() == [0]
    assert depths([]).tolist() == []


def test_words_that_change_are_found():
    topics = ["garden flowers spring blossom", "invoice payment budget bank"]
    turns = tuple(Turn("Client", "client", topics[i // 10 % 2]) for i in range(40))
    made = Session("s", "transcript", turns, (10, 20, 30))
    found = baseline_scores(made, encode(made, load("gpt2-32k")), 40)
    labels, scores = np.array(found["labels"]), np.array(found["scores"][TF_IDF])
    assert labels.sum() == 3
    assert scores[labels == 1].min() == pytest.approx(1)
    assert scores[labels == 1].min() > scores[labels == 0].max()


def test_a_session_of_stop_words_has_scores_that_know_nothing():
    turns = tuple(Turn("Client", "client", "and so it is with him") for _ in range(20))
    found = baseline_scores(s := Session("s", "transcript", turns), encode(s, load("gpt2-32k")), 20)
    assert set(found["scores"][TF_IDF]) == {1.0}


def test_generated_sessions_have_all_baselines():
    made = generate(1)[0]
    encoded = encode(made, load("gpt2-32k"))
    found = baseline_scores(made, encoded)
    assert {POSITION, TF_IDF, "texttiling/"} == set(found["scores"])
    assert all(math.isfinite(v) for scores in found["scores"].values() for v in scores)
    assert {n: v for n, v in found.items() if n != "scores"} == {
        n: v for n, v in described(encoded).items() if n != "scores"
    }
