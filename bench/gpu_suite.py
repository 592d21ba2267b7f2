"""Everything that needs a GPU, in calls of limited time: parity, configurations, operators against peers, models.

    python -m bench.gpu_suite --out DIR                      everything once, at sizes of a quick look
    python -m bench.gpu_suite --plan scan --out DIR          the scan and the convolution, until a limit is named
    python -m bench.gpu_suite --plan attention --out DIR     attention and its statistics
    python -m bench.gpu_suite --plan answer --out DIR        the sweeps of the models
    python -m bench.gpu_suite --out DIR --page               make the page and pictures of DIR again, with no GPU

A plan is a list of stages in the order of their worth (`--list` prints it). A stage that DIR holds complete is not run
again, and one that was out of time goes on where it stopped: call again with the same DIR. A version of the kernels
has a DIR of its own. First comes a preflight of seconds: an operator whose Triton kernel fails it is left out of the
stages after it, with its reason.

Where only a few small files come back from a machine, --pack keeps them in another folder, up to date after every
stage, and on the next, bare machine --previous makes DIR of them again:

    python -m bench.gpu_suite --plan scan --out runs/gpu --pack $OUT
    python -m bench.gpu_suite --plan scan --out runs/gpu --pack $OUT --previous FILES-THAT-CAME-BACK

DIR/suite.json has the machine and the outcome of every stage, DIR/suite.md tells version, idea, predicted, measured.
Commit what is worth it under profiles/records/<machine>/, and configurations-<gpu>.json as
kernels/configurations/<gpu>.json; DIR/profiles/.gitignore leaves the raw traces out.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.cli import Parser, one, seconds
from bench.kernel_rows import known_peaks, make_folder
from bench.machine import describe, digest_of
from bench.records import one_line
from bench.suite import page
from bench.suite.pack import pack, unpack
from bench.suite.plans import PLANS
from bench.suite.stages import Suite
from kernels.tuning import FOLDER

NO_TIME = "no time left: call again with the same --out"


def main(argv=None):
    parser = Parser(
        prog="python -m bench.gpu_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--plan", type=one(PLANS), default="all", metavar="NAME",
           help=f"{', '.join(PLANS)} (default: all)")  # fmt: skip
    option("--out", type=Path, metavar="DIR", help="where the results go")
    option(
        "--stages",
        metavar="LIST",
        help="only these, of any plan, in this order (default: the plan's)",
    )
    option("--seconds", type=seconds, default=540.0, help="time for everything (default: 540)")
    option(
        "--pack", type=Path, metavar="DIR", help="keep the results there too, as a few small files"
    )
    option(
        "--previous",
        type=Path,
        metavar="DIR",
        help="begin with what --pack kept in an earlier call",
    )
    option("--resume-anyway", action="store_true",
           help="go on though code or versions changed; reports of sweeps say so")  # fmt: skip
    option("--page", action="store_true", help="only write suite.md and the pictures again")
    option("--list", action="store_true", help="print the stages of the plan")
    args = parser.parse_args(argv)
    if args.list:
        Console().print(list_of(PLANS[args.plan]))
        return 0
    if args.out is None:
        parser.error("--out: name a folder for the results")
    known = {stage.name: stage for plan in PLANS.values() for stage in plan}
    stages = PLANS[args.plan]
    if args.stages:
        for name in args.stages.split(","):
            if name not in known:
                parser.error(f"--stages takes {', '.join(known)}, got {name!r}")
        stages = [known[name] for name in args.stages.split(",")]
    if (
        args.previous
        and not (args.out / "suite.json").exists()
        and not unpack(args.previous, args.out)
    ):
        parser.error(f"--previous {args.previous}: there is no suite.tar.gz in it")
    if args.page:
        if not (args.out / "suite.json").exists():
            parser.error(
                f"--out {args.out}: holds no suite.json, so there is nothing to make a page of"
            )
        page.draw(args.out)
        page.write(args.out, read(args.out))
        return 0
    if not torch.cuda.is_available():
        parser.error(
            "there is no CUDA device on this machine: python -m bench.doctor says what can run"
        )
    for name in ("out", "pack"):
        if folder := getattr(args, name):
            make_folder(parser, f"--{name}", folder)
    code = kernels_code()
    before = read(args.out).get("kernels", code)
    if before != code and not args.resume_anyway:
        parser.error(
            f"--out {args.out}: it was measured with other kernels ({before[:7]}, here {code[:7]}); "
            "choose another folder for this version, or add --resume-anyway"
        )
    suite = Suite(args.out, torch.device("cuda"), args.resume_anyway)
    return run_suite(suite, stages, args.seconds, args.pack)


def list_of(stages):
    """A table of the stages of a plan."""
    table = Table("stage", "seconds at most")
    for stage in stages:
        table.add_row(stage.name, str(stage.seconds))
    return table


def read(out):
    """The suite.json of a folder, or that of one which has nothing yet."""
    file = Path(out) / "suite.json"
    if not file.exists():
        return {"machine": None, "stages": {}, "failed": {}}
    return json.loads(file.read_text(encoding="utf-8"))


def run_suite(suite, stages, seconds, target=None):
    """Run what is missing of `stages`, each followed by a write of the record; 1 if anything is left or failed.

    Args:
        target: where `pack` keeps the results after every stage, or None.
    """
    console = Console(stderr=True)
    suite.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    install_configurations(suite.out)
    result = read(suite.out)
    result["machine"], result["kernels"] = machine_of(suite), kernels_code()
    done = lambda stage: result["stages"].get(stage.name, {}).get("complete")
    for is_second in (False, True):  # who was out of its share goes on where others left some
        for stage in stages:
            left = deadline - time.monotonic()
            failed = is_second and result["stages"].get(stage.name, {}).get("passed") is False
            if not done(stage) and not failed and left >= stage.least:
                console.print(f"{stage.name}: {left:.0f} s left")
                run_stage(suite, stage, left if is_second else min(left, stage.seconds), result)
                console.print(f"  {result['stages'][stage.name]['summary']}", highlight=False)
                keep(suite.out, result, target, console)
    result["failed"] = {s.name: NO_TIME for s in stages if s.name not in result["stages"]}
    page.draw(suite.out)
    keep(suite.out, result, target, console)
    for stage in stages:
        if not done(stage):
            reason = result["failed"].get(stage.name) or result["stages"][stage.name]["summary"]
            console.print(f"{stage.name} is not complete: {reason}", highlight=False)
    passed = [result["stages"].get(stage.name, {}).get("passed") is not False for stage in stages]
    return 0 if all(map(done, stages)) and all(passed) else 1


def run_stage(suite, stage, seconds, result):
    """Run a stage and note what came of it; whatever goes wrong in it is no reason to leave out the next."""
    start = time.monotonic()
    try:
        found = stage.run(suite, seconds)
    except Exception as error:
        found = {"complete": False, "passed": False, "summary": f"failed: {one_line(error)}"}
    before = result["stages"].get(stage.name, {}).get("seconds", 0.0)
    result["stages"][stage.name] = found | {"seconds": round(before + time.monotonic() - start, 1)}


def kernels_code():
    """SHA-256 of the code of kernels; a table of configurations is no code, since a suite measures one."""
    return digest_of("kernels", ("*.py",))


def machine_of(suite):
    """The machine, with peaks that are measured once for a folder."""
    machine = describe(suite.device, peaks=False)
    machine["peaks"] = known_peaks(suite.out / "kernels", suite.device)
    if suite.device.type == "cuda":
        torch.cuda.empty_cache()  # what is measured from now on is measured in other processes
    return machine


def install_configurations(out):
    """Put the configurations that an earlier call measured where kernels look for them, unless some are there."""
    for path in Path(out).glob("configurations-*.json"):
        place = FOLDER / path.name.removeprefix("configurations-")
        if not place.exists():
            FOLDER.mkdir(exist_ok=True)
            shutil.copy(path, place)


def keep(out, result, target, console):
    """Write the record, and pack it."""
    page.write(out, result)
    if target is not None:
        for sentence in pack(out, target):
            console.print(sentence, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
