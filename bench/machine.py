"""The machine that a run was measured on: hardware, driver, versions, revision, and peaks measured on the spot.

Peaks are measured and not looked up, because tables of datasheet figures rot and boost clocks differ.
"""

import contextlib
import hashlib
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
CODE = ("kernels", "models", "bench")  # folders that a measurement depends on
PEAK_SECONDS = 0.3  # of sampling for each peak


def describe(device="cpu", peaks=True):
    """Everything of `machine.json`: a dict of plain values.

    Args:
        device: the torch device that cells run on.
        peaks: also measure the rates of `measure_peaks` (a second or two).
    """
    device = torch.device(device)
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": wait_policy(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": describe_gpu(device) if device.type == "cuda" else None,
        "versions": versions(),
        "git": git_state(),
        "code": code_state(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "peaks": measure_peaks(device) if peaks else None,
    }


def wait_policy():
    """What idle OpenMP threads of a worker do, if the user does not say: sleep.

    Spinning, they take the cores from numba's threads and from other processes.
    """
    return os.environ.get("OMP_WAIT_POLICY", "PASSIVE")


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


def code_state():
    """{folder: SHA-256 of the files that decide what is measured and how}: what git calls dirty may be a text."""
    return {folder: digest_of(folder) for folder in CODE}


def digest_of(folder, kinds=("*.py", "*.json")):
    """SHA-256 of the names and contents of the files of a folder of the lab."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted(f for kind in kinds for f in (root / folder).rglob(kind)):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def measure_peaks(device):
    """The rates that `kernels.roofline` divides work by, each the best of many samples.

    On a CPU, the matrix rate is that of one thread times the number of threads: where anything else runs, threads
    that wait for each other measure the scheduler (a tenth of the rate, or less). Cores that slow each other down do
    less, so it is an upper bound. Copy bandwidth is shared, so all threads copy.

    Returns:
        {"copy_bytes_per_s": bytes read plus written, "matmul_flops": {dtype: FLOP/s}, "exp_per_s": results of the
        exponential unit, float32; None on a CPU, which has none: there an exponential is a polynomial}.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "copy_bytes_per_s": _copy_bandwidth((1 << 28) if on_gpu else (1 << 24), device),
        "matmul_flops": {
            name: _matrix_rate(dtype, precision, device)
            for name, dtype, precision in _matrix_dtypes(on_gpu)
        },
        "exp_per_s": _exp_rate(device) if on_gpu else None,
    }


def _copy_bandwidth(elements, device):
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_time(lambda: target.copy_(source), device)


def _matrix_rate(dtype, precision, device):
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with _one_thread() as threads:
            seconds = _best_time(lambda: a @ b, device)
    finally:
        torch.set_float32_matmul_precision(before)
    return (1 if device.type == "cuda" else threads) * 2 * size**3 / seconds


def _exp_rate(device):
    from bench.exp_rate import STEPS, chain, full_machine

    out = full_machine(device)
    return out.numel() * STEPS / _best_time(lambda: chain(out, STEPS), device)


@contextlib.contextmanager
def _one_thread():
    """Torch computes on one thread of the CPU; yields how many it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _matrix_dtypes(on_gpu):
    yield "fp32", torch.float32, "highest"
    if on_gpu:
        yield "tf32", torch.float32, "high"
        yield "bf16", torch.bfloat16, "highest"
        yield "fp16", torch.float16, "highest"


def _best_time(run, device):
    """The shortest of many runs, in seconds: on a machine that others use as well, few come through undisturbed."""
    run()
    best, deadline = float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < deadline:
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cpu_name():
    """The name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
