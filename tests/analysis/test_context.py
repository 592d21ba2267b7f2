"""Effective context: statistics of known profiles, and gradients that are those of the model."""

import math

import pytest
import torch

from analysis import context
from models.bind import use
from models.build import build
from models.gold import gold
from tests.tolerance import assert_as_accurate

IDS = (torch.arange(40) * 97 % 31_000)[None]


def test_a_uniform_profile():
    found = context.statistics(torch.ones(101, dtype=torch.float64))
    assert found["count"] == 101
    assert found["range"] == 100
    assert found["share"] == 1
    assert (found["mass_50"], found["mass_90"]) == (50, 90)
    assert found["exp_entropy"] == pytest.approx(101)
    assert found["distance"] == pytest.approx(50)


def test_one_token():
    """All of the gradient on a token that lies 7 back."""
    profile = torch.zeros(21, dtype=torch.float64)
    profile[-8] = 3.0
    found = context.statistics(profile)
    assert found["count"] == 1
    assert found["share"] == pytest.approx(1 / 21)
    assert found["exp_entropy"] == pytest.approx(1)
    assert [found[name] for name in ("range", "mass_50", "mass_90", "distance")] == [7, 7, 7, 7]


def test_count_and_range_differ_where_the_earliest_token_stands_out():
    """A recent window and the first token alone: few tokens, but all of the range."""
    profile = torch.full((200,), 1e-3, dtype=torch.float64)
    profile[-5:], profile[0] = 1.0, 0.5
    found = context.statistics(profile)
    assert (found["count"], found["range"]) == (6, 199)


def test_a_gradient_that_vanishes_has_no_statistics():
    assert all(math.isnan(v) for v in context.statistics(torch.zeros(5)).values())


def test_probes():
    assert context.probes(1847).tolist() == [462, 808, 1153, 1499, 1845]
    assert context.probes(2).tolist() == [0]
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        context.probes(1)


def test_shares_over_distance_add_up_to_one():
    profile = torch.rand(37, dtype=torch.float64)
    distances, shares = context.over_distance([profile])
    widths = [min(b, 37) - a for a, b in zip(distances, [*distances[1:], 37], strict=True)]
    assert sum(s * w for s, w in zip(shares, widths, strict=True)) == pytest.approx(1)


@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_gradients_are_those_of_finite_differences(arch):
    """d log p along a random direction, in float64, against the same of the profile's gradient."""
    model = gold(build(arch, "tiny"))
    probe, step = 12, 1e-5
    embeddings = model.get_input_embeddings()(IDS[:, : probe + 1]).detach()
    token = 4

    def log_probability(moved):
        with torch.no_grad():
            hidden = model.base_model(inputs_embeds=moved, use_cache=False)[0][0, -1]
            return model.get_output_embeddings()(hidden).log_softmax(-1)[IDS[0, probe + 1]].item()

    squares = 0.0
    for axis in range(embeddings.shape[-1]):
        ends = []
        for sign in (1, -1):
            moved = embeddings.clone()
            moved[0, token, axis] += sign * step
            ends.append(log_probability(moved))
        squares += ((ends[0] - ends[1]) / (2 * step)) ** 2
    found = context.gradient_profiles(model, IDS, probe, draws=1)["log-probability"]
    assert found[token].item() == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_hutchinson_is_the_norm_of_the_jacobian(arch):
    """With many draws: ||dh_t/de_j||_F / sqrt(width)."""
    model = gold(build(arch, "tiny"))
    embeddings = model.get_input_embeddings()(IDS[:, :6]).detach()
    run = lambda e: model.base_model(inputs_embeds=e, use_cache=False)[0][0, -1]
    jacobian = torch.autograd.functional.jacobian(run, embeddings)[:, 0]  # (width, 6, width)
    exact = jacobian.square().sum((0, 2)).sqrt() / jacobian.shape[0] ** 0.5
    found = context.gradient_profiles(model, IDS, 5, draws=400)["hutchinson"]
    assert torch.allclose(found, exact, rtol=0.15)


@pytest.mark.parametrize(
    ("arch", "impls"), [("mamba", ("cpu", "torch")), ("llama", ("torch", "hf"))]
)
def test_implementations_agree(arch, impls):
    model = build(arch, "tiny").requires_grad_(False)
    found = []
    for impl in impls:
        with use(model, impl):
            found.append(context.gradient_profiles(model, IDS, 30))
    exact = context.gradient_profiles(gold(model), IDS, 30)
    for name, profile in found[0].items():
        assert_as_accurate(name, profile, found[1][name], exact[name], slack=3.0)


def test_nan_is_named():
    model = build("llama", "tiny")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="logits of token 10 holds NaN"):
        context.gradient_profiles(model, IDS, 10)


def test_the_asymmetric_pair_has_one_denominator():
    """Attention above a threshold for the one, a gradient for the other, t + 1 below both."""
    llama, mamba = build("llama", "tiny"), build("mamba", "tiny")
    spans = lambda operands: torch.full((1, 2, 40), 3.0)
    with use(llama, "torch"):
        found = {s.metric: s for s in context.asymmetric(llama, IDS, spans, [])}
    assert found["count"].value() == 3
    assert found["share"].by_position()[0] == 3.0
    assert found["share"].by_position()[-1] == pytest.approx(3 / 40)
    assert found["cov"].value() == 0
    with use(mamba, "torch"):
        measured, _ = context.context_series(mamba, IDS, count=3, draws=1)
        mine = [s for s in measured if s.instrument == "max logit"]
        found = {s.metric: s for s in context.asymmetric(mamba, IDS, spans, mine)}
    assert found["count"].value() == next(s for s in mine if s.metric == "count").value()
