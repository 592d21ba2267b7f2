"""Argument checks of the public operators: one clear error before any kernel is launched."""

import math

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(name, tensor, shape, like, dtypes=FLOATS):
    """Require a tensor of `shape` (None for a free size) on the device of `like`, in one of `dtypes`."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    free = ["any" if size is None else str(size) for size in shape]
    wrong = len(tensor.shape) != len(shape) or any(
        want is not None and have != want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if wrong:
        raise ValueError(f"{name} must have shape ({', '.join(free)}), got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        takes = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be one of {takes}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")


def check_scale(name, scale):
    """Require a finite number."""
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"{name} must be a finite number, got {scale!r}")


def check_no_gradient(operator, impl, *tensors):
    """Refuse to cut the graph silently where an implementation has no backward."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if wanted:
        raise NotImplementedError(
            f"{operator}: impl {impl!r} has no backward yet; use impl='torch', or call it under torch.no_grad()"
        )
