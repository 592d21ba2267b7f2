"""Heads that the copy engine of Hopper and later moves by itself (TMA), described inside of a kernel.

A description is 128 bytes in global memory, which Triton asks of an allocator, for each program that makes one.
"""

import contextvars

import torch
import triton
import triton.language as tl


@triton.jit
def describe(ptr, strides, tokens, HEADDIM: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr):
    """One head from token 0 on, to be moved ROWS tokens at a time, a piece wide; beyond its end there are zeros."""
    return tl.make_tensor_descriptor(ptr, [tokens, HEADDIM], [strides[2], 1], [ROWS, PIECE])


def describable(t):
    """Whether the engine can move (batch, heads, tokens, headdim): whole rows, each at a multiple of 16 bytes."""
    steps = [stride * t.element_size() for stride in t.stride()[:3]]
    aligned = all(step % 16 == 0 for step in [t.data_ptr(), *steps])
    return aligned and t.stride(3) == 1 and t.stride(2) > 0


def launch_with_descriptors(device, launch):
    """Call `launch()`, whose kernels make descriptors; the allocator is unset behind it, whoever set one before."""

    def run():
        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device)
        )
        launch()

    contextvars.copy_context().run(run)
