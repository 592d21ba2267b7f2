"""What the tests of binding share: inputs, outputs, and which implementations can run here."""

import pytest
import torch

from kernels.implementations import why_unavailable
from models.bind import OPERATORS, final_norm

IMPLS = ("torch", "cpu", "triton", "cuda", "reference")  # hf is what they are compared with


def tokens(batch, seqlen, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(32_000, (batch, seqlen), generator=generator).to(device)


def outputs(model, ids, **kwargs):
    """{"hidden": after the final norm, "logits": of every token}, without gradients."""
    kept = {}
    hook = final_norm(model).register_forward_hook(lambda *seen: kept.update(hidden=seen[-1]))
    try:
        with torch.no_grad():
            kept["logits"] = model(ids, use_cache=kwargs.pop("use_cache", False), **kwargs).logits
    finally:
        hook.remove()
    return kept


def require(arch, impl, device):
    """Skip the test, with the reason, where `impl` cannot run."""
    for operator in OPERATORS[arch]:
        reason = why_unavailable(impl, operator, device)
        if reason:
            pytest.skip(f"{impl}: {reason}")
