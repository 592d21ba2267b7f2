import math

import pytest
import torch

from analysis.hidden_states import hidden_series

METRICS = [
    "velocity", "velocity_max", "velocity_relative", "drift", "drift_relative", "path_length",
    "variance", "stability", "norm", "norm_mean",
]  # fmt: skip


def by_metric(found):
    assert {s.instrument for s in found} == {"residual stream"}
    return {s.metric: s for s in found}


def dense(h, window):
    """The definitions, over (batch, seqlen, width)."""
    norm = h.norm(dim=-1)
    velocity = (h[:, 1:] - h[:, :-1]).norm(dim=-1)
    drift = (h - h[:, :1]).norm(dim=-1)
    variance = h.unfold(1, window, 1).var(-1, correction=0).mean(-1)
    return {
        "velocity": velocity,
        "velocity_relative": velocity / norm[:, :-1],
        "drift": drift,
        "drift_relative": drift / norm[:, :1],
        "variance": variance,
        "stability": 1 / (1 + variance),
        "norm": norm,
    }


@pytest.mark.parametrize("seqlen", [50, 63, 64, 65, 200])
def test_streamed_equals_dense(seqlen):
    h = torch.randn(2, seqlen, 12, dtype=torch.float64).cumsum(1)
    found = by_metric(hidden_series(h))
    assert sorted(found) == sorted(METRICS)
    for name, values in dense(h, 50).items():
        torch.testing.assert_close(found[name].values, values, rtol=1e-10, atol=1e-10)
    assert found["velocity"].positions.tolist() == list(range(1, seqlen))
    assert found["variance"].positions.tolist() == list(range(49, seqlen))


def test_summaries():
    h = torch.randn(9, 4, dtype=torch.float64)
    found = by_metric(hidden_series(h, window=3))
    velocity = (h[1:] - h[:-1]).norm(dim=-1)
    assert found["velocity"].value() == pytest.approx(velocity.mean().item())
    assert found["velocity_max"].value() == pytest.approx(velocity.max().item())
    assert found["path_length"].value() == pytest.approx(velocity.sum().item())
    assert found["drift"].value() == pytest.approx((h[-1] - h[0]).norm().item())
    assert found["drift_relative"].value() == pytest.approx(
        ((h[-1] - h[0]).norm() / h[0].norm()).item()
    )
    assert found["norm"].value() == pytest.approx(h[-1].norm().item())
    assert found["norm_mean"].value() == pytest.approx(h.norm(dim=-1).mean().item())
    assert found["velocity"].values.shape == (8,)


def test_a_straight_line():
    h = torch.outer(torch.arange(1, 101, dtype=torch.float64), torch.tensor([3.0, 4.0]).double())
    found = by_metric(hidden_series(h, window=5))
    assert found["velocity"].value() == pytest.approx(5)
    assert found["drift"].value() == pytest.approx(found["path_length"].value())
    # variance of 0..4 is 2, in steps of 3 and 4
    assert found["variance"].value() == pytest.approx(2 * (9 + 16) / 2)
    assert found["stability"].value() == pytest.approx(1 / 26)


@pytest.mark.parametrize("seqlen", [1, 2, 49, 50])
def test_short_sequences(seqlen):
    found = by_metric(hidden_series(torch.randn(seqlen, 8)))
    assert len(found["velocity"].positions) == seqlen - 1
    assert len(found["variance"].positions) == max(0, seqlen - 49)
    assert math.isnan(found["variance"].value()) == (seqlen < 50)
    assert math.isnan(found["velocity"].value()) == (seqlen < 2)
    assert math.isfinite(found["drift"].value())
    assert math.isfinite(found["norm"].value())


def test_a_far_away_first_token_costs_no_digits():
    """Trained Transformers have first tokens whose norm is a thousand times that of the others."""
    h = torch.randn(300, 16, dtype=torch.float64) + 100
    h[0] *= 1e6
    found = by_metric(hidden_series(h))["variance"].values[100:]
    torch.testing.assert_close(found, dense(h[None], 50)["variance"][0, 100:], rtol=1e-10, atol=0)


def test_a_constant_path_does_not_move():
    found = by_metric(hidden_series(torch.full((70, 5), 0.1)))
    assert found["velocity"].value() == found["drift"].value() == 0
    assert 0 <= found["variance"].value() < 1e-30


def test_zero_norms_are_left_out():
    h = torch.randn(6, 4)
    h[0] = h[3] = 0
    found = by_metric(hidden_series(h, window=2))
    assert found["velocity_relative"].positions.tolist() == [2, 3, 5]
    assert torch.isfinite(found["velocity_relative"].values).all()
    assert math.isnan(found["drift_relative"].value())
    assert math.isfinite(found["drift"].value())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_and_strides(dtype):
    h = torch.randn(3, 11, 130).to(dtype).permute(0, 2, 1)  # (3, 130, 11)
    found = by_metric(hidden_series(h))
    gold = dense(h.double(), 50)
    for name, values in gold.items():
        torch.testing.assert_close(found[name].values, values, rtol=1e-10, atol=1e-10)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="window must be"):
        hidden_series(torch.randn(5, 4), window=1)
    with pytest.raises(ValueError, match="hidden must be"):
        hidden_series(torch.randn(0, 4))
