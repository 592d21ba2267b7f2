"""The one accuracy rule of the lab, used by the tests and by the parity gate of the sweep.

    error(kernel) <= slack * (error(baseline) + eps(float32) * norm(gold))        in largest and in RMS error

gold is the definition in float64, baseline the PyTorch reference in the dtype of the kernel, all three from
the same, already rounded, inputs. slack is 2 for outputs and 3 for gradients. Ancestry: FlashAttention's tests
(twice PyTorch's own error), with the floor at float32 because kernels accumulate in float32.
"""

import torch

FLOOR = torch.finfo(torch.float32).eps


def errors(actual, baseline, gold, slack=2.0):
    """{"max": (error, allowed), "rms": (error, allowed)}; a NaN or infinity in `actual` gives error inf."""
    gold = gold.double()
    found = {}
    for name, norm in (("max", _max), ("rms", _rms)):
        error = norm(actual.double() - gold)
        allowed = slack * (norm(baseline.double() - gold) + FLOOR * norm(gold))
        found[name] = (error if error == error else float("inf"), allowed)
    return found


def _max(t):
    return t.abs().max().item() if t.numel() else 0.0


def _rms(t):
    return t.square().mean().sqrt().item() if t.numel() else 0.0
