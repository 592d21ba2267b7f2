"""The stages of `bench.gpu_suite` that run models: sweeps, and what is made of them. As those of `stages`."""

import time

from bench import profilers
from bench.availability import fate
from bench.plan import Cell, read_plan
from bench.records import scan
from bench.suite.stages import logged, outcome, python
from kernels.implementations import IMPLEMENTATIONS
from models.architectures import REGISTRY
from models.presets import PAIR

PROFILED_LENGTH = 4096
RAW_PROFILES = (
    "trace.json.gz\ncapture.*\nlog.txt\n"  # what git leaves out: the tables made of them stay
)


def run_sweep(suite, seconds, sweep):
    """A sweep as a run directory; it may take several calls."""
    folder = suite.out / f"sweep-{sweep.name}"
    command = python("bench.sweep", "--out", folder)
    if (folder / "plan.json").exists():
        command += ["--resume", *(["--resume-anyway"] if suite.resume_anyway else [])]
    else:
        command += sweep.arguments()
        command += without_triton(sweep, suite.excluded())
    code, last = logged(command, suite.out / f"sweep-{sweep.name}.log", seconds)
    if not (folder / "plan.json").exists():
        return {"complete": False, "summary": f"did not begin: {last}"}
    plan = read_plan(folder / "plan.json")
    total = len(plan.cells) * plan.rounds
    measured = sum(
        1 for cell, round_ in scan(folder / "records.jsonl") if cell in plan.cells
    )  # unavailable cells have one record for all rounds
    text = (
        f"{measured} records of {len(plan.cells)} cells in {plan.rounds} rounds (at most {total})"
    )
    if code is None:
        return {"complete": False, "summary": f"{text}; out of time: call again with the same --out"}  # fmt: skip
    return {"complete": code == 0, "summary": text if code == 0 else f"{text}; {last}"}


def without_triton(sweep, excluded):
    """The option that leaves `triton` out of a sweep one of whose operators failed the preflight."""
    needed = {operator for arch in sweep.arch.split(",") for operator in REGISTRY[arch].operators}
    needed = {(operator, "forward") for operator in needed}
    if sweep.mode == "train":
        needed |= {(operator, "backward") for operator, _ in needed}
    if sweep.mode == "decode":
        for arch in sweep.arch.split(","):
            needed |= {(operator, "decode") for operator in REGISTRY[arch].decode_operators}
    if not needed & excluded.keys():
        return []
    return ["--impl", ",".join(name for name in sweep.impl.split(",") if name != "triton")]


def run_metrics(suite, seconds, sweep, seqlen=None):
    """Representation metrics of a sweep, shift detection apart."""
    run = suite.out / f"sweep-{sweep}"
    if not (run / "plan.json").exists():
        return {"complete": False, "summary": f"the stage sweep-{sweep} has not run"}
    groups = "hidden,state,attention,context,similarity"
    command = python("analysis.metrics", run, "--groups", groups, "--quiet")
    command += ["--seqlen", str(seqlen)] if seqlen else []
    return outcome(*logged(command, suite.out / "metrics.log", seconds))


def run_profiles(suite, seconds):
    """A capture of every cell of `profile_cells` with torch.profiler, and with Nsight Systems where it works."""
    deadline, folder = time.monotonic() + seconds, suite.out / "profiles"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text(RAW_PROFILES)
    command = python("profiles.capture", "--out", folder, "--missing", "--quiet")
    command += [part for cell in profile_cells(suite.device) for part in ("--cell", cell)]
    found = {"complete": True, "summary": "no profiler"}
    for profiler in ("torch", "nsys"):
        if profilers.find(profiler).reason or not found["complete"]:
            continue
        found = outcome(
            *logged([*command, "--profiler", profiler], suite.out / "profiles.log", deadline - time.monotonic())
        )  # fmt: skip
    return found


def profile_cells(device):
    """Every architecture under every implementation that can run on a device, as profiles.capture takes them."""
    cells = [
        Cell(arch, impl, "paper-50m", PROFILED_LENGTH, dtype="bf16")
        for arch in PAIR
        for impl in IMPLEMENTATIONS
    ]
    return [
        f"{cell.arch}/{cell.impl}/{cell.mode}/{cell.seqlen}/{cell.dtype}"
        for cell in cells
        if fate(cell, device)[0] == "measured"
    ]


def run_long_context(suite, seconds):
    """Long prompts in chunks of both architectures under triton."""
    command = python("bench.long_context", "--impl", "triton", "--dtype", "bf16")
    command += ["--case-timeout", "120", "--out", str(suite.out / "long-context")]
    return outcome(*logged(command, suite.out / "long-context.log", seconds))
