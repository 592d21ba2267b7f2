"""The implicit attention of whole channels: it is the scan, and its statistics are those of the dense definition."""

import pytest
import torch

from kernels.scan_statistics import channels as module
from kernels.scan_statistics.channels import implicit_attention
from kernels.scan_statistics.op import scan_statistics
from kernels.scan_statistics.problem import ScanStatisticsProblem as Problem
from kernels.selective_scan.op import selective_scan
from tests.kernels.scans import widened
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [Problem(2, 40, 6, 4, ngroups=2), Problem(1, 1, 3, 1), Problem(1, 25, 5, 3, layout="time_last")]  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_alpha_is_the_scan(problem):
    inputs = problem.inputs(torch.float64)
    u = torch.randn_like(inputs["delta"])
    alpha = implicit_attention(**inputs)
    y = selective_scan(u, **inputs, impl="reference")
    assert ((alpha @ u[..., None])[..., 0] - y).abs().max() <= 1e-10
    assert (alpha.triu(1) == 0).all()


def test_sums_and_moments_are_scans():
    """Of positive weights: the sum over a row is the scan of 1, the first moment that of j."""
    inputs = Problem(1, 60, 5, 3).inputs(torch.float64)
    inputs["B"], inputs["C"] = inputs["B"].abs(), inputs["C"].abs()
    rows, some = torch.tensor([59, 3, 20]), torch.tensor([4, 1])
    one = torch.ones_like(inputs["delta"])
    j = torch.arange(60.0, dtype=torch.float64)
    scan = lambda u: selective_scan(u, **inputs, impl="reference")[:, some][..., rows]
    alpha = implicit_attention(**inputs, rows=rows, channels=some)
    assert alpha.shape == (1, 2, 3, 60)
    assert (alpha.sum(-1) - scan(one)).abs().max() <= 1e-10
    assert ((alpha * j).sum(-1) - scan(one * j)).abs().max() <= 1e-10
    found = scan_statistics(**inputs, level="channel", rows=rows, channels=some, impl="torch")
    assert (found.distance - (rows - scan(one * j) / scan(one))).abs().max() <= 1e-10


@pytest.mark.parametrize("elements", [1 << 20, 100])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_streamed_equals_dense(problem, elements, monkeypatch):
    monkeypatch.setattr(module, "ELEMENTS", elements)
    inputs = problem.inputs(torch.float64)
    rows = torch.tensor([problem.seqlen - 1, 0, problem.seqlen // 2])
    some = torch.tensor([problem.dim - 1, 0])
    for options in ({}, {"rows": rows, "channels": some, "top_k": 2, "span_threshold": 0.2}):
        dense = scan_statistics(**inputs, level="channel", impl="reference", **options)
        found = scan_statistics(**inputs, level="channel", impl="torch", **options)
        for name, a, e in zip(dense._fields, found, dense, strict=True):
            assert (a - e).abs().max() <= 1e-10 * max(1.0, e.abs().max().item()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_accuracy(dtype, device):
    inputs = Problem(2, 40, 6, 4, ngroups=2).inputs(dtype, device)
    sample = {"level": "channel", "rows": torch.tensor([39, 7, 38], device=device)}
    found = scan_statistics(**inputs, **sample, impl="torch")
    baseline = scan_statistics(**inputs, **sample, impl="reference")
    gold = scan_statistics(**widened(inputs), **sample, impl="reference")
    for name, *three in zip(gold._fields, found, baseline, gold, strict=True):
        assert_as_accurate(name, *three)
    alpha = implicit_attention(**inputs)
    u = torch.randn_like(inputs["delta"])
    wide = widened(inputs)
    three = (alpha, implicit_attention(**(wide | {"delta": wide["delta"]})))
    assert alpha.dtype == torch.float32
    y = (three[0] @ u.float()[..., None])[..., 0]
    gold = (three[1] @ u.double()[..., None])[..., 0]
    baseline = selective_scan(u.float(), **inputs, impl="reference")
    assert_as_accurate("alpha u", y, baseline, gold)


def test_signs_cancel_between_states():
    """Two states that are opposite leave nothing of alpha, and of its statistics, but not of those per state."""
    inputs = Problem(1, 6, 4, 1).inputs()
    both = lambda t, other: torch.cat([t, other], -2 if t.dim() == 4 else -1)
    opposite = inputs | {
        "A": both(inputs["A"], inputs["A"]),
        "B": both(inputs["B"], inputs["B"]),
        "C": both(inputs["C"], -inputs["C"]),
    }
    assert (implicit_attention(**opposite) == 0).all()
    for t in scan_statistics(**opposite, level="channel", impl="torch"):
        assert (t == 0).all()
    for impl in ("torch", "reference"):
        assert (scan_statistics(**opposite, impl=impl).top_mass > 0).all()
        assert (scan_statistics(**opposite, level="channel", impl=impl).top_mass == 0).all()


def test_one_state_is_its_channel():
    """With one state both levels are the same distribution."""
    inputs = Problem(1, 30, 3, 1).inputs(torch.float64)
    state = scan_statistics(**inputs, impl="torch")
    channel = scan_statistics(**inputs, level="channel", impl="torch")
    for a, b in zip(state, channel, strict=True):
        assert (a - b.mean(1, keepdim=True)).abs().max() <= 1e-10


def test_a_long_row_does_not_overflow():
    """exp(-A P_j) alone would be e^20000."""
    inputs = Problem(1, 400, 2, 2, delta_softplus=False, has_bias=False).inputs(torch.float64)
    inputs["delta"].fill_(25.0)
    alpha = implicit_attention(**inputs, rows=torch.tensor([399]))
    assert alpha.isfinite().all()
    assert (alpha[..., -1] != 0).all()


def test_nan_is_seen():
    inputs = Problem(1, 6, 4, 2).inputs()
    inputs["C"][..., 4] = float("nan")
    found = scan_statistics(**inputs, level="channel", impl="torch")
    assert found.entropy[..., 4].isnan().all()
    assert found.entropy[..., :4].isfinite().all()
