"""Which profilers are here, whether they can record the lab's named ranges, and how to get those that cannot.

nsys     NVIDIA Nsight Systems: ranges, launches and GPU work on one time axis
torch    torch.profiler: the same ranges on every machine, with the operators of the CPU
ncu      NVIDIA Nsight Compute: counters of single kernels
proton   Triton's profiler: GPU time by range, with little overhead
"""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass

GET_NSYS = (
    "install NVIDIA Nsight Systems: on Debian `apt-get install nsight-systems` with the components contrib and "
    "non-free, elsewhere NVIDIA's installer; or take --profiler torch, which needs nothing"
)
GET_NCU = "install NVIDIA Nsight Compute, which comes with the CUDA toolkit"
QUIRK = "does not find its own importer; profiles.capture calls it (QdstrmImporter) itself"
LAST_BLIND_YEAR = (
    2022  # Nsight Systems of this year records nothing of an nvtx of the version below or newer
)
FIRST_UNSEEN_NVTX = (0, 2, 12)


@dataclass(frozen=True)
class Profiler:
    """One profiler on this machine.

    Attributes:
        version: empty if it is not installed.
        reason: why it cannot be used here, with the remedy; empty if it can.
        note: what else there is to know.
    """

    name: str
    version: str
    reason: str = ""
    note: str = ""


def profilers():
    """All four, in the order of the list above."""
    return [nsys(), torch_profiler(), ncu(), proton()]


def find(name):
    """The `Profiler` of a name: nsys, torch, ncu or proton."""
    return {"nsys": nsys, "torch": torch_profiler, "ncu": ncu, "proton": proton}[name]()


def nsys():
    """Nsight Systems, and whether it will see the ranges of this nvtx."""
    version = _answer("nsys")
    if version is None:
        return Profiler("nsys", "", f"nsys is not on the PATH: {GET_NSYS}")
    year = re.search(r"\b(20\d\d)\.\d", version)
    if not year:
        return Profiler("nsys", "", f"nsys --version says {version!r}: {GET_NSYS}")
    nvtx = version_of("nvtx")
    if nvtx is None:
        reason = "the package nvtx is not installed (pip install nvtx==0.2.10)"
        return Profiler("nsys", version, reason)
    is_old = int(year.group(1)) <= LAST_BLIND_YEAR
    if is_old and tuple(map(int, re.findall(r"\d+", nvtx)[:3])) >= FIRST_UNSEEN_NVTX:
        return Profiler(
            "nsys", version, f"this Nsight records no range of nvtx {nvtx}: pip install nvtx==0.2.10, or a newer Nsight"
        )  # fmt: skip
    return Profiler("nsys", version, note=QUIRK if is_old else "")


def torch_profiler():
    """torch.profiler, a part of torch."""
    version = version_of("torch")
    if version is None:
        return Profiler("torch", "", "torch is not installed: make venv")
    return Profiler("torch", version, note="part of torch; opens in ui.perfetto.dev")


def ncu():
    """Nsight Compute."""
    version = _answer("ncu")
    if version is None:
        return Profiler("ncu", "", f"ncu is not on the PATH: {GET_NCU}")
    return Profiler("ncu", version, "" if _has_gpu() else "there is no GPU")


def proton():
    """Triton's profiler."""
    if importlib.util.find_spec("triton") is None:
        return Profiler("proton", "", "triton is not installed (pip install triton)")
    reason = "" if _has_gpu() else "proton records GPU kernels only, and there is no GPU"
    return Profiler("proton", version_of("triton"), reason)


def version_of(distribution):
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_gpu():
    if version_of("torch") is None:
        return False
    import torch  # slow, and bench.doctor must also work without it

    return torch.cuda.is_available()


def _answer(program):
    """The last line of what `program --version` says; None if there is no such program."""
    path = shutil.which(program)
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[-1] if lines else "nothing"
