"""Statistics of the implicit attention: every implementation against the definition, and answers that are known."""

import math

import pytest
import torch

from kernels.implementations import recording
from kernels.scan_statistics import cpu, forward, portable
from kernels.scan_statistics.op import scan_statistics
from kernels.scan_statistics.problem import ScanStatisticsProblem as Problem
from tests.kernels.scans import home, widened
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

PROBLEMS = [
    Problem(2, 13, 40, 16),
    Problem(1, 1, 3, 1),  # one token, one state
    Problem(1, 2, 7, 5, layout="time_last"),
    Problem(2, 9, 24, 6, ngroups=3, has_bias=False),
    Problem(1, 12, 70, 3, ngroups=2, delta_softplus=False),  # ragged blocks of channels
]
OURS = ["torch", "cpu", "triton"]
FLOAT64 = ["torch", "cpu"]


def statistics(inputs, impl, **options):
    return scan_statistics(**inputs, impl=impl, **options)


def assert_equal_to_1e_10(actual, expected):
    for name, a, e in zip(expected._fields, actual, expected, strict=True):
        assert a.dtype == torch.float64
        assert (a - e).abs().max() <= 1e-10 * max(1.0, e.abs().max().item()), name


def assert_defined(inputs, actual, **options):
    """`actual` is as accurate as the definition; spans where no weight lies within rounding of the threshold."""
    gold = statistics(widened(inputs), "reference", **options)
    baseline = statistics(inputs, "reference", **options)
    threshold = options.pop("span_threshold", 0.01)
    near = [
        statistics(
            widened(inputs), "reference", span_threshold=threshold * (1 + by), **options
        ).span
        for by in (-1e-4, 1e-4)
    ]
    clear = near[0] == near[1]
    assert clear.double().mean() > 0.9
    for name, *three in zip(gold._fields, actual, baseline, gold, strict=True):
        if name == "span":
            three = [t[clear] for t in three]
        assert_as_accurate(name, *three)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_accuracy(problem, impl, dtype, device):
    inputs = problem.inputs(dtype, home(impl, device))
    actual = statistics(inputs, impl, top_k=3, span_threshold=0.2)
    assert actual.entropy.dtype == torch.float32
    assert actual.entropy.shape == (problem.batch, problem.dstate, problem.seqlen)
    assert_defined(inputs, actual, top_k=3, span_threshold=0.2)


@pytest.mark.parametrize("impl", OURS)
def test_it_is_deterministic(impl, device):
    inputs = PROBLEMS[3].inputs(device=home(impl, device))
    found = [statistics(inputs, impl) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_accuracy_in_bfloat16(problem, device):
    inputs = problem.inputs(torch.bfloat16, device)
    assert_defined(inputs, statistics(inputs, "triton"))


@pytest.mark.parametrize("impl", FLOAT64)
@pytest.mark.parametrize(
    "problem", [*PROBLEMS, Problem(1, 600, 6, 3, ngroups=2), Problem(1, 2000, 2, 2)], ids=str
)
def test_streamed_equals_dense(problem, impl):
    inputs = problem.inputs(torch.float64)
    for options in ({}, {"top_k": 1, "span_threshold": 0.003}, {"top_k": 9, "span_threshold": 0.3}):
        expected = statistics(inputs, "reference", **options)
        assert_equal_to_1e_10(statistics(inputs, impl, **options), expected)


def rising(seqlen, dtype=torch.float64, decay=0.0, growth=0.02):
    """Weights that grow: every token is a candidate for the span, and the queue as long as it can be."""
    weight = torch.exp(growth * torch.arange(seqlen, dtype=torch.float64) % 5.0)
    return {
        "delta": torch.full((1, 3, seqlen), 0.01, dtype=dtype),
        "A": torch.tensor([[-decay, -decay - 0.7]] * 3, dtype=dtype),
        "B": weight.to(dtype).expand(1, 2, seqlen),
        "C": torch.ones(1, 2, seqlen, dtype=dtype),
    }


@pytest.mark.parametrize("impl", FLOAT64)
def test_a_queue_that_is_full(impl):
    inputs = rising(1500, growth=0.001)
    assert_equal_to_1e_10(statistics(inputs, impl), statistics(inputs, "reference"))
    inputs = rising(1500)
    assert_equal_to_1e_10(statistics(inputs, impl), statistics(inputs, "reference"))


@pytest.mark.parametrize(("growth", "threshold"), [(0.02, 0.1), (0.1, 0.06)], ids=["full", "wraps"])
@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_a_queue_that_is_full_in_float32(impl, growth, threshold, device):
    """Its ring has 12 places, all but one of them taken; or 18, of which many tokens take one and leave another."""
    inputs = rising(45, torch.float32, growth=growth)
    inputs = {k: t.to(home(impl, device)) for k, t in inputs.items()}
    found = statistics(inputs, impl, span_threshold=threshold)
    assert_defined(inputs, found, span_threshold=threshold)


def test_float32_does_not_wear_out():
    """Sums over 2,000 tokens, all of which count, stay as accurate as the definition."""
    inputs = Problem(1, 2000, 1, 2).inputs()
    inputs["A"] *= 0
    assert_defined(inputs, statistics(inputs, "cpu"))


@pytest.mark.parametrize(("impl", "seqlen"), [("torch", 250), ("cpu", 250), ("triton", 104)])
def test_without_decay_equal_weights_are_uniform(impl, seqlen, device):
    dtype = torch.float32 if impl == "triton" else torch.float64
    inputs = rising(seqlen, dtype, growth=0.0)
    inputs["A"] = torch.zeros_like(inputs["A"])
    inputs = {k: t.to(home(impl, device)) for k, t in inputs.items()}
    found = statistics(inputs, impl)
    i = torch.arange(seqlen, dtype=torch.float64, device=found.entropy.device)
    expected = {
        "entropy": torch.log(i + 1),
        "distance": i / 2,
        "top_mass": (5 / (i + 1)).clamp(max=1),
        "span": torch.where(1 / (i + 1) > 0.01, i, 0),
    }
    for name, e in expected.items():
        actual = getattr(found, name).double()
        if name == "span":  # 1 / 100 is the threshold itself
            actual, e = actual[..., i != 99], e[i != 99]
        error = (actual - e).abs().max()
        assert error <= (1e-10 if dtype == torch.float64 else 2e-6) * e.abs().max(), name


@pytest.mark.parametrize("impl", FLOAT64)
def test_equal_steps_give_the_geometric_distribution(impl):
    rate, seqlen = 0.05, 2000
    inputs = rising(seqlen, growth=0.0)
    inputs["A"] = torch.full_like(inputs["A"], -rate / 0.01)
    found = [t[0, 0, -1].item() for t in statistics(inputs, impl)]
    q = math.exp(-rate)  # p_k = (1 - q) q^k, and what is cut off after 2,000 tokens is e^-100
    assert found[0] == pytest.approx(-math.log(1 - q) - q / (1 - q) * math.log(q), abs=1e-10)
    assert found[1] == pytest.approx(q / (1 - q), abs=1e-10)
    assert found[2] == pytest.approx(1 - q**5, abs=1e-10)
    assert found[3] == math.ceil(math.log(0.01 / (1 - q)) / math.log(q)) - 1


@pytest.mark.parametrize("impl", OURS)
def test_strong_decay_sees_only_itself(impl, device):
    """exp(A d) is zero in every precision."""
    inputs = Problem(1, 9, 5, 2).inputs(device=home(impl, device))
    inputs["delta"].add_(1000)
    found = statistics(inputs, impl)
    assert found.entropy.abs().max() == found.distance.abs().max() == found.span.abs().max() == 0
    assert (found.top_mass == 1).all()


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("steps", [1e-6, 30.0, -80.0])
def test_extreme_steps(impl, steps, device):
    """Up to e^-80 after softplus, which as a weight in float32 would be next to nothing."""
    inputs = Problem(1, 13, 6, 3, delta_softplus=steps < 0, has_bias=False).inputs(
        device=home(impl, device)
    )
    inputs["delta"].mul_(0.1).abs_().add_(steps)
    assert_defined(inputs, statistics(inputs, impl))


@pytest.mark.parametrize("impl", [*OURS, "reference"])
def test_rows_without_weight(impl, device):
    """B of one state is zero up to token 3, and everywhere in another; a channel without steps is left out."""
    inputs = Problem(1, 12, 4, 3, delta_softplus=False, has_bias=False).inputs(
        device=home(impl, device)
    )
    inputs["B"][..., 0, :3] = 0
    inputs["B"][..., 1, :] = 0
    inputs["delta"][:, 1, :5] = 0
    found = statistics(inputs, impl)
    assert all(t.isfinite().all() for t in found)
    for t in found:
        assert (t[0, 0, :3] == 0).all()
        assert (t[0, 1] == 0).all()
    assert found.top_mass[0, 0, 3] == found.top_mass[0, 2, 0] == 1
    three = {k: t[:, [0, 2, 3]] if k == "delta" else t for k, t in inputs.items()}
    three["A"] = inputs["A"][[0, 2, 3]]
    for whole, part in zip(found, statistics(three, impl), strict=True):
        assert torch.equal(whole[..., :5], part[..., :5])
        assert impl == "reference" or torch.equal(whole[:, 1], part[:, 1])
    if impl != "reference":
        assert_defined(inputs, found)


@pytest.mark.parametrize("impl", OURS)
def test_weights_that_underflow_still_have_a_distribution(impl, device):
    """After e^-500 the past is zero in float32, and still all that there is."""
    inputs = Problem(1, 30, 4, 2, delta_softplus=False, has_bias=False).inputs(
        device=home(impl, device)
    )
    inputs["B"][..., 10:] = 0
    inputs["delta"][..., 10:] = 25.0
    found = statistics(inputs, impl)
    assert found.top_mass.min() > 0
    for name in ("entropy", "top_mass"):
        t = getattr(found, name)
        assert torch.equal(t[..., 10:], t[..., 9:10].expand(-1, -1, 20))
    later = torch.arange(1, 21, device=found.distance.device)
    assert torch.equal(found.span[..., 10:], (found.span[..., 9:10] + later))


@pytest.mark.parametrize("impl", OURS)
def test_time_may_be_cut_anywhere(impl, device, monkeypatch):
    inputs = Problem(2, 11, 10, 3).inputs(device=home(impl, device))
    whole = statistics(inputs, impl)
    module = {"torch": portable, "cpu": cpu, "triton": forward}[impl]
    monkeypatch.setattr(module, "TOKENS", 4)
    for a, b in zip(whole, statistics(inputs, impl), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("impl", FLOAT64)
def test_channels_may_be_cut_anywhere(impl, monkeypatch):
    inputs = Problem(2, 21, 22, 3, ngroups=2).inputs(torch.float64)
    whole = statistics(inputs, impl)
    monkeypatch.setattr(portable, "LANES", {"cpu": 24})
    monkeypatch.setattr(cpu, "CHANNELS", 4)
    assert_equal_to_1e_10(statistics(inputs, impl), whole)


def test_blocks_of_channels_on_a_gpu_are_small(device, monkeypatch):
    """As launched there: several programs along channels and states, the last of them ragged."""
    inputs = Problem(1, 7, 10, 3, ngroups=2).inputs(device=device)
    monkeypatch.setattr(forward, "_config", lambda *sizes: {"BLOCK_N": 2, "BLOCK_D": 4})
    assert_defined(inputs, statistics(inputs, "triton"))


def test_threads_change_nothing():
    inputs = Problem(1, 20, 200, 3).inputs()
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(statistics(inputs, "cpu"))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("impl", OURS)
def test_the_future_does_not_change_the_past(impl, device):
    inputs = Problem(1, 12, 6, 3).inputs(device=home(impl, device))
    before = statistics(inputs, impl)
    for name in ("delta", "B"):
        changed = inputs[name].clone()
        changed[..., 7] += 1
        after = statistics(inputs | {name: changed}, impl)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a[..., :7], b[..., :7])
        assert not torch.equal(before.entropy[..., 7], after.entropy[..., 7])


@pytest.mark.parametrize("impl", OURS)
def test_strided_views(impl, device):
    inputs = Problem(2, 6, 16, 4).inputs(device=home(impl, device))
    operands = {k: inputs[k] for k in ("delta", "A", "B", "C", "delta_bias")}
    views = {name: torch.stack([t, t + 1], -1)[..., 0] for name, t in operands.items()}
    assert not any(t.is_contiguous() for t in views.values())
    for a, b in zip(statistics(inputs, impl), statistics(inputs | views, impl), strict=True):
        assert torch.equal(a, b)


def test_one_group_needs_no_group_axis():
    inputs = Problem(1, 3, 4, 2).inputs()
    flat = inputs | {"B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(statistics(flat, "cpu").entropy, statistics(inputs, "cpu").entropy)


@pytest.mark.parametrize("name", ["delta", "A", "B"])
@pytest.mark.parametrize("impl", [*OURS, "reference"])
def test_nan_is_seen(impl, name, device):
    inputs = Problem(1, 6, 4, 2).inputs(device=home(impl, device))
    (inputs[name][0] if name == "A" else inputs[name][..., 3]).fill_(float("nan"))
    found = statistics(inputs, impl)
    for t in (found.entropy, found.distance):
        assert t[..., -1].isnan().all()
    if name != "A":
        assert found.entropy[..., :3].isfinite().all()


@pytest.mark.parametrize(
    ("impl", "kernel"),
    [
        ("torch", "torch.scan_statistics"),
        ("cpu", "numba.scan_statistics"),
        ("triton", "triton.scan_statistics"),
        ("reference", "reference.scan_statistics"),
    ],
)
def test_manifest(impl, kernel, device):
    inputs = Problem(1, 2, 4, 2).inputs(device=home(impl, device))
    with recording() as manifest:
        statistics(inputs, impl)
    assert manifest == {"scan_statistics": kernel}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"delta": torch.zeros(1, 4, 0)}, ValueError, "delta must have at least"),
        ({"delta": torch.zeros(1, 4)}, ValueError, "delta must have shape"),
        ({"A": torch.zeros(3, 2)}, ValueError, "A must have shape"),
        ({"B": torch.zeros(1, 3, 2, 5)}, ValueError, "B must have a number of groups"),
        ({"delta_bias": torch.zeros(3)}, ValueError, "delta_bias must have shape"),
        ({"delta_softplus": 1}, TypeError, "delta_softplus must be True or False"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int"),
        ({"span_threshold": 1.0}, ValueError, "span_threshold must lie between"),
        ({"span_threshold": float("nan")}, ValueError, "span_threshold must lie between"),
        ({"level": "head"}, ValueError, "level must be one of state, channel"),
        ({"rows": torch.tensor([1])}, ValueError, "leave them out"),
        ({"level": "channel", "rows": torch.tensor([5])}, ValueError, "rows must be some of 0 to 4"),
        ({"level": "channel", "rows": torch.tensor([1.0])}, TypeError, "rows must be one of int64"),
        ({"level": "channel", "channels": torch.tensor([-1])}, ValueError, "channels must be some"),
        ({"level": "channel", "rows": torch.zeros(0).long()}, ValueError, "got none"),
        ({"impl": "numba"}, ValueError, "impl must be one of"),
    ],
)  # fmt: skip
def test_bad_arguments(changed, error, message):
    inputs = Problem(1, 5, 4, 2).inputs() | {"impl": "torch"} | changed
    with pytest.raises(error, match=message):
        scan_statistics(**inputs)


@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_what_kernels_do_not_take(impl, device):
    inputs = Problem(1, 5, 4, 2).inputs(device=home(impl, device))
    with pytest.raises(
        NotImplementedError, match="level 'channel'; it is computed by impl='torch'"
    ):
        statistics(inputs, impl, level="channel")
    if impl == "triton":
        with pytest.raises(NotImplementedError, match="top_k up to 8, got 9; use impl='torch'"):
            statistics(inputs, impl, top_k=9)
        with pytest.raises(NotImplementedError, match="float64"):
            statistics(widened(inputs), impl)


@pytest.mark.parametrize("impl", [*OURS, "reference"])
def test_parameters_of_a_model(impl, device):
    inputs = Problem(1, 5, 4, 2).inputs(device=home(impl, device))
    expected = statistics(inputs, impl)
    wanted = {k: torch.nn.Parameter(t) for k, t in inputs.items() if torch.is_tensor(t)}
    with torch.no_grad():
        found = statistics(inputs | wanted, impl)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_gradient():
    inputs = Problem(1, 5, 4, 2).inputs()
    inputs["delta"].requires_grad_()
    with pytest.raises(NotImplementedError, match="detach them"):
        statistics(inputs, "torch")


def test_cost_of_a_problem():
    problem = Problem(2, 10, 8, 4)
    assert str(problem) == "b2-l10-d8-n4"
    assert problem.exps() == 160 * (3 * 4 + 3)
    assert problem.flops() == 160 * (29 * 4 + 4)
    assert problem.bytes(torch.float16) == 20 * (12 * 2 + 16 * 4) + 8 * 5 * 4
