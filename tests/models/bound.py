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


def state(model):
    """Everything that a binding might leave changed."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "parameters": {name: id(parameter) for name, parameter in model.named_parameters()},
        "keys": list(model.state_dict()),
        "configs": {id(vars(module).get("config")) for module in model.modules()},
        "config": model.config.to_dict() | {"attention": model.config._attn_implementation},
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        ],
        "attributes": sorted(vars(model)),
    }


def require(arch, impl, device):
    """Skip the test, with the reason, where `impl` cannot run."""
    for operator in OPERATORS[arch]:
        reason = why_unavailable(impl, operator, device)
        if reason:
            pytest.skip(f"{impl}: {reason}")
