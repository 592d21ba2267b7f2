import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.states import state_series
from kernels import selective_scan
from kernels.observation import observing_operators


def operands(seqlen, dim=6, dstate=4, ngroups=2, batch=2, dtype=torch.float64):
    normal = lambda *shape: torch.randn(*shape, dtype=dtype)
    return {
        "u": normal(batch, seqlen, dim).mT,
        "delta": normal(batch, seqlen, dim).mT,
        "A": -torch.exp(normal(dim, dstate)),
        "B": normal(batch, ngroups, dstate, seqlen),
        "C": normal(batch, ngroups, dstate, seqlen),
        "D": normal(dim),
        "z": normal(batch, dim, seqlen),
        "delta_bias": normal(dim) - 2,
        "delta_softplus": True,
    }


def dense_states(given):
    steps = F.softplus(given["delta"] + given["delta_bias"][:, None])
    per_group = given["A"].shape[0] // given["B"].shape[1]
    B = given["B"].repeat_interleave(per_group, 1)
    state, found = torch.zeros(*given["u"].shape[:2], given["A"].shape[1]).double(), []
    for t in range(steps.shape[-1]):
        d = steps[..., t, None]
        state = torch.exp(d * given["A"]) * state + d * given["u"][..., t, None] * B[..., t]
        found.append(state)
    return torch.stack(found, 1), steps


@pytest.mark.parametrize(("seqlen", "chunk"), [(50, 64), (131, 64), (90, 7), (64, 64), (65, 1)])
def test_streamed_equals_dense(seqlen, chunk):
    given = operands(seqlen)
    found = {s.metric: s for s in state_series(given, chunk=chunk)}
    states, steps = dense_states(given)
    flat = states.flatten(2)
    norm = flat.norm(dim=-1)
    velocity = (flat[:, 1:] - flat[:, :-1]).norm(dim=-1)
    drift = (flat - flat[:, :1]).norm(dim=-1)
    variance = flat.unfold(1, 50, 1).var(-1, correction=0).mean(-1)
    life = math.log(2) / (given["A"].abs()[None, :, :, None] * steps[:, :, None])
    gold = {
        "velocity": velocity,
        "velocity_relative": velocity / norm[:, :-1],
        "drift": drift,
        "drift_relative": drift / norm[:, :1],
        "cosine": F.cosine_similarity(flat[:, 1:], flat[:, :-1], dim=-1),
        "variance": variance,
        "stability": 1 / (1 + variance),
        "norm": norm,
        "half_life": torch.from_numpy(np.median(life.numpy(), axis=1)).flatten(0, 1),
    }
    assert sorted(found) == sorted(gold)
    for name, values in gold.items():
        assert found[name].instrument == "ssm state"
        torch.testing.assert_close(found[name].values, values, rtol=1e-10, atol=1e-10)
    assert found["drift"].summary == found["norm"].summary == "last"


@pytest.mark.parametrize("impl", ["torch", "cpu", "reference"])
def test_every_implementation_that_returns_states(impl):
    given = operands(70, dtype=torch.float32)
    found = {s.metric: s for s in state_series(given, impl=impl)}
    exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    for s in state_series(exact, impl="reference"):
        torch.testing.assert_close(found[s.metric].values, s.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seqlen", [1, 2, 49, 50])
def test_short_sequences(seqlen):
    found = {s.metric: s for s in state_series(operands(seqlen))}
    assert len(found["velocity"].positions) == len(found["cosine"].positions) == seqlen - 1
    assert len(found["variance"].positions) == max(0, seqlen - 49)
    assert math.isfinite(found["half_life"].value())


def test_known_half_life():
    """A step of ln 2 / |A| halves the state."""
    given = operands(3) | {"delta_softplus": False, "delta_bias": None}
    given["A"] = -torch.tensor([1.0, 2.0, 4.0, 8.0]).double().expand(6, 4)
    given["delta"] = torch.full_like(given["delta"], math.log(2))
    found = {s.metric: s for s in state_series(given)}
    lives = found["half_life"].values.view(2, 4, 3)
    torch.testing.assert_close(lives[0, :, 0], torch.tensor([1, 0.5, 0.25, 0.125]).double())


def test_a_state_of_zero_has_no_direction():
    given = operands(8)
    given["u"] = given["u"].clone()
    given["u"][..., :3] = 0
    found = {s.metric: s for s in state_series(given, window=2)}
    assert found["cosine"].positions.tolist() == [4, 5, 6, 7]
    assert found["velocity_relative"].positions.tolist() == [4, 5, 6, 7]
    assert math.isnan(found["drift_relative"].value())


def test_an_observer_of_the_model_does_not_see_the_scan():
    given, seen = operands(20), []

    def visit(operator, taken):
        seen.append(operator)
        state_series(taken)

    with observing_operators(visit):
        selective_scan(**given, impl="torch")
    assert seen == ["selective_scan"]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="chunk must be"):
        state_series(operands(4), chunk=0)
    with pytest.raises(ValueError, match="window must be"):
        state_series(operands(4), window=0)
    with pytest.raises(ValueError, match="impl must be"):
        state_series(operands(4), impl="fast")
