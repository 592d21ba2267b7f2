import pytest
import torch
from torch import nn

from profiles import ranges


@pytest.fixture
def recorded(monkeypatch):
    """Ranges are on, and what NVTX would be told is collected instead."""
    import nvtx

    events = []

    class Range:
        def __init__(self, message, domain, category, payload):
            self.message = message
            events.append(("made", message, domain, category, payload))

        def __enter__(self):
            events.append(("push", self.message))

        def __exit__(self, *exception):
            events.append(("pop", self.message))

    monkeypatch.setattr(ranges, "enabled", True)
    monkeypatch.setattr(nvtx, "annotate", Range)
    return events


def test_nothing_is_made_without_a_profiler(monkeypatch):
    monkeypatch.setattr(ranges, "enabled", False)
    assert ranges.annotate("op/a") is ranges.annotate("layer/1", payload=3)
    layer = nn.Linear(2, 2)
    assert ranges.annotate_layers([layer]) == []
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_category_is_the_part_before_the_slash(recorded):
    with ranges.annotate("op/selective_scan", payload=512):
        pass
    with ranges.annotate("rep"):
        pass
    assert recorded[0] == ("made", "op/selective_scan", "crossover", "op", 512)
    assert recorded[1:3] == [("push", "op/selective_scan"), ("pop", "op/selective_scan")]
    assert recorded[3] == ("made", "rep", "crossover", "rep", None)


def test_real_nvtx_takes_our_arguments(monkeypatch):
    monkeypatch.setattr(ranges, "enabled", True)
    with ranges.annotate("cell/mamba-torch-512", payload=512), ranges.annotate("rep"):
        pass


def test_layers_are_numbered_and_can_be_unmarked(recorded):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    handles = ranges.annotate_layers(model)
    model(torch.ones(1, 2))
    assert [event for event in recorded if event[0] != "made"] == [
        ("push", "layer/0"), ("pop", "layer/0"), ("push", "layer/1"), ("pop", "layer/1"),
    ]  # fmt: skip
    recorded.clear()
    for handle in handles:
        handle.remove()
    model(torch.ones(1, 2))
    assert recorded == []


def test_a_layer_that_raises_ends_its_range(recorded):
    layer = nn.Linear(2, 2)
    ranges.annotate_layers([layer])
    with pytest.raises(RuntimeError):
        layer(torch.ones(1, 3))
    assert [event[0] for event in recorded] == ["made", "push", "pop"]
    layer(torch.ones(1, 2))
    assert [event[0] for event in recorded[3:]] == ["made", "push", "pop"]


@pytest.mark.parametrize("enabled", [False, True])
def test_invisible_to_torch_compile(enabled, recorded, monkeypatch):
    monkeypatch.setattr(ranges, "enabled", enabled)

    def scaled(x):
        with ranges.annotate("op/scale", payload=x.shape[0]):
            return 2 * x

    x = torch.arange(5.0)
    # fullgraph: a graph break would be an error
    assert torch.equal(torch.compile(scaled, fullgraph=True, backend="eager")(x), 2 * x)
    assert recorded == []


def test_nothing_is_made_while_torch_compile_traces(recorded, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with ranges.annotate("op/scale"):
        assert recorded == []


def recorded_ranges(profile):
    """(start, end, name) of the ranges of a torch profile, in order of their start."""
    events = profile.profiler.kineto_results.events()
    return sorted((e.start_ns(), e.end_ns(), e.name()) for e in events if e.is_user_annotation())


def cpu_profile():
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def test_under_torchs_profiler_ranges_have_the_same_names_and_nest():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with (
        cpu_profile() as profile,
        ranges.record_with("torch", model),
        ranges.annotate("cell/a", payload=3),
        ranges.annotate("rep", category="cell"),
    ):
        model(torch.ones(1, 2))
    cell, rep, first, second = recorded_ranges(profile)
    assert [found[2] for found in (cell, rep, first, second)] == [
        "cell/a", "rep", "layer/0", "layer/1",
    ]  # fmt: skip
    assert cell[0] <= rep[0] <= first[0] <= first[1] <= second[0] <= second[1] <= rep[1] <= cell[1]


def test_torchs_profiler_sees_nothing_while_ranges_are_off(monkeypatch):
    monkeypatch.setattr(ranges, "enabled", False)
    with cpu_profile() as profile, ranges.annotate("cell/a"):
        torch.ones(1)
    assert recorded_ranges(profile) == []


def test_what_was_attached_before_is_attached_again(monkeypatch):
    monkeypatch.setattr(ranges, "enabled", True)
    monkeypatch.setattr(ranges, "recorder", "nvtx")
    model = nn.Sequential(nn.Linear(2, 2))
    with ranges.record_with("torch", model):
        assert ranges.recorder == "torch"
        assert model[0]._forward_hooks
        with ranges.record_with(None):
            assert ranges.annotate("rep") is ranges.annotate("op/a")
    assert not model[0]._forward_hooks
    assert ranges.recorder == "nvtx"
    with pytest.raises(RuntimeError), ranges.record_with("torch", model):
        raise RuntimeError
    assert (ranges.enabled, ranges.recorder) == (True, "nvtx")
    assert not model[0]._forward_hooks


def test_an_unknown_recorder_is_named():
    with pytest.raises(ValueError, match="got 'perf'"), ranges.record_with("perf"):
        pass


@pytest.mark.parametrize("chosen", ["torch", "proton"])
def test_other_recorders_are_invisible_to_torch_compile(chosen):
    def scaled(x):
        with ranges.annotate("op/scale", payload=x.shape[0]):
            return 2 * x

    x = torch.arange(5.0)
    with ranges.record_with(chosen), cpu_profile() as profile:
        compiled = torch.compile(scaled, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), 2 * x)
    assert "op/scale" not in [name for _, _, name in recorded_ranges(profile)]


def test_gradients_have_ranges_of_their_own(recorded, device):
    import kernels

    q, k, v = (torch.randn(1, 1, 4, 8, device=device, requires_grad=True) for _ in range(3))
    kernels.causal_attention(q, k, v, impl="triton").sum().backward()
    x, weight = torch.randn(1, 2, 5, requires_grad=True), torch.randn(2, 3)
    kernels.causal_conv1d(x, weight, impl="cpu").sum().backward()
    u, delta = (torch.rand(1, 2, 5, requires_grad=True) for _ in range(2))
    A, B, C = -torch.rand(2, 3), torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    kernels.selective_scan(u, delta, A, B, C, impl="cpu").sum().backward()
    pushed = [event[1] for event in recorded if event[0] == "push"]
    for operator in ("causal_attention", "causal_conv1d", "selective_scan"):
        assert pushed.count(f"op/{operator}") == pushed.count(f"op/{operator}.backward") == 1
