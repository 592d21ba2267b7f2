"""One rule for every kernel: it may err at most twice as much as PyTorch does in the same dtype."""

import torch

from kernels.accuracy import errors


def assert_as_accurate(name, actual, baseline, gold, slack=2.0):
    """Bound the error of `actual` by that of `baseline`, both measured against `gold`, in two norms.

    Args:
        actual: kernel output.
        baseline: reference output in the same dtype, from the same inputs.
        gold: reference output in float64, from the same (already rounded) inputs.
        slack: 2 for outputs, 3 for gradients (a longer chain).
    """
    assert actual.shape == gold.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(gold.shape)}"
    assert actual.dtype == baseline.dtype, f"{name}: {actual.dtype} != {baseline.dtype}"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    for norm, (error, allowed) in errors(actual, baseline, gold, slack).items():
        assert error <= allowed, f"{name}: {norm} error {error:.2e} > {allowed:.2e}"
