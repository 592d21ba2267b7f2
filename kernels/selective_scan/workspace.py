"""Workspaces of the scan: what is said when there is no memory for one."""

from contextlib import contextmanager

import torch


@contextmanager
def workspace(what, numbers, remedy, itemsize=4, failure=torch.OutOfMemoryError):
    """Allocate `numbers` of `itemsize` bytes inside: running out of memory says for what, how much, and `remedy`.

    failure: what an allocation raises that fails; RuntimeError on a CPU, where torch has no class of its own for it.
    """
    try:
        yield
    except failure as error:
        raise torch.OutOfMemoryError(
            f"selective_scan: no memory for its workspace, {what} ({itemsize * numbers:,} bytes); {remedy}. {error}"
        ) from error
