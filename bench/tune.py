"""The Triton kernels' configurations, measured on this GPU: every candidate that a kernel names, on typical problems.

    python -m bench.tune                                       what was not measured yet, for 540 seconds at most
    python -m bench.tune --kernel selective_scan_fwd --dtype bf16 --seconds 120
    python -m bench.tune --write                               and the winners into kernels/configurations/<gpu>.json

Kernels come in the order of their worth (`bench.tuning.problems`). Candidates are compiled ahead in other processes,
checked by the accuracy rule, and raced in random order on a cold L2 cache; the best of them is confirmed against the
default in fresh samples (`bench.tuning.race`). Only what is faster by 1 % and more, with an interval without 1, enters
the table; where nothing is, it says that the default is best. What fails is a row with its reason.

DIR/tune.jsonl keeps every case, synced; a second call measures only what is missing, or what other code measured.
`--write` needs no GPU where a folder has records. The status is 0 when nothing is missing, 4 when the seconds are
spent, and 3 when a candidate took the GPU's context down, or hangs: the next call goes on without it.
"""

import argparse
import contextlib
import faulthandler
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
from rich.console import Console

from bench import kernels as bench_kernels
from bench.cli import Parser, positive, seconds, some
from bench.machine import describe
from bench.records import Appender, now, one_line
from bench.tuning.case import Case, OutOfTime, Stand, candidates, prepare
from bench.tuning.compile_ahead import Compiler
from bench.tuning.problems import ORDER, problems
from bench.tuning.race import KEEP, race
from bench.tuning.records import NAME, code, key_of, of_this_code, read, write_tables
from bench.tuning.table import cells, result_table
from kernels import tuning
from kernels.causal_attention.tiles import generation
from kernels.implementations import interpreted

GRACE_S = 20.0  # after the seconds are spent, whoever still runs hangs
HANG_S = 60.0  # nothing that compiled takes as long to run
TRYING = "trying.json"
UNFINISHED = 4  # exit status
OPERATORS = tuple(dict.fromkeys(operator for operator, _, _ in tuning.KERNELS.values()))


def cases(kernels, dtypes):
    """Every case of `kernels` that can be tuned, the most valuable first, and {kernel: why it cannot be tuned}."""
    found, absent = [], {}
    for kernel in kernels:
        try:
            candidates(kernel)
        except NotImplementedError as error:
            absent[kernel] = str(error)
        else:
            found += [
                Case(kernel, problem, dtype) for problem in problems(kernel) for dtype in dtypes
            ]
    return found, absent


def tune(todo, stand, out, machine, keep=KEEP, say=print):
    """Measure cases one after the other, each with the next one already compiling, and append their records.

    Args:
        todo: list of `Case`, one at least.
        stand: a `bench.tuning.case.Stand`.
        out: the folder of tune.jsonl.
        machine: {"gpu", "git", "versions"} for the records.

    Returns:
        How many cases are left because the time is over.

    Raises:
        RuntimeError: the device is lost, and with it this process.
    """
    with contextlib.closing(Appender(out / NAME)) as appender:
        ended = _ended(out, appender)
        upcoming = _prepared(todo[0], stand)
        for case, following in zip(todo, [*todo[1:], None], strict=True):
            start, prepared = time.monotonic(), upcoming
            upcoming = following and _prepared(following, stand)
            mine = [e for e in ended if (key_of(e), e["code"]) == (case.key, code(case.kernel))]
            failed = [e["configuration"] for e in mine]
            try:
                stand.check_time()
                record = _measure(case, prepared, stand, failed, keep)
            except OutOfTime:
                return len(todo) - todo.index(case)
            record |= machine | {"code": code(case.kernel), "date": now()}
            appender.append(record | {"seconds": time.monotonic() - start})
            say(f"{stand.left():.0f} s left: {' '.join(filter(None, cells(record)))}")
    return 0


def _prepared(case, stand):
    """A `Prepared`, or why there is none."""
    try:
        return prepare(case, stand)
    except Exception as error:  # of one case: the others go on
        return one_line(error)


def _measure(case, prepared, stand, failed, keep):
    """The record of a case; one that cannot be measured has a reason instead of rows."""
    reason = prepared
    if not isinstance(prepared, str):
        try:
            return race(prepared, stand, failed, keep)
        except OutOfTime:
            raise
        except Exception as error:  # of one case: the others go on
            reason = one_line(error)
    if stand.device.type == "cuda":
        torch.cuda.synchronize(stand.device)  # raises if the device is lost
    return case.named | {
        "rows": [], "best": {}, "ratio": None, "default_ms": None, "best_ms": None, "reason": reason,
    }  # fmt: skip


def _ended(out, appender):
    """Candidates in which a process ended: those that the record knows, and the one of the last call."""
    ended, file = read(out)[1], out / TRYING
    if file.exists():
        with contextlib.suppress(json.JSONDecodeError):  # the process ended while it wrote that
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["configuration"] is not None:
                appender.append({"ended": found})
                ended.append(found)
        file.unlink()
    return ended


def watching(out, seconds=HANG_S):
    """`trying` of a Stand: leaves a note of what runs, and ends the process if that takes longer than `seconds`."""
    file = out / TRYING

    def give_up(text):
        print(
            f"the GPU hangs in {text}: call again with the same --out", file=sys.stderr, flush=True
        )
        os._exit(bench_kernels.CONTEXT_LOST)

    @contextlib.contextmanager
    def trying(case, configuration):
        text = json.dumps(case.named | {"configuration": configuration, "code": code(case.kernel)})
        file.write_text(text, encoding="utf-8")
        timer = threading.Timer(seconds, give_up, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        except KeyboardInterrupt:
            file.unlink()  # it did not hang
            raise
        finally:
            timer.cancel()
        file.unlink()

    return trying


def make_parser():
    parser = Parser(
        prog="python -m bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option(
        "--kernel", type=some(ORDER), metavar="LIST", help=f"of {', '.join(ORDER)} (default: all)"
    )
    option(
        "--operator", type=some(OPERATORS), metavar="LIST", help="kernels of these (default: all)"
    )
    option("--dtype", type=some(bench_kernels.DTYPES), default=["bf16", "fp32"], metavar="LIST",
           help="of fp32,bf16,fp16 (default: bf16,fp32)")  # fmt: skip
    option("--seconds", type=seconds, default=540.0, help="time for everything (default: 540)")
    option(
        "--out", type=Path, default=Path("runs/tune"), metavar="DIR", help="(default: runs/tune)"
    )
    option("--keep", type=positive, default=KEEP, metavar="N",
           help=f"candidates that go on to the final (default: {KEEP})")  # fmt: skip
    option("--write", action="store_true", help="write the winners to kernels/configurations/")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    kernels = [
        kernel
        for kernel in ORDER
        if kernel in (args.kernel or ORDER)
        and tuning.KERNELS[kernel][0] in (args.operator or [tuning.KERNELS[kernel][0]])
    ]
    if not kernels:
        parser.error(
            f"--kernel {','.join(args.kernel)}: none is of --operator {','.join(args.operator)}"
        )
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not (args.write and read(args.out)[0]):
        parser.error(
            "there is no CUDA device on this machine: python -m bench.doctor says what can run"
        )
    if on_gpu and interpreted():
        parser.error("TRITON_INTERPRET=1: the interpreter says nothing about time; unset it")
    console = Console(stderr=True)
    status = measure(kernels, args, console) if on_gpu else 0
    records = sorted(of_this_code(read(args.out)[0]), key=lambda r: ORDER.index(r["kernel"]))
    out = Console(width=None if sys.stdout.isatty() else 220)
    out.print(result_table(records))
    for kernel, reason in cases(kernels, args.dtype)[1].items():
        out.print(f"{kernel}: {reason}", soft_wrap=True)
    if stale := len(read(args.out)[0]) - len(records):
        out.print(f"{stale} records of other code in {args.out} do not count.", soft_wrap=True)
    for path in write_tables(records) if args.write else ():
        out.print(f"wrote {path}", soft_wrap=True)
    return status


def current_gpu():
    return torch.device("cuda", torch.cuda.current_device())


def measure(kernels, args, console):
    """Measure what is missing on this GPU; returns the exit status."""
    deadline = time.monotonic() + args.seconds
    device = current_gpu()
    described = describe(device, peaks=False)
    machine = {name: described[name] for name in ("git", "versions")}
    machine["gpu"] = described["gpu"]["name"]
    args.out.mkdir(parents=True, exist_ok=True)
    known = {key_of(r) for r in of_this_code(read(args.out)[0]) if r["gpu"] == machine["gpu"]}
    todo = [case for case in cases(kernels, args.dtype)[0] if case.key not in known]
    if not todo:
        return 0
    faulthandler.dump_traceback_later(args.seconds + GRACE_S, exit=True, file=sys.__stderr__)
    with contextlib.closing(Compiler()) as compiler:
        stand = Stand(
            device=device,
            generation=generation(device),
            clock=bench_kernels.device_clock(device),
            compiler=compiler,
            left=lambda: deadline - time.monotonic(),
            trying=watching(args.out),
        )
        say = functools.partial(console.print, soft_wrap=True)
        try:
            left = tune(todo, stand, args.out, machine, args.keep, say)
        except RuntimeError as error:  # of CUDA: nothing runs in this process any more
            say(f"the GPU's context is lost ({one_line(error)}): call again with the same --out")
            return bench_kernels.CONTEXT_LOST
        finally:
            faulthandler.cancel_dump_traceback_later()
    if left:
        say(f"no time left for {left} of {len(todo)} cases: call again with the same --out")
    return UNFINISHED if left else 0


if __name__ == "__main__":
    sys.exit(main())
