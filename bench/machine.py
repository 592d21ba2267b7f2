"""The machine that a run was measured on: hardware, driver, versions, revision, and peaks measured on the spot.

Peaks are measured and not looked up, because tables of datasheet figures rot and boost clocks differ.
"""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil
import torch

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "numpy", "numba", "scipy", "scikit-learn", "nvtx",
    "mamba-ssm", "causal-conv1d", "flash-attn",
)  # fmt: skip


def describe(device="cpu", peaks=True):
    """Everything of `machine.json`: a dict of plain values.

    Args:
        device: the torch device that cells run on.
        peaks: also measure copy bandwidth and matrix rates (about a second).
    """
    device = torch.device(device)
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": describe_gpu(device) if device.type == "cuda" else None,
        "versions": versions(),
        "git": git_state(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "peaks": measure_peaks(device) if peaks else None,
    }


def versions():
    """{package: version} of what decides a result; packages that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["cuda"] = torch.version.cuda
    return found


def describe_gpu(device):
    """Name, UUID, driver, memory and multiprocessors of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    driver = None
    if (nvml := open_nvml()) is not None:
        driver = nvml.nvmlSystemGetDriverVersion()
    return {
        "name": properties.name,
        "uuid": str(properties.uuid),
        "driver": driver,
        "memory_bytes": properties.total_memory,
        "sm_count": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }


def open_nvml():
    """The initialised NVML module, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def nvml_handle(device):
    """NVML's handle of a CUDA device, found by UUID: indices differ under CUDA_VISIBLE_DEVICES."""
    nvml = open_nvml()
    if nvml is None:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return None


def git_state():
    """{"revision", "dirty"} of the lab's own checkout; both None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*args):
        return subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, check=True
        )

    try:
        revision = git("rev-parse", "HEAD").stdout.strip()
        dirty = bool(git("status", "--porcelain").stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "dirty": None}
    return {"revision": revision, "dirty": dirty}


def measure_peaks(device):
    """Copy bandwidth (bytes read plus written a second) and matrix rates (FLOP/s) by dtype, best of several."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    copy = _copy_bandwidth((1 << 28) if on_gpu else (1 << 24), device)
    size = 8192 if on_gpu else 1024
    rates = {}
    for name, dtype, precision in _matrix_dtypes(on_gpu):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            rates[name] = 2 * size**3 / _best_time(lambda a=a, b=b: a @ b, device)
        finally:
            torch.set_float32_matmul_precision(before)
    return {"copy_bytes_per_s": copy, "matmul_flops": rates}


def _copy_bandwidth(elements, device):
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_time(lambda: target.copy_(source), device)


def _matrix_dtypes(on_gpu):
    yield "fp32", torch.float32, "highest"
    if on_gpu:
        yield "tf32", torch.float32, "high"
        yield "bf16", torch.bfloat16, "highest"
        yield "fp16", torch.float16, "highest"


def _best_time(run, device, repeats=7):
    run()
    best = float("inf")
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
