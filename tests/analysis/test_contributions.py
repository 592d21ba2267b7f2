import math

import pytest
import torch
import torch.nn.functional as F

from analysis import contributions
from analysis.contributions import contribution_norms, contribution_series, scan_vectors
from kernels import causal_attention, selective_scan
from kernels.scan_statistics.channels import implicit_attention
from models.observe import Mixing

HIDDEN = 7


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def llama(seqlen=150, batch=2, nheads=4, nheads_kv=2, headdim=3):
    q, k, v = (normal(batch, n, seqlen, headdim) for n in (nheads, nheads_kv, nheads_kv))
    operands = {"q": 2 * q, "k": k, "v": v, "softmax_scale": 0.7}
    return Mixing("block 1", "causal_attention", operands, normal(HIDDEN, nheads * headdim))


def mamba(seqlen=150, batch=2, dim=6, dstate=3, ngroups=2, **options):
    operands = {
        "u": normal(batch, seqlen, dim).mT,
        "delta": normal(batch, dim, seqlen),
        "A": -torch.exp(normal(dim, dstate)),
        "B": normal(batch, ngroups, dstate, seqlen),
        "C": normal(batch, ngroups, dstate, seqlen),
        "D": normal(dim),
        "z": normal(batch, dim, seqlen),
        "delta_bias": normal(dim),
        "delta_softplus": True,
    } | options
    return Mixing("block 1", "selective_scan", operands, normal(HIDDEN, dim))


def dense_vectors(mixing):
    """(batch, i, j, hidden): what j brings to i, straight from the definition."""
    given = mixing.operands
    if mixing.operator == "causal_attention":
        groups = given["q"].shape[1] // given["k"].shape[1]
        k, v = (given[name].repeat_interleave(groups, 1) for name in ("k", "v"))
        scores = given["softmax_scale"] * given["q"] @ k.mT
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        p = scores.masked_fill(future, -math.inf).softmax(-1)
        parts = torch.einsum("bhij,bhjd->bijhd", p, v).flatten(-2)
    else:
        names = ("delta", "A", "B", "C", "delta_bias", "delta_softplus")
        alpha = implicit_attention(*(given[name] for name in names))
        if given["D"] is not None:
            alpha = alpha + torch.diag_embed(given["D"][:, None].expand(-1, alpha.shape[-1]))
        gate = 1 if given["z"] is None else F.silu(given["z"])[..., None]
        parts = (gate * alpha * given["u"][:, :, None]).permute(0, 2, 3, 1)
    return parts @ mixing.out_weight.T


def output(mixing):
    """(batch, seqlen, hidden): the operator and its projection as a model computes them."""
    if mixing.operator == "causal_attention":
        y = causal_attention(**mixing.operands, impl="reference").transpose(1, 2).flatten(2)
    else:
        y = selective_scan(**mixing.operands, impl="reference").mT
    return y @ mixing.out_weight.T


ROWS = torch.tensor([0, 1, 2, 63, 64, 65, 100, 127, 128, 149])


@pytest.mark.parametrize("make", [llama, mamba])
def test_norms_equal_dense(make):
    mixing = make()
    vectors = dense_vectors(mixing)
    torch.testing.assert_close(vectors.sum(2), output(mixing), rtol=1e-10, atol=1e-10)
    norms = contribution_norms(mixing, ROWS)
    torch.testing.assert_close(norms, vectors.norm(dim=-1)[:, ROWS], rtol=1e-10, atol=1e-10)


def test_vectors_of_a_scan_add_up_to_its_output():
    mixing = mamba()
    total = normal(6, len(ROWS)).zero_()
    for some, _, vectors in scan_vectors(mixing.operands, 1, ROWS, torch.float64):
        total[:, some] += vectors.sum(-1)
    projected = (mixing.out_weight @ total).T
    torch.testing.assert_close(projected, output(mixing)[1, ROWS], rtol=1e-10, atol=1e-10)


def test_all_rows_and_few_at_a_time(monkeypatch):
    mixing = mamba(seqlen=80)
    rows = torch.arange(80)
    whole = contribution_norms(mixing, rows)
    series = contribution_series(mixing, rows)
    monkeypatch.setattr(contributions, "BYTES", 8 * 80 * 2 * 7)  # 7 rows, and one row's vectors
    torch.testing.assert_close(contribution_norms(mixing, rows), whole, rtol=1e-10, atol=1e-10)
    for a, b in zip(contribution_series(mixing, rows), series, strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [llama, mamba])
def test_series(make):
    mixing = make()
    found = {s.metric: s for s in contribution_series(mixing, ROWS)}
    norms = dense_vectors(mixing).norm(dim=-1)[:, ROWS]
    p = norms / norms.sum(-1, keepdim=True)
    j = torch.arange(150).double()
    gold = {
        "entropy": torch.special.entr(p).sum(-1),
        "distance": ((ROWS[:, None] - j) * p).sum(-1),
        "top_mass": p.sort(-1, descending=True).values[..., :5].sum(-1),
    }
    for name, values in gold.items():
        torch.testing.assert_close(found[name].values, values, rtol=1e-10, atol=1e-10)
        assert found[name].positions.tolist() == ROWS.tolist()
        assert found[name].sampled
        assert found[name].instrument == "contribution"
    assert {"entropy_normalised", "span", "span_max", "span_cov"} < set(found)


def test_a_scan_without_its_options():
    mixing = mamba(
        seqlen=9, D=None, z=None, delta_bias=None, delta_softplus=False,
        delta=torch.rand(2, 6, 9).double(), B=normal(2, 2, 3, 9),
    )  # fmt: skip
    norms = contribution_norms(mixing, torch.arange(9))
    gold = dense_vectors(mixing).norm(dim=-1)
    torch.testing.assert_close(norms, gold, rtol=1e-10, atol=1e-10)


def test_long_memory_and_strong_decay_do_not_overflow():
    """exp(-A P_j) would be exp(40,000) here."""
    mixing = mamba(seqlen=400, batch=1, delta=torch.full((1, 6, 400), 10.0).double())
    mixing.operands["A"][:3] = -10
    mixing.operands["A"][3:] = -1e-6
    rows = torch.tensor([70, 399])
    norms = contribution_norms(mixing, rows)
    gold = dense_vectors(mixing).norm(dim=-1)[:, rows]
    torch.testing.assert_close(norms, gold, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [llama, mamba])
@pytest.mark.parametrize("seqlen", [1, 2])
def test_short_sequences(make, seqlen):
    found = {s.metric: s for s in contribution_series(make(seqlen), torch.arange(seqlen))}
    assert found["top_mass"].value() == pytest.approx(1)
    assert found["entropy"].values[:, 0].abs().max() < 1e-12
    assert not found["entropy"].sampled


def test_float32_is_near_float64():
    for mixing in (llama(), mamba()):
        single = {k: v.float() if torch.is_tensor(v) else v for k, v in mixing.operands.items()}
        norms = contribution_norms(
            Mixing("", mixing.operator, single, mixing.out_weight.float()), ROWS
        )
        assert norms.dtype == torch.float32
        gold = contribution_norms(mixing, ROWS)
        torch.testing.assert_close(norms.double(), gold, rtol=1e-3, atol=1e-5)


def test_a_shut_gate_leaves_the_token_out():
    mixing = mamba(seqlen=10)
    mixing.operands["z"][..., 4] = 0
    found = contribution_series(mixing, torch.arange(10))[0]
    assert 4 not in found.positions.tolist()
    assert len(found.positions) == 9


def test_wrong_arguments():
    for rows in ([], [2, 1], [10]):
        with pytest.raises(ValueError, match="rows must ascend"):
            contribution_norms(mamba(seqlen=10), torch.tensor(rows, dtype=torch.int64))
    mixing = llama(seqlen=10)
    with pytest.raises(ValueError, match="operator must be one of"):
        contribution_norms(Mixing("", "causal_conv1d", mixing.operands, None), torch.arange(3))
    mixing.operands["q"] = mixing.operands["q"][:, :, -2:]
    with pytest.raises(ValueError, match="q must have as many tokens"):
        contribution_norms(mixing, torch.arange(3))
