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
