import math

import pytest
import torch

from analysis.similarity import Moments, cka_matrix


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def direct_hsic(x, y):
    """Song et al. (2012), equation 5, from the n x n kernels; nothing is centred first."""
    n = len(x)
    K, L = (t @ t.T for t in (x, y))
    K.fill_diagonal_(0)
    L.fill_diagonal_(0)
    one = torch.ones(n, dtype=x.dtype)
    total = (K @ L).trace() + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def direct(x, y, criterion):
    return (criterion(x, y) / (criterion(x, x) * criterion(y, y)).sqrt()).item()


def biased(x, y):
    x, y = (t - t.mean(0) for t in (x, y))
    return (x.T @ y).square().sum()


def moments(x, y, block):
    found = Moments()
    for a, b in zip(x.split(block), y.split(block), strict=True):
        found.update(a, b)
    return found


@pytest.mark.parametrize("block", [1, 7, 40])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_streamed_equals_direct(block, shift):
    x = normal(40, 5) + shift
    y = torch.cat([x[:, :3] ** 2, normal(40, 4, seed=1)], 1) - shift
    found = moments(x, y, block)
    assert found.cka() == pytest.approx(direct(x, y, biased), abs=1e-10)
    x, y = (
        t - t.mean(0) for t in (x, y)
    )  # which the unbiased estimate does not see, but rounding does
    assert found.debiased_cka() == pytest.approx(direct(x, y, direct_hsic), abs=1e-10)
    _, _, matrix, _ = cka_matrix({"a": x + shift}, {"b": y - shift}, shuffles=0)
    assert matrix.item() == pytest.approx(direct(x, y, direct_hsic), abs=1e-10)


def test_identity_rotation_and_scale():
    x = normal(60, 8) + 3
    rotation = torch.linalg.qr(normal(8, 8, seed=2)).Q
    for y in (x, 0.01 * x + 7, x @ rotation):
        found = moments(x, y, 16)
        assert found.cka() == pytest.approx(1, abs=1e-12)
        assert found.debiased_cka() == pytest.approx(1, abs=1e-12)


def test_unrelated_representations():
    """Fewer tokens than features: the biased estimate takes noise for likeness."""
    found = moments(normal(64, 128), normal(64, 128, seed=1), 64)
    assert found.cka() > 0.5
    assert abs(found.debiased_cka()) < 0.1


def test_matrix_and_chance():
    a = {"one": normal(500, 6).float(), "two": normal(500, 9, seed=1).float()}
    b = {"one": a["one"], "mix": a["one"] @ normal(6, 6, seed=3).float() + a["two"][:, :6]}
    rows, columns, matrix, null = cka_matrix(a, b)
    assert (rows, columns) == (["one", "two"], ["one", "mix"])
    assert matrix[0, 0].item() == pytest.approx(1, abs=1e-12)
    for i, x in enumerate(a.values()):
        for j, y in enumerate(b.values()):
            assert matrix[i, j].item() == pytest.approx(
                moments(x, y, 100).debiased_cka(), abs=1e-10
            )
    assert null.abs().max() < 0.05
    again = cka_matrix(a, b)
    assert torch.equal(again[3], null)
    assert not torch.equal(cka_matrix(a, b, seed=1)[3], null)


def test_null_is_the_mean_over_permutations():
    x, y = normal(30, 4), normal(30, 4, seed=1) + normal(30, 4)
    _, _, _, null = cka_matrix({"x": x}, {"y": y}, shuffles=2, seed=5)
    generator = torch.Generator().manual_seed(5)
    found = [direct(x, y[torch.randperm(30, generator=generator)], direct_hsic) for _ in range(2)]
    assert null.item() == pytest.approx(sum(found) / 2, abs=1e-5)
    assert math.isnan(cka_matrix({"x": x}, {"y": y}, shuffles=0)[3].item())


def test_constant_representation_has_no_similarity():
    x, constant = normal(20, 3), torch.full((20, 3), 0.1, dtype=torch.float64)
    found = moments(x, constant, 6)
    assert math.isnan(found.cka())
    assert math.isnan(found.debiased_cka())
    _, _, matrix, null = cka_matrix({"x": x, "c": constant}, {"x": x, "c": constant})
    assert not math.isnan(matrix[0, 0].item())
    assert matrix.isnan().tolist() == null.isnan().tolist() == [[False, True], [True, True]]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="same tokens"):
        Moments().update(normal(4, 2), normal(5, 2))
    with pytest.raises(ValueError, match="no tokens yet"):
        Moments().cka()
    with pytest.raises(ValueError, match="at least 4 tokens"):
        moments(normal(3, 2), normal(3, 2), 3).debiased_cka()
    assert math.isnan(moments(normal(1, 2), normal(1, 2), 1).cka())
    with pytest.raises(ValueError, match="same tokens"):
        cka_matrix({"x": normal(4, 2)}, {"y": normal(5, 2)})
    with pytest.raises(ValueError, match="at least 4 tokens"):
        cka_matrix({"x": normal(3, 2)}, {"y": normal(3, 2)})
