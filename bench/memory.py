"""Numbers of memory, weights apart, and what each of them holds.

- `weights`: bytes of the model's parameters and buffers, shared storage once.
- `cache`: bytes that a decoded token finds: the KV cache or the recurrent and convolution states; null in other modes.
- `peak_allocated`: the most bytes held through torch's allocator in one forward (in training, forward and backward
  with their gradients), weights and cache included. On CUDA `max_memory_allocated` after a reset, with no other model
  on the device, in every round; on a CPU weights and cache plus the highest running sum of the allocator's events in
  one forward, measured once, before the rounds.
- `peak_reserved`: what torch had taken from the CUDA driver at its peak; null on a CPU.
- `device_used`: bytes in use on the whole device by NVML after the forward, other processes included.
- `peak_rss` (CPU): the largest resident size of the whole process in one forward, interpreter and libraries included.
"""

import gc
import json
from pathlib import Path

import psutil
import torch
from torch.autograd.profiler import profile

PEAKS = "references/memory.json"
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def weight_bytes(model):
    """Bytes of parameters and buffers; a tied head counts once."""
    return storage_bytes([*model.parameters(), *model.buffers()])


def storage_bytes(tensors):
    """Bytes of the memory behind tensors; what they share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def free_bytes(device):
    """Bytes that are free on a device, or in the memory of the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def allocator_peak(forward):
    """The highest running sum of bytes that one `forward` on the CPU takes from torch's allocator.

    Recording costs microseconds per operation, so the forward is an extra one and never timed.
    """
    gc.collect()
    with profile(use_kineto=True, profile_memory=True) as recorded:
        forward()
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    return running_peak(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))


def read_peaks(run):
    """{cell id: bytes} of the allocator peaks that were measured in a run."""
    path = Path(run) / PEAKS
    return json.loads(path.read_text()) if path.exists() else {}


def write_peaks(run, peaks):
    """Write the file that `read_peaks` reads, whole, old or new."""
    part = (Path(run) / PEAKS).with_suffix(".part")
    part.write_text(json.dumps(peaks, indent=1) + "\n")
    part.replace(Path(run) / PEAKS)


def running_peak(changes):
    """The largest prefix sum of a sequence of signed sizes, at least 0."""
    held = peak = 0
    for change in changes:
        held += change
        peak = max(peak, held)
    return peak


def reset_peak_rss():
    """Start a new peak of the resident size; False where the system does not permit it."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_rss():
    """The peak resident size in bytes since the last reset, or None."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class CudaPeak:
    """Peaks of torch's CUDA allocator between `start` and `read`."""

    def start(self):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def read(self):
        torch.cuda.synchronize()
        return {
            "peak_allocated": torch.cuda.max_memory_allocated(),
            "peak_reserved": torch.cuda.max_memory_reserved(),
        }


def memory_record(
    weights, peak_allocated=None, peak_reserved=None, device_used=None, peak_rss=None, cache=None
):
    """The field `memory_bytes` of a record; None is what could not be measured."""
    return {
        "weights": weights,
        "cache": cache,
        "peak_allocated": peak_allocated,
        "peak_reserved": peak_reserved,
        "device_used": device_used,
        "peak_rss": peak_rss,
    }


def is_out_of_memory(error):
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate" in message
        or "DefaultCPUAllocator: not enough memory" in message
        or "CUDA error: out of memory" in message
    )
