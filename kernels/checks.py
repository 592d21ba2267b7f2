"""Argument checks of the public operators: one clear error before any kernel is launched."""

import sys

import torch

FLOAT_MAX = sys.float_info.max
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
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def check_written(name, tensor):
    """Require a tensor that can be overwritten: an expanded one has several elements in one place."""
    if any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        raise ValueError(
            f"{name} is updated in place and must not be an expanded view, got strides {tensor.stride()}; clone() it"
        )


def check_scale(name, scale):
    """Require a finite number."""
    # a larger int is no float any more
    if not isinstance(scale, (int, float)) or not -FLOAT_MAX <= scale <= FLOAT_MAX:
        raise ValueError(f"{name} must be a finite number, got {scale!r}")


def wants_gradient(*tensors):
    """Whether autograd would record an operation on these tensors; None counts as a tensor without."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_no_gradient(operator, impl, *tensors, remedy="use impl='torch'"):
    """Refuse to cut the graph silently where an implementation has no backward."""
    if wants_gradient(*tensors):
        raise NotImplementedError(
            f"{operator}: impl {impl!r} has no backward; {remedy}, or call it under torch.no_grad()"
        )


def check_cu_seqlens(cu_seqlens, like, tokens):
    """Require the bounds of packed sequences: int32 (n + 1,), from 0 up to `tokens`, never decreasing.

    Values on a GPU are not read, which would wait for the device; kernels stay inside of `tokens` whatever they are.
    """
    if cu_seqlens is None:
        return
    check_tensor("cu_seqlens", cu_seqlens, (None,), like, dtypes=(torch.int32,))
    if len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens must have at least two bounds, got {len(cu_seqlens)}")
    if like.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens needs the sequences packed into a batch of 1, got {like.shape[0]}"
        )
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != tokens or sorted(bounds) != bounds:
            raise ValueError(f"cu_seqlens must rise from 0 to {tokens}, got {bounds}")


def check_statistics(top_k, span_threshold):
    """Require what the operators of statistics take: a positive count, and a weight between 0 and 1."""
    if not isinstance(top_k, int) or isinstance(top_k, bool):
        raise TypeError(f"top_k must be an int, got {type(top_k).__name__}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if not isinstance(span_threshold, (int, float)):
        raise TypeError(f"span_threshold must be a number, got {type(span_threshold).__name__}")
    if not 0 < span_threshold < 1:
        raise ValueError(
            f"span_threshold must lie between 0 and 1, both excluded, got {span_threshold!r}"
        )
