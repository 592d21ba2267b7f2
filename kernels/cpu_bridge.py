"""Between torch and the numba kernels: one number of threads, and arrays over the memory of tensors."""

import numba
import torch


def use_torchs_threads():
    """Let numba kernels run on as many threads as torch does; returns how many.

    Both share OpenMP's setting, and the start of numba's pool overwrites it: torch's number is put back.
    """
    threads = torch.get_num_threads()
    used = min(threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(used)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return used


def flat_array(t):
    """A one-dimensional array over all that `t` spans: numba then knows that neighbours in it are adjacent."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.detach().as_strided((extent,), (1,)).numpy()
