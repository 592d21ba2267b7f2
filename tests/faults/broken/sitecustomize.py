"""With this folder on PYTHONPATH, real workers get a scan that returns NaN (`torch`) and one that eats memory (cpu)."""

import resource
import sys
from pathlib import Path


def undefined(scan):
    def broken(*args, **kwargs):
        found = scan(*args, **kwargs)
        (found[0] if isinstance(found, tuple) else found).fill_(float("nan"))
        return found

    return broken


def greedy(*args, **kwargs):
    """Asks torch for more memory than the process may have."""
    import torch

    eaten = []
    while True:
        eaten.append(torch.empty(1 << 26))


if "bench.worker" in sys.orig_argv:
    from kernels.selective_scan import cpu, portable

    portable.selective_scan_torch = undefined(portable.selective_scan_torch)
    cpu.selective_scan_cpu = greedy
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (2 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
