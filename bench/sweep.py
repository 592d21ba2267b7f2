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
import time
import traceback
from contextlib import closing, contextmanager, nullcontext

from filelock import FileLock, Timeout
from rich.console import Console

from bench import listing
from bench.availability import fate
from bench.blocks import whereabouts
from bench.cost import clock_of, sweep_seconds
from bench.engines.choice import check_engine, engine_words, make_engine
from bench.engines.parts import harvest
from bench.options import given, make_parser, out_directory, resolve, with_quick
from bench.plan import PlanError
from bench.planning import create, make_plan
from bench.progress import Watcher, duration
from bench.records import (
    NAME,
    Appender,
    RecordError,
    done,
    make_record,
    scan,
    stream_records,
    untimed,
)
from bench.resuming import note_changes, read_machine, reopen, resume_command, stopped
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
    check_engine(args, said)
    if args.resume:
        path, plan = reopen(said, options)
    else:
        for name in ("retry", "resume_anyway"):
            if name in said:
                raise PlanError(f"--{name.replace('_', '-')}: only together with --resume")
        path = vacant(out_directory(said))
        plan, tokens = make_plan(options, shlex.join(["python", "-m", "bench.sweep", *argv]))
    metrics, profiler = (
        said.get(name, "none" if plan.options.get("slice") else getattr(args, name))
        for name in ("metrics", "profile")
    )
    if args.dry_run:
        last = scan(path / NAME) if args.resume else {}
        finished = done(last, said.get("retry", ()))
        for part in listing.dry_run(plan, finished, metrics, profiler):
            out.print(part)
        return 0
    if not args.resume:
        create(path, plan, tokens)
    try:
        with locked(path):
            started = time.monotonic()
            expected = estimate(path, plan, metrics, profiler, said)
            if args.resume:
                note_changes(path, plan)
                harvest(path)
            with closing(make_engine(args, path, plan)) as engine:
                status = carry_out(path, plan, said, args.cell_timeout, engine)
            if status == 0:
                status = conclude(path, out, metrics, profiler, args.report)
                tell_time(path, time.monotonic() - started, expected)
            return status
    except OSError as error:
        say(Console(stderr=True), stopped(error, path))
        return 1


def vacant(path):
    """The path of a new run; PlanError if something is there."""
    if (path / "plan.json").exists():
        raise PlanError(
            f"--out {path}: holds a run already; add --resume to finish it, or choose another"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PlanError(f"--out {path}: exists and is not a run; choose another")
    return path


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


def carry_out(path, plan, said, cell_timeout, engine):
    """Measure what is left of a plan; returns the exit status."""
    last, retry = scan(path / NAME), said.get("retry", ())
    where, behind = whereabouts(stream_records(path / NAME))
    finished = done(last, retry) - behind
    plan.write(path / "plan.json")
    appender = Appender(path / NAME)
    measured, proofs = settle(plan, untimed(last, retry), appender)
    proofs = [cell for cell in proofs if (cell, 0) not in finished]
    todo = {r: [c for c in measured if (c, r) not in finished] for r in range(plan.rounds)}
    console = Console(stderr=True)
    peaks = read_machine(path).get("peaks")
    clock = clock_of(plan, peaks)
    watcher = Watcher(console, clock, todo | {"proof": proofs}, engine.splits)
    runner = Runner(path, plan, appender, cell_timeout, watcher, engine)
    try:
        with watcher, interruptible():
            if watcher.left():
                on_cpu = plan.options["device"] == "cpu"
                memory = [c for c in todo[0] if on_cpu and clock.expect(c) < cell_timeout]
                runner.prepare([*measured, *proofs], memory, proofs)
            runner.measure(measured, finished, where)
    except KeyboardInterrupt:
        left = f"{watcher.left()} of {watcher.total} measurements left"
        again = f"{resume_command(path)} {engine_words(said)}".strip()
        say(console, f"interrupted with {left}; to finish: {again}")
        return 130
    except RunnerError as error:
        say(console, f"error: {error}")
        return 1
    finally:
        runner.close()
        appender.close()
    return 0


def estimate(path, plan, metrics, profiler, said):
    """Seconds that the sweep is expected to take, noted in the options of the plan as well."""
    finished = done(scan(path / NAME), said.get("retry", ()))
    peaks = read_machine(path).get("peaks")
    parts = sweep_seconds(plan, clock_of(plan, peaks), metrics, profiler, finished, peaks)
    expected = sum(parts.values()) - parts["start"]  # which is over
    plan.options["estimate_s"] = round(expected, 1)
    return expected


def tell_time(path, seconds, expected):
    """Say how long a sweep took and what was expected, in log.txt too."""
    took = f"took {duration(seconds)}, estimated {duration(expected)}"
    with (path / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"[crossover] {time.strftime('%H:%M:%S')} {took}\n")
    say(Console(stderr=True), took)


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


def conclude(path, out, metrics, profiler, page):
    """Make what follows the records of a complete run, and print the tables; returns the exit status."""
    status = represent(path, metrics)
    with profiling(path, profiler) as profiled:  # the tables do without it
        status = max(status, tabulate(path, out))
    status = max(status, *profiled, report(path, out) if page == "page" else 0)
    out.print(f"run: {path}", highlight=False)
    return status


def represent(path, extent):
    """Compute the representation metrics of a run, in a process of their own; returns the exit status."""
    if extent == "none":
        return 0
    command = ["python", "-m", "analysis.metrics", str(path), "--extent", extent]
    with aside(command, "metrics are missing; to see why and complete them") as ended:
        pass
    return ended[0]


def profiling(path, profiler):
    """Profile the fastest cell of each architecture, in a process of its own, as `aside` does."""
    if profiler == "none":
        return nullcontext([0])
    command = ["python", "-m", "profiles.capture", str(path), "--fastest", "--missing"]
    return aside(
        [*command, "--profiler", profiler], "profiles are missing; to see why and complete them"
    )


@contextmanager
def aside(command, failure):
    """Run a command of the lab, quietly, in a process of its own beside the body; the list it gives gets 0 or 1."""
    ended = []
    with interruptible(), subprocess.Popen([sys.executable, *command[1:], "--quiet"]) as process:
        try:
            yield ended
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        say(Console(stderr=True), f"error: {failure}: {shlex.join(command)}")
    ended.append(int(code != 0))


def tabulate(path, out):
    """Write the tables and figures of a complete run, and print the tables; returns the exit status."""
    from analysis import sliced, summary

    with told(path, "tables") as failed:
        for renderable in [*summary.write(path), *sliced.write(path)]:
            out.print(renderable)
    return len(failed)


def report(path, out):
    """Write the report of a complete run; returns the exit status."""
    from analysis.report.page import build

    with told(path, "report") as failed:
        page = build([path])
        out.print(f"report: {page}", highlight=False, soft_wrap=True)
    return len(failed)


@contextmanager
def told(path, what):
    """Say on one line, and in log.txt in full, why `what` of a run cannot be made; the list it gives gets the error."""
    failed = []
    try:
        yield failed
    except Exception as error:
        with (path / "log.txt").open("a") as log:
            traceback.print_exc(file=log)
        failed.append(error)
        found = f"error: the run is complete, its {what} cannot be made: {error}; see {path / 'log.txt'}"
        say(Console(stderr=True), found)


@contextmanager
def interruptible():
    """Make the first Ctrl-C or termination request end the run so that it stays resumable; further ones change nothing.

    They stay ignored until the process ends: a second Ctrl-C must not stop the worker from being ended.
    """

    def interrupt(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            for each, handler in before.items():
                signal.signal(each, handler)


def say(console, text):
    """One line on standard error."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
