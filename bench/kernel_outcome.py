"""What becomes of a contender that fails: a row with its reason, unless it takes the GPU's context down."""

import contextlib
import gc

import torch

from bench.records import one_line
from kernels.implementations import Unavailable


class ContextLost(RuntimeError):
    """A contender left the GPU's context unusable: nothing else runs in this process. `impl` is its name."""

    def __init__(self, impl, reason):
        super().__init__(f"{impl} took the GPU's context down: {reason}")
        self.impl, self.reason = impl, reason


@contextlib.contextmanager
def settling(row, contender, device):
    """What goes wrong with a contender becomes the status of its row; it must not end the table."""
    try:
        yield
    except (Unavailable, NotImplementedError) as error:
        row.update(status="unavailable", reason=" ".join(str(error).split()))
    except ImportError as error:  # a peer whose own dependencies are missing
        status = "unavailable" if contender.module else "error"
        row.update(status=status, reason=" ".join(str(error).split()))
    except torch.OutOfMemoryError as error:
        row.update(status="oom", reason=one_line(error))
    except Exception as error:  # a peer that breaks is a row of the table, not the end of it
        row.update(status="error", reason=one_line(error))
    if row["status"] in ("oom", "error"):
        row["samples_ms"] = []
        _free(row, device)


def _free(row, device):
    """Give memory back; ContextLost if the GPU does not answer any more."""
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise ContextLost(row["impl"], row["reason"]) from error
