"""A Triton kernel that does nothing but exponentials: it measures the rate of a GPU's exponential unit.

Every element runs a chain x <- 2^-x in a register. Eight independent chains a thread and 2,048 threads a
multiprocessor hide the unit's latency, and the loop has no other work that it could wait for. A chain tends to
0.641, so no step meets an overflow, and its end is stored, so no step can be left out.
"""

import torch
import triton
import triton.language as tl

BLOCK = 2048  # elements of a program
OPTIONS = {"num_warps": 8, "num_stages": 1}
PROGRAMS_PER_SM = 8  # of 256 threads: all that a multiprocessor holds, in one wave
STEPS = 8192  # about 4 ms at 16 results a clock and multiprocessor


@triton.jit
def chain_kernel(out_ptr, steps, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (offsets % 1024).to(tl.float32) / 1024
    for _ in range(steps):
        x = tl.exp2(-x)
    tl.store(out_ptr + offsets, x)


def chain(out, steps):
    """Ends of `out.numel()` chains of `steps` exponentials each; `out` is float32, a multiple of BLOCK long."""
    chain_kernel[(out.numel() // BLOCK,)](out, steps, BLOCK=BLOCK, **OPTIONS)
    return out


def full_machine(device):
    """An uninitialised `out` for `chain` with as many elements as the device works on at once."""
    programs = PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
    return torch.empty(programs * BLOCK, device=device)


def static_cases():
    """The kernel as `profiles.static.compile_case` takes it."""
    yield {
        "name": "exp_rate_chain",
        "kernel": chain_kernel,
        "signature": {"out_ptr": "*fp32", "steps": "i32", "BLOCK": "constexpr"},
        "constexprs": {"BLOCK": BLOCK},
        **OPTIONS,
    }
