"""Measure every architecture under every implementation, from the same weights on the same tokens.

A run is a directory: plan.json, machine.json, records.jsonl (one line per cell and round, with raw samples), log.txt,
references/ (what outputs are compared with), and what is made from them: tables, figures and report.html. Progress goes
to standard error, the final tables to standard output. Exit status: 0 complete, 2 bad input, 130 interrupted,
1 otherwise.
"""

import shlex
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager

from filelock import FileLock, Timeout
from rich.console import Console

from bench import listing
from bench.availability import fate
from bench.cost import clock_of
from bench.options import given, make_parser, out_directory, resolve, resolved_subset, with_quick
from bench.plan import Cell, PlanError, changed_options, read_plan
from bench.planning import check_machine, create, make_plan
from bench.progress import Watcher
from bench.records import NAME, Appender, RecordError, done, latest, make_record, read_records
from bench.runner import Runner, RunnerError
from kernels.clash import clash

WIDTH_OF_PIPES = 140


def main(argv=None):
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    args = parser.parse_args(argv)
    said = with_quick(given(parser, argv))
    out = Console(width=None if sys.stdout.isatty() else WIDTH_OF_PIPES)
    if wrong := clash():
        parser.error(wrong)
    try:
        if args.list:
            out.print(*listing.choices())
            return 0
        return run(args, said, argv, out)
    except (PlanError, RecordError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(args, said, argv, out):
    """Plan, or read the plan of, a run, and carry it out; returns the exit status."""
    options = resolve(args, said)
    if args.resume:
        path, plan = reopen(said, options)
    else:
        if "retry" in said:
            raise PlanError("--retry: only together with --resume")
        path = vacant(out_directory(said))
        plan, tokens = make_plan(options, shlex.join(["python", "-m", "bench.sweep", *argv]))
    if args.dry_run:
        records = read_records(path / NAME) if args.resume else []
        for part in listing.dry_run(plan, done(records, said.get("retry", ()))):
            out.print(part)
        return 0
    if not args.resume:
        create(path, plan, tokens)
    with locked(path):
        status = carry_out(path, plan, said, args.cell_timeout)
        if status == 0:
            status = represent(path, said.get("metrics", args.metrics))
            status = max(status, conclude(path, out))
        return status


def vacant(path):
    """The path of a new run; PlanError if something is there."""
    if (path / "plan.json").exists():
        raise PlanError(
            f"--out {path}: holds a run already; add --resume to finish it, or choose another"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PlanError(f"--out {path}: exists and is not a run; choose another")
    return path


def reopen(said, options):
    """(path, plan) of the run that --resume names; PlanError if the options ask for something else."""
    if "out" not in said:
        raise PlanError("--resume: name the run with --out DIR")
    path = said["out"]
    if not path.is_dir():
        raise PlanError(f"--resume: there is no run {path}")
    plan = read_plan(path / "plan.json")
    changed = changed_options(plan.options, resolved_subset(options, said))
    if changed:
        name, planned, asked = changed[0]
        raise PlanError(
            f"--{name.replace('_', '-')}: the run {path} was planned with {listing.plain(planned)}, not "
            f"{listing.plain(asked)}; leave the option out, or start another run"
        )
    check_machine(path, plan)
    if "rounds" in said and said["rounds"] > plan.rounds:
        plan.rounds = plan.options["rounds"] = said["rounds"]
    return path, plan


@contextmanager
def locked(path):
    """Hold the run alone; PlanError if another sweep has it."""
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise PlanError(f"--out {path}: another sweep is running in it") from None
    try:
        yield
    finally:
        lock.release()


def carry_out(path, plan, said, cell_timeout):
    """Measure what is left of a plan; returns the exit status."""
    records, retry = read_records(path / NAME), said.get("retry", ())
    finished = done(records, retry)
    plan.write(path / "plan.json")
    appender = Appender(path / NAME)
    measured, proofs = settle(plan, untimed(records, retry), appender)
    proofs = [cell for cell in proofs if (cell, 0) not in finished]
    todo = {r: [c for c in measured if (c, r) not in finished] for r in range(plan.rounds)}
    console = Console(stderr=True)
    clock = clock_of(plan)
    watcher = Watcher(console, clock, todo | {"proof": proofs})
    runner = Runner(path, plan, appender, cell_timeout, watcher)
    try:
        with watcher, interruptible():
            if watcher.left():
                on_cpu = plan.options["device"] == "cpu"
                memory = [c for c in todo[0] if on_cpu and clock.expect(c) < cell_timeout]
                runner.prepare([*measured, *proofs], memory, proofs)
            for round_ in range(plan.rounds):
                runner.round(round_, measured, finished)
    except KeyboardInterrupt:
        resume = shlex.join(["python", "-m", "bench.sweep", "--out", str(path), "--resume"])
        left = f"{watcher.left()} of {watcher.total} measurements left"
        say(console, f"interrupted with {left}; to finish: {resume}")
        return 130
    except RunnerError as error:
        say(console, f"error: {error}")
        return 1
    finally:
        runner.close()
        appender.close()
    return 0


def settle(plan, untimed, appender):
    """(cells to measure, cells to prove): the unavailable ones have their record after this.

    Args:
        untimed: cells that were unavailable or interpreted when the run began; they stay so.
    """
    measured, proofs = [], []
    for order, cell in enumerate(plan.cells):
        kind, reason = fate(cell, plan.options["device"])
        if cell in untimed:
            continue
        if kind == "unavailable":
            appender.append(make_record(cell, 0, order, kind, reason))
        else:
            {"measured": measured, "interpreted": proofs}[kind].append(cell)
    return measured, proofs


def untimed(records, retry):
    """Cells with a record that says that they cannot be timed here, unless its status is to be tried again."""
    kinds = {"unavailable", "interpreted"} - set(retry)
    return {Cell(**record["cell"]) for record in latest(records) if record["status"] in kinds}


def represent(path, extent):
    """Compute the representation metrics of a run, in a process of their own; returns the exit status."""
    if extent == "none":
        return 0
    command = ["python", "-m", "analysis.metrics", str(path), "--extent", extent]
    with interruptible():
        ended = subprocess.run([sys.executable, *command[1:], "--quiet"], check=False).returncode
    if ended == 130:
        raise KeyboardInterrupt
    if ended:
        console = Console(stderr=True)
        say(
            console,
            f"error: metrics are missing; to see why and complete them: {shlex.join(command)}",
        )
    return int(ended != 0)


def conclude(path, out):
    """Write the tables, figures and the report of a complete run, and print the tables."""
    from analysis import summary
    from analysis.report.page import build

    console = Console(stderr=True)
    try:
        for renderable in summary.write(path):
            out.print(renderable)
        report = build([path])
    except Exception as error:
        with (path / "log.txt").open("a") as log:
            traceback.print_exc(file=log)
        say(
            console,
            f"error: the run is complete, its tables or report are not: {error}; see {path / 'log.txt'}",
        )
        return 1
    out.print(f"report: {report}", highlight=False, soft_wrap=True)
    out.print(f"run: {path}", highlight=False)
    return 0


@contextmanager
def interruptible():
    """Make a termination request end the run as Ctrl-C does, so that it stays resumable and says so."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(console, text):
    """One line on standard error."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
