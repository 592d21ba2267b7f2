"""The Triton kernels as machine code, with no GPU: registers, spills, occupancy, instructions of the main loop, bounds.

    python -m profiles.static                                  every default configuration, for sm_90
    python -m profiles.static --target sm_100 --kernel attention
    python -m profiles.static --out DIR                        also writes DIR/static.json and DIR/static.md
    python -m profiles.static --candidates --kernel scan_fwd   what bench.tune would try, ranked
    python -m profiles.static --binary FILE.so --kernel REGEX  somebody else's kernels, by the same rule

The operators list their default configurations (`static_cases` in `forward.py`, `backward.py` and `decode.py`). They
are compiled for the target and disassembled with the cuobjdump that Triton brings. The main loop is the largest
innermost one (with tensor cores, the one without masks), or all of a kernel without loops. Its instructions are issue
slots (one instruction of one warp), given per 32 units of the work that a trip does, beside the clocks of a scheduler
that they take at least: on issuing, on the exponential unit, on the tensor core. The largest is the bound
(profiles/limits.py says how). A binary does not tell how much work a trip does: there the counts are those of a trip.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import re
import sys
from pathlib import Path

from bench.cli import Parser, positive
from profiles.limits import clocks, mix, occupancy
from profiles.machine_code import MachineCode, read_amd, read_binary, read_cubin

OPERATORS = (
    "selective_scan",
    "causal_conv1d",
    "causal_attention",
    "attention_statistics",
    "scan_statistics",
    "ssd_scan",
)
STAGES = ("forward", "backward", "decode")
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


def compile_case(case, target="sm_90"):
    """Compile one configuration for a GPU that need not be here.

    Args:
        case: dict with `name`, `kernel` (a `triton.jit` function), `signature` ({argument: type}, a tuple of types
            for a tuple of strides), `constexprs`, `num_warps`, `num_stages`, and optionally `unaligned`: the
            arguments that are not multiples of 16 (all pointers and integers else are, as in a real launch), and
            `targets`: the targets that the configuration is for, if not all, and `main`: as in MachineCode.
        target: a key of TARGETS.

    Returns:
        MachineCode.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("compiling needs TRITON_INTERPRET unset before the kernels are imported")
    unaligned = case.get("unaligned", ())
    attrs = {}
    for i, (name, kind) in enumerate(case["signature"].items()):
        for path, leaf in _leaves((i,), kind):
            if leaf != "constexpr" and name not in unaligned and not leaf.startswith("fp"):
                attrs[path] = [["tt.divisibility", 16]]
    source = ASTSource(case["kernel"], case["signature"], case["constexprs"], attrs)
    options = {"num_warps": case["num_warps"], "num_stages": case.get("num_stages", 3)}
    options |= {"maxnreg": case["maxnreg"]} if "maxnreg" in case else {}
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    fields = {"shared_bytes": compiled.metadata.shared, "warps": case["num_warps"]}
    fields |= {"main": case.get("main")}
    if "cubin" in compiled.asm:
        return read_cubin(compiled.asm["cubin"], case["name"], target, **fields)
    return read_amd(compiled.asm["amdgcn"], case["name"], target, **fields)


def _leaves(path, kind):
    if isinstance(kind, tuple):
        for i, inner in enumerate(kind):
            yield from _leaves((*path, i), inner)
    else:
        yield path, kind


def all_cases(target, operators=OPERATORS):
    """Every default configuration of every operator that is meant for `target`."""
    for operator in operators:
        for stage in STAGES:
            module = f"kernels.{operator}.{stage}"
            if importlib.util.find_spec(module):
                for case in importlib.import_module(module).static_cases():
                    if target in case.get("targets", TARGETS):
                        yield case


def facts(code: MachineCode, work=None):
    """What the table says of one kernel, as plain values.

    work: {what: how many} that one trip of the main loop does, for the whole block; their product are the units.
    """
    per_warp = math.prod(work.values()) / code.warps / 32 if work else 1.0
    found = occupancy(code)
    loop = {unit: n / per_warp for unit, n in mix(code.body).items() if n}
    if code.float_atomics:
        loop["float atomics (whole kernel)"] = code.float_atomics
    bounds = {unit: n / per_warp for unit, n in clocks(code).items()}
    return {
        "kernel": code.name,
        "target": code.target,
        "registers": code.registers,
        "spills": code.spills,
        "stack_bytes": code.stack_bytes,
        "shared_bytes": code.shared_bytes,
        "float_atomics": code.float_atomics,
        "warps": code.warps,
        "occupancy": found and {"warps": found.warps, "share": found.share, "limit": found.limit},
        "unit": f"32 {' x '.join(work)}" if work else "a trip of the loop",
        "loop": loop,
        "clocks": bounds,
        "bound": max(bounds, key=bounds.get, default=None),
    }


COLUMNS = (
    "kernel",
    "registers",
    "spills",
    "shared KiB",
    "occupancy",
    "per",
    "clocks at least",
    "instructions",
)
NUMBERS = ("registers", "spills", "shared KiB")


def row(found):
    """One line of the table, a text a column."""
    held = found["occupancy"]
    bounds = sorted(found["clocks"].items(), key=lambda item: -item[1])
    return (
        found["kernel"],
        str(found["registers"]),
        str(found["spills"]),
        f"{found['shared_bytes'] / 1024:.0f}",
        f"{held['warps']} warps ({held['limit']})" if held else "",
        found["unit"],
        ", ".join(f"{unit} {n:.3g}" for unit, n in bounds),
        ", ".join(f"{unit} {n:.3g}" for unit, n in found["loop"].items()),
    )


def write_record(out, rows, lines, title, columns=COLUMNS, name="static"):
    """`name`.json (rows, versions, revision) and `name`.md: `lines` of the table, a text a column."""
    import triton

    from bench.machine import git_state

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    made = {"triton": triton.__version__, "git": git_state()}
    (out / f"{name}.json").write_text(json.dumps(made | {"rows": rows}, indent=1) + "\n")
    revision = made["git"]["revision"]
    text = [
        f"# {title}",
        "",
        f"triton {made['triton']}, revision {revision}. No GPU was involved.",
        "",
    ]
    text += [f"| {' | '.join(columns)} |"]
    text += [f"|{'|'.join('---:' if column in NUMBERS else '---' for column in columns)}|"]
    text += [f"| {' | '.join(line)} |" for line in lines]
    (out / f"{name}.md").write_text("\n".join(text) + "\n")


def make_parser():
    parser = Parser(
        prog="python -m profiles.static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target", choices=TARGETS, default="sm_90", help="what to compile for (default: sm_90)"
    )
    parser.add_argument(
        "--kernel",
        default="",
        metavar="REGEX",
        help="only names that match (in a binary: mangled names)",
    )
    parser.add_argument("--binary", metavar="FILE.so", help="count the kernels of a shared object")
    parser.add_argument(
        "--candidates", action="store_true", help="the configurations that bench.tune would try"
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="processes for --candidates (default: one a core)",
    )
    parser.add_argument("--out", metavar="DIR", help="also write static.json and static.md there")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        pattern = re.compile(args.kernel)
    except re.error as error:
        parser.error(f"--kernel {args.kernel!r} is no regular expression: {error}")
    if args.binary and not Path(args.binary).is_file():
        parser.error(f"--binary {args.binary}: there is no such file")

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    if args.candidates:
        from profiles import candidates

        return candidates.report(args, pattern, parser)
    if args.binary:
        title = f"Kernels of {Path(args.binary).name}"
        try:
            found = [facts(code) for code in read_binary(args.binary, args.kernel)]
        except ValueError as error:
            parser.error(f"--binary: {error}")
    else:
        title = f"Triton kernels compiled for {args.target}"
        cases = [case for case in all_cases(args.target) if pattern.search(case["name"])]
        steps = track(cases, "compiling", console=Console(stderr=True))
        found = [facts(compile_case(case, args.target), case["work"]) for case in steps]
    if not found:
        parser.error(f"--kernel {args.kernel!r} matches none of the kernels")
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_row(*row(one))
    Console(width=None if sys.stdout.isatty() else 220).print(table)
    if args.out:
        write_record(args.out, found, map(row, found), title)
    spilled = [one["kernel"] for one in found if one["spills"]]
    if spilled and not args.binary:
        print(f"registers spill in {', '.join(spilled)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
