"""The candidates of `bench.tune` as machine code, with no GPU: ranked by the clocks that they take at least.

A candidate is compiled as `profiles.static` compiles the defaults. Those of one kernel, dtype and size of problem are
compared; the first of them is the default. They are ranked by their bound per unit of work, those of equal bounds by
issue slots and then by occupancy. What the count does not see (latency, memory, bank conflicts) may turn the order
around on a GPU: it says which candidates are hopeless, and why. Triton's cache on the disk keeps the code, so a
second call takes a fraction of the time.
"""

import functools
import importlib
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.kernels import DTYPES
from bench.records import one_line
from bench.tuning.table import differences
from kernels.tuning import KERNELS
from profiles.static import compile_case, facts, write_record
from profiles.static import row as texts

SIZES = ("HEADDIM", "DSTATE", "WIDTH")  # of a problem, as kernels are compiled for them
COLUMNS = (
    "kernel",
    "bound / default",
    "per",
    "clocks at least",
    "occupancy",
    "registers",
    "spills (in loops)",
    "instead of the default",
)


def listed(target, pattern):
    """([(module, index, name)] of the candidates whose names match, {kernel: why it has none})."""
    found, absent = [], {}
    for kernel, (_, _, module) in KERNELS.items():
        try:
            cases = _cases(module, target)
        except NotImplementedError as error:
            absent[kernel] = str(error)
            continue
        except Exception as error:  # of one module: the others are listed
            absent[kernel] = f"its list of candidates fails: {one_line(error)}"
            continue
        mine = [(i, case) for i, case in enumerate(cases) if case["kernel_name"] == kernel]
        if not mine:
            absent[kernel] = f"no candidates: {module}.static_candidates lists none for {target}"
        found += [(module, i, case["name"]) for i, case in mine if pattern.search(case["name"])]
    return found, absent


@functools.cache
def _cases(module, target):
    try:
        static_candidates = importlib.import_module(module).static_candidates
    except (ModuleNotFoundError, AttributeError) as error:
        raise NotImplementedError(f"no candidates: {error}") from None
    return list(static_candidates(target))


def compile_all(chosen, target, jobs=None):
    """A row for each of `chosen`, as `listed` gives them, compiled in `jobs` processes (one a core if None)."""
    jobs = min(jobs or os.cpu_count(), len(chosen))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        futures = {
            pool.submit(compile_one, module, index, target): i
            for i, (module, index, _) in enumerate(chosen)
        }
        found, steps = {}, as_completed(futures)
        for future in track(steps, "compiling", len(futures), console=Console(stderr=True)):
            i = futures[future]
            try:
                found[i] = future.result()
            except Exception as error:  # the compiler took its process with it
                case = _cases(chosen[i][0], target)[chosen[i][1]]
                found[i] = _head(case) | {"error": one_line(error)}
    return [found[i] for i in range(len(chosen))]


def compile_one(module, index, target):
    """What the table says of one candidate: `facts` of it, or an `error`."""
    case = _cases(module, target)[index]
    try:
        code = compile_case(case, target)
    except Exception as error:  # of Triton's own, of LLVM, of ptxas
        return _head(case) | {"error": one_line(error)}
    return facts(code, case["work"]) | _head(case) | {"loop_spills": loop_spills(code), "error": ""}


def _head(case):
    return {
        "kernel": case["name"],
        "kernel_name": case["kernel_name"],
        "configuration": case["configuration"],
        "group": group(case),
    }


def group(case):
    """What candidates have in common that are compared: the kernel, the words of their names, and the problem's sizes.

    Of a name like `causal_attention_fwd-bf16-d64-m128-w8-descriptors`, numbers and the flags of the configuration tell
    candidates apart; the rest is the part of the operator, the dtype and the layout.
    """
    name = case["name"]
    for flag in case["configuration"]:
        name = name.replace(f"-{flag.lower().replace('_', '-')}", "")
    words = [w for w in name.split("-") if w in DTYPES or not re.fullmatch(r"[a-z]+\d+", w)]
    named = {
        key if isinstance(key, str) else case["kernel"].arg_names[key[0]]: value
        for key, value in case["constexprs"].items()
    }
    sizes = {name: named[name] for name in SIZES if name in named}
    return " ".join(
        [f"{case['kernel_name']}:", *words, *(f"{n.lower()} {v}" for n, v in sizes.items())]
    )


def loop_spills(code):
    """Instructions of innermost loops that move a register to or from local memory."""
    return sum(
        n
        for loop in code.innermost_loops
        for opcode, n in loop.items()
        if opcode in ("LDL", "STL") or "scratch_" in opcode
    )


def ranked(rows):
    """[(default, [rows of its group])]: in the order of the bound, failures last."""
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return [(found[0], sorted(found, key=_rank)) for found in groups.values()]


def _rank(row):
    if row["error"]:
        return (1,)
    held = row["occupancy"]["warps"] if row["occupancy"] else 0
    return 0, bound(row), row["clocks"].get("issue", 0), -held


def bound(row):
    """Clocks of a scheduler per unit of work, at least."""
    return max(row["clocks"].values(), default=0.0)


def cells(default, row):
    """The texts of a line; `default` is the first row of its group."""
    change = differences(default["configuration"], row["configuration"]) or "(the default)"
    if row["error"]:
        return (row["kernel"], "", "", row["error"], "", "", "", change)
    ratio = ""
    if not default["error"] and bound(default):
        ratio = f"{bound(row) / bound(default):.3f}"
    name, registers, spills, _, held, unit, clocks, _ = texts(row)
    spills += f" ({row['loop_spills']})" if row["spills"] else ""
    return (name, ratio, unit, clocks, held, registers, spills, change)


def result_table(groups, title):
    """Rich's table: candidates that spill in a loop or do not compile are red."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for default, rows in groups:
        for row in rows:
            bad = row["error"] or row["loop_spills"]
            table.add_row(*cells(default, row), style="red" if bad else None)
        table.add_section()
    return table


def report(args, pattern, parser):
    """What `profiles.static --candidates` does; returns the exit status."""
    chosen, absent = listed(args.target, pattern)
    console = Console(width=None if sys.stdout.isatty() else 220)
    for kernel, reason in absent.items():
        console.print(f"{kernel}: {reason}", soft_wrap=True)
    if not chosen:
        parser.error(f"--kernel {args.kernel!r} matches none of the candidates")
    rows = compile_all(chosen, args.target, args.jobs)
    groups, title = ranked(rows), f"Candidates compiled for {args.target}"
    console.print(result_table(groups, title))
    if args.out:
        lines = [cells(default, row) for default, found in groups for row in found]
        write_record(args.out, rows, lines, title, COLUMNS, "candidates")
    bad = [row["kernel"] for row in rows if row["error"] or row["loop_spills"]]
    if bad:
        print(f"spills in loops, or no code: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0
