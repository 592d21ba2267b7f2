"""`torch.compile(fullgraph=True)` of a bound model: no graph break, the same numbers, gradients too."""

import pytest
import torch

from models.bind import architecture, use
from tests.models.bound import require, tokens

# traces everything and generates no code: what breaks a graph breaks it here
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss(model, ids):
    return model(ids, labels=ids, use_cache=False).loss


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton", "cuda"])
def test_forward(model, impl, device):
    require(architecture(model), impl, device)
    ids = tokens(2, 19, device)
    with use(model, impl), torch.no_grad():
        expected = loss(model, ids)
        compiled = torch.compile(loss, fullgraph=True, backend=BACKEND)
        assert torch.equal(compiled(model, ids), expected)


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
def test_gradients(model, impl, device):
    require(architecture(model), impl, device)
    ids = tokens(1, 19, device)
    gradients = lambda: {name: p.grad for name, p in model.named_parameters()}
    with use(model, impl):
        loss(model, ids).backward()
        expected = gradients()
        model.zero_grad()
        torch.compile(loss, fullgraph=True, backend=BACKEND)(model, ids).backward()
        found = gradients()
    for name, gradient in found.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, expected[name])
