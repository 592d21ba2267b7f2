import math

import pytest
import torch

from analysis.attention import (
    attention_series,
    implicit_series,
    interval,
    sample_rows,
    scan_series,
)
from analysis.measured import series
from bench.verdict import t_interval

FIVE = ["entropy", "entropy_normalised", "distance", "top_mass", "span", "span_max", "span_cov"]


def attention(seqlen=21, batch=2, nheads=4, nheads_kv=2, headdim=8):
    normal = lambda heads: torch.randn(batch, heads, seqlen, headdim, dtype=torch.float64)
    return {"q": 3 * normal(nheads), "k": normal(nheads_kv), "softmax_scale": 0.5}


def scan(seqlen=19, batch=2, dim=6, dstate=3):
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64)
    return {
        "u": normal(batch, dim, seqlen), "delta": normal(batch, dim, seqlen), "A": -torch.exp(normal(dim, dstate)),
        "B": normal(batch, 1, dstate, seqlen), "C": normal(batch, 1, dstate, seqlen), "D": normal(dim),
        "z": None, "delta_bias": normal(dim), "delta_softplus": True,
    }  # fmt: skip


def weights(given):
    """(batch * nheads, seqlen, seqlen)"""
    q, k = given["q"], given["k"].repeat_interleave(2, 1)
    scores = given["softmax_scale"] * q @ k.mT
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    return scores.masked_fill(future, -math.inf).softmax(-1).flatten(0, 1)


def by_metric(found, instrument):
    assert {s.instrument for s in found} == {instrument}
    return {s.metric: s for s in found}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_all_rows_of_softmax():
    given = attention()
    found = by_metric(attention_series(given), "softmax")
    assert sorted(found) == sorted([*FIVE, "received"])
    p, i = weights(given), torch.arange(21).double()
    entropy = torch.special.entr(p).sum(-1)
    close(found["entropy"].values, entropy)
    close(found["entropy_normalised"].values, entropy[:, 1:] / (i[1:] + 1).log())
    assert found["entropy_normalised"].positions[0] == 1
    close(found["distance"].values, ((i[:, None] - i) * p).tril().sum(-1))
    close(found["top_mass"].values, p.sort(-1, descending=True).values[..., :5].sum(-1))
    close(found["received"].values, p.sum(-2) / (21 - i))
    span = found["span"].values
    assert found["span_max"].value() == span.max()
    assert found["span_cov"].value() == pytest.approx((span.std(correction=0) / span.mean()).item())
    assert not any(found[name].exact for name in ("span", "span_max", "span_cov"))
    assert not any(s.sampled for s in found.values())


def test_sampled_rows_of_softmax():
    given, rows = attention(), torch.tensor([0, 4, 5, 17])
    found = by_metric(attention_series(given, rows=rows), "softmax")
    whole = by_metric(attention_series(given), "softmax")
    for name in ("entropy", "distance", "top_mass", "span"):
        close(found[name].values, whole[name].values[:, rows])
        assert found[name].positions.tolist() == rows.tolist()
        assert found[name].sampled
    assert found["entropy_normalised"].positions.tolist() == [4, 5, 17]
    # keys after token 17 are seen by none of the rows
    queries = torch.tensor([4.0] + 4 * [3] + [2] + 12 * [1])
    close(found["received"].values, weights(given)[:, rows].sum(-2)[:, :18] / queries)
    assert not attention_series(given, rows=torch.arange(21))[0].sampled


def test_fewer_queries_than_keys():
    given = attention()
    whole = by_metric(attention_series(given), "softmax")
    part = given | {"q": given["q"][:, :, -6:]}
    found = by_metric(attention_series(part), "softmax")
    close(found["distance"].values, whole["distance"].values[:, -6:])
    assert found["distance"].positions.tolist() == list(range(15, 21))
    rows = torch.tensor([16, 20])
    found = by_metric(attention_series(part, rows=rows), "softmax")
    close(found["distance"].values, whole["distance"].values[:, rows])


def test_uniform_attention():
    given = attention(seqlen=130, batch=1)
    found = by_metric(attention_series(given | {"q": 0 * given["q"]}), "softmax")
    i = torch.arange(130).double().expand(4, -1)
    close(found["entropy"].values, (i + 1).log())
    close(found["entropy_normalised"].values, torch.ones(4, 129).double())
    close(found["distance"].values, i / 2)
    close(found["top_mass"].values, (5 / (i + 1)).clamp(max=1))
    close(found["span"].values[:, :99], i[:, :99])
    close(found["span"].values[:, 100:], 0 * i[:, 100:])
    close(found["received"].values[0, 129:], torch.tensor([1 / 130]).double())


def test_scan_per_state():
    given = scan()
    found = by_metric(scan_series(given), "implicit, per state")
    assert sorted(found) == sorted(FIVE)
    assert found["entropy"].values.shape == (6, 19)
    d = torch.nn.functional.softplus(given["delta"] + given["delta_bias"][:, None])
    P = d.cumsum(-1)
    since = (P[..., :, None] - P[..., None, :]).tril()  # (batch, dim, i, j)
    w = torch.exp(given["A"][:, :, None, None] * since[:, :, None])
    w = (w * (d[:, :, None] * given["B"].abs())[..., None, :]).tril()
    p = w / w.sum(-1, keepdim=True)
    i = torch.arange(19).double()
    close(found["entropy"].values, torch.special.entr(p).sum(-1).mean(1).flatten(0, 1))
    close(found["distance"].values, ((i[:, None] - i) * p).sum(-1).mean(1).flatten(0, 1))
    assert not found["entropy"].sampled


def test_scan_per_channel():
    given, rows, channels = scan(), torch.tensor([0, 7, 18]), torch.tensor([1, 4])
    found = by_metric(implicit_series(given, rows, channels), "implicit, per channel")
    whole = by_metric(implicit_series(given, None, None), "implicit, per channel")
    assert found["entropy"].values.shape == (4, 3)
    assert found["entropy"].sampled
    assert not whole["entropy"].sampled
    for name in ("entropy", "distance", "top_mass", "span"):
        picked = whole[name].values.view(2, 6, 19)[:, channels][..., rows].flatten(0, 1)
        close(found[name].values, picked)


def test_rows_without_any_weight_are_left_out():
    given = scan()
    given["B"] = given["B"].clone()
    given["B"][..., :3] = 0
    assert scan_series(given)[0].positions.tolist() == list(range(3, 19))
    found = implicit_series(given, torch.tensor([1, 2, 3, 9]), None)
    assert found[0].positions.tolist() == [3, 9]


@pytest.mark.parametrize("seqlen", [1, 2])
def test_short_sequences(seqlen):
    found = by_metric(attention_series(attention(seqlen)), "softmax")
    assert len(found["entropy_normalised"].positions) == seqlen - 1
    assert found["top_mass"].value() == pytest.approx(1)
    assert math.isnan(found["entropy_normalised"].value()) == (seqlen == 1)
    assert scan_series(scan(seqlen))[0].values.shape == (6, seqlen)


def test_sample_rows():
    assert sample_rows(5, 9).tolist() == sample_rows(5, 5).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(1000, 10)
    assert (rows // 100).tolist() == list(range(10))
    assert torch.equal(rows, sample_rows(1000, 10))
    assert not torch.equal(rows, sample_rows(1000, 10, seed=1))
    ragged = sample_rows(10, 4, seed=3)
    assert ragged.dtype == torch.int64
    assert (ragged.diff() > 0).all()
    with pytest.raises(ValueError, match="at least 1"):
        sample_rows(10, 0)


def test_interval():
    values = torch.randn(3, 8)
    sampled = series("softmax", "entropy", values, sampled=True)
    assert interval(sampled) == t_interval(values.double().mean(0).numpy())[1:]
    low, high = interval(sampled)
    assert low < sampled.value() < high
    for other in (
        series("softmax", "entropy", values),
        series("softmax", "span_max", values, sampled=True, summary="max"),
        series("softmax", "entropy", values[:, :0], sampled=True),
    ):
        assert all(math.isnan(end) for end in interval(other))


def test_wrong_rows():
    for rows in ([], [3, 3], [4, 2], [21], [-1]):
        with pytest.raises(ValueError, match="rows must ascend"):
            attention_series(attention(), rows=torch.tensor(rows, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows must ascend"):
        implicit_series(scan(), torch.tensor([5, 1]), None)
