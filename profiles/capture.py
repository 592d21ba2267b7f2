"""Profile named cells: warmed up, their steady state only, each as a folder with the profile and its tables by range.

    python -m profiles.capture --cell mamba/triton/prefill/4096/bf16 --cell llama/torch
    python -m profiles.capture RUN --slowest 3            cells of a run, with its weights and tokens
    python -m profiles.capture RUN --fastest              the fastest of each architecture at the longest length

A cell is arch/impl/mode/seqlen/dtype/launch/bN, and what is left out at the end has its default: of a run its first
mode, dtype, launch and batch and its longest length, else those of python -m bench.sweep. The id of a cell of a run is
taken as well. A profile is never a measurement: what it says of time holds with a profiler attached.

Profilers (python -m bench.doctor says which can run here): nsys, Nsight Systems; torch, torch.profiler, everywhere;
ncu, Nsight Compute, counters of single kernels; proton, Triton's. auto takes nsys where there is a GPU and an nsys that
records the lab's ranges, else torch. Exit status: 0 all captured, 1 some failed, 2 bad input, 130 interrupted.
"""

import argparse
import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from bench import options as sweep
from bench import profilers
from bench.availability import fate
from bench.cli import Parser, positive
from bench.plan import PlanError, read_plan
from bench.planning import make_plan
from bench.records import RecordError, read_run
from kernels.clash import clash
from profiles import choice, timeline
from profiles.nsight import CaptureError
from profiles.session import Session

WIDTH_OF_PIPES = 140
NEEDS = ("device", "threads", "logits", "arch", "mode", "dtype", "launch", "batch", "seqlens")
PASSED = {
    "preset": "sizes of the models", "checkpoint": "ARCH=DIR, weights of one architecture (repeatable)",
    "sessions": "transcripts", "tokenizer": "of the text", "seed": "of weights and sessions", "logits": "last or all",
    "device": "auto, cpu or cuda", "threads": "of CPU kernels",
}  # fmt: skip


def make_parser():
    parser = Parser(
        prog="python -m profiles.capture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", nargs="?", type=Path, metavar="RUN", help="a run of python -m bench.sweep")
    which = parser.add_argument_group("which cells").add_argument
    which("--cell", action="append", default=[], metavar="CELL", help=f"{choice.FORM} (repeatable)")
    which("--slowest", type=positive, metavar="N", help="the N slowest measured cells of RUN")
    which(
        "--fastest",
        action="store_true",
        help="the fastest cell of each architecture of RUN at its longest length",
    )
    which("--missing", action="store_true", help="leave out what was captured already")
    which("--list", action="store_true", help="print what would be captured, and capture nothing")
    how = parser.add_argument_group("how").add_argument
    how(
        "--profiler",
        choices=("auto", "nsys", "torch", "ncu", "proton"),
        default="auto",
        help="(default: auto)",
    )
    how(
        "--reps",
        type=positive,
        metavar="N",
        help="repetitions (default: 5, fewer of a slow cell; 1 under ncu)",
    )
    how(
        "--memory",
        action="store_true",
        help="also what torch's allocator gave out, by range: memory.csv",
    )
    how(
        "--out",
        type=Path,
        metavar="DIR",
        help="(default: RUN/profiles, without a run runs/profiles-<timestamp>)",
    )
    how("--quiet", action="store_true", help="print errors only")
    setting = parser.add_argument_group("without RUN, as in python -m bench.sweep -h").add_argument
    for name, text in PASSED.items():
        setting(
            f"--{name}",
            action="append" if name == "checkpoint" else "store",
            metavar="X",
            help=text,
        )
    return parser  # fmt: skip


def main(argv=None):
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    if wrong := clash():
        parser.error(wrong)
    asked = shlex.join(["python", "-m", "profiles.capture", *argv])
    try:
        plan, tokens, cells = chosen(args, parser)
        profiler = usable(args.profiler, plan.options["device"])
        session = Session(
            run=args.run, plan=plan, tokens=tokens, out=args.out or default_out(args.run), profiler=profiler,
            reps=args.reps or (1 if profiler.name == "ncu" else None), memory=args.memory, asked=asked,
        )  # fmt: skip
        if args.missing:
            cells = [cell for cell in cells if not session.holds(cell)]
        if args.list or not cells:
            show_list(session, cells, args.quiet)
            return 0
        return capture(session, cells, args.quiet)
    except (PlanError, RecordError, CaptureError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def chosen(args, parser):
    """(plan, tokens or None for those of the run, cells) of a command line; PlanError with one line if it is wrong."""
    if not (args.cell or args.slowest or args.fastest):
        raise PlanError(
            f"name cells with --cell {choice.FORM.split(', ')[0]}, or RUN and --slowest N or --fastest"
        )
    if args.run is None:
        if args.slowest or args.fastest:
            option = "--fastest" if args.fastest else f"--slowest {args.slowest}"
            raise PlanError(f"{option}: name the run that it chooses from")
        plan, tokens = own_plan(args, parser)
        cells = plan.cells
    else:
        if said := [name for name in PASSED if getattr(args, name) is not None]:
            raise PlanError(f"--{said[0]}: a run has its own; leave the option or the run out")
        plan, tokens = read_plan(args.run / "plan.json", needs=NEEDS), None
        cells = [choice.find(text, plan.cells, plan.options) for text in args.cell]
        if args.slowest or args.fastest:
            measured = choice.times(read_run(args.run).records)
            cells += choice.slowest(measured, args.slowest) if args.slowest else []
            cells += choice.fastest(measured, plan.options) if args.fastest else []
    for cell in cells:
        check(cell, plan.options["device"])
    return plan, tokens, list(dict.fromkeys(cells))


def own_plan(args, parser):
    """(plan, tokens) of cells without a run: the sweep's, with its options, for these cells only."""
    specs = [choice.parse(text) for text in args.cell]
    sweep_parser = sweep.make_parser("")
    sweep_parser.prog = parser.prog
    argv = []
    for name in PASSED:
        values = getattr(args, name) or []
        for value in [values] if isinstance(values, str) else values:
            argv += [f"--{name}", value]
    defaults = sweep.resolve(sweep_parser.parse_args(argv), {})
    specs = [spec.with_defaults(defaults) for spec in specs]
    argv += factors(specs)
    options = sweep.resolve(sweep_parser.parse_args(argv), sweep.given(sweep_parser, argv))
    plan, tokens = make_plan(options)
    plan.cells = list(dict.fromkeys(spec.cell(plan.preset) for spec in specs))
    return plan, tokens


def factors(specs):
    """The sweep's options whose product holds all cells."""
    argv = []
    for field in fields(choice.Spec):
        values = sorted({getattr(spec, field.name) for spec in specs})
        option = "seqlens" if field.name == "seqlen" else field.name
        argv += [f"--{option}", ",".join(map(str, values))]
    return argv


def check(cell, device):
    """PlanError if a cell cannot be profiled here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise PlanError(f"{cell.id}: its run was made on a GPU, and torch sees none here")
    kind, reason = fate(cell, device)
    if kind != "measured":
        because = "it is unavailable, because " if kind == "unavailable" else ""
        raise PlanError(f"{cell.id}: cannot be profiled here: {because}{reason}")


def usable(name, device):
    """The `bench.profilers.Profiler` of a name; PlanError with the reason if it cannot be used here."""
    if name == "auto":
        found = profilers.nsys() if device == "cuda" else None
        return found if found and not found.reason else profilers.find("torch")
    found = profilers.find(name)
    if found.reason:
        raise PlanError(f"--profiler {name}: unavailable, because {found.reason}")
    if name in ("ncu", "proton") and device == "cpu":
        raise PlanError(
            f"--profiler {name}: unavailable, because it records GPU kernels only, and the cells run on the CPU"
        )
    return found


def default_out(run):
    return run / "profiles" if run else Path("runs") / time.strftime("profiles-%Y-%m-%d-%H%M%S")


def show_list(session, cells, quiet):
    """Print what would be captured."""
    if quiet:
        return
    table = Table(
        title=f"{len(cells)} cells to capture with {session.profiler.name}", title_justify="left"
    )
    for column in ("cell", "folder"):
        table.add_column(column, overflow="fold")
    for cell in cells:
        table.add_row(cell.id, str(session.folder(cell)))
    console().print(table)


def capture(session, cells, quiet):
    """Capture cells and print their timelines; returns the exit status."""
    errors = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=errors, disable=quiet or not errors.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=len(cells))

    def say(cell, text):
        bar.update(task, description=f"{cell.id}: {text}")
        if not quiet and not errors.is_terminal:
            print(f"{cell.id}: {text}", file=sys.stderr)

    failed = 0
    with bar:
        for cell, manifest in session.capture(cells, say):
            bar.advance(task)
            if manifest["status"] == "error":
                failed += 1
                print(f"error: {cell.id}: {manifest['reason']}", file=sys.stderr)
            elif not quiet:
                show(session.folder(cell), manifest)
    return 1 if failed else 0


def show(folder, manifest):
    """Print the timeline of a capture, where its files lie and how to open them."""
    out = console()
    if "timeline" in manifest["files"]:
        from profiles.timeline_tables import show as show_timeline

        found = timeline.read(folder)
        show_timeline(found, list(found.reps))
    files = ", ".join(sorted(manifest["files"].values()))
    for line in (f"{folder}: {files}", OPEN[manifest["profiler"]]):
        out.print(line, highlight=False, soft_wrap=True)


OPEN = {
    "nsys": "to open: nsys-ui capture.nsys-rep",
    "torch": "to open: load trace.json.gz in https://ui.perfetto.dev, which keeps it on this machine",
    "ncu": "to open: ncu-ui capture.ncu-rep",
    "proton": "to open: proton-viewer -m time/ms proton.hatchet",
}


def console():
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_PIPES)


if __name__ == "__main__":
    sys.exit(main())
