"""The Triton kernels as machine code, with no GPU: registers, spills, shared memory, instructions of the main loop.

    python -m profiles.static                        every default configuration, for sm_90
    python -m profiles.static --target sm_100 --kernel attention

Each `kernels/*/forward.py` lists its default configurations (`static_cases`). They are compiled for the target
and disassembled with the cuobjdump that Triton brings. An issue slot is one instruction of one warp (32 lanes);
the count per unit of work is that of the largest innermost loop, divided by the work that one trip of it does.
"""

import argparse
import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

OPERATORS = ("selective_scan", "causal_conv1d", "causal_attention")
TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
TENSOR_CORE = ("HGMMA", "HMMA", "QGMMA", "IMMA", "DMMA", "UTCHMMA", "UTCMMA", "UTCQMMA")

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_]*)([^;]*);")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one configuration of one kernel for one target."""

    name: str
    target: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: list = field(repr=False)  # (address, opcode, operands), in order

    @property
    def spills(self):
        """Instructions that move a register to or from local memory."""
        return sum(opcode in ("LDL", "STL") for _, opcode, _ in self.instructions)

    @functools.cached_property
    def main_loop(self):
        """Opcodes of the largest innermost loop: {opcode: count}; empty if the code has no loop."""
        loops = []
        for at, opcode, operands in self.instructions:
            jump = re.search(r"0x([0-9a-f]+)", operands) if opcode == "BRA" else None
            if jump and int(jump.group(1), 16) < at:
                loops.append((int(jump.group(1), 16), at))
        innermost = [
            (start, end)
            for start, end in loops
            if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
        ]
        bodies = [
            Counter(opcode for at, opcode, _ in self.instructions if start <= at <= end)
            for start, end in innermost
        ]
        return max(bodies, key=Counter.total, default=Counter())

    @property
    def tensor_core_instructions(self):
        return sum(n for opcode, n in self.main_loop.items() if opcode in TENSOR_CORE)


def compile_case(case, target="sm_90"):
    """Compile one configuration for a GPU that need not be here.

    Args:
        case: dict with `name`, `kernel` (a `triton.jit` function), `signature` ({argument: type}, a tuple of types
            for a tuple of strides), `constexprs`, `num_warps`, `num_stages`, and optionally `unaligned`: the
            arguments that are not multiples of 16 (all pointers and integers else are, as in a real launch), and
            `targets`: the targets that the configuration is for, if not all.
        target: `sm_80`, `sm_90` or `sm_100`.

    Returns:
        Compiled.
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
    gpu = GPUTarget("cuda", TARGETS[target], 32)
    compiled = triton.compile(source, target=gpu, options=options)
    resources, instructions = _disassemble(compiled.asm["cubin"])
    return Compiled(
        name=case["name"],
        target=target,
        registers=resources["REG"],
        stack_bytes=resources["STACK"],
        shared_bytes=compiled.metadata.shared,
        instructions=instructions,
    )


def _leaves(path, kind):
    if isinstance(kind, tuple):
        for i, inner in enumerate(kind):
            yield from _leaves((*path, i), inner)
    else:
        yield path, kind


def _disassemble(cubin):
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [tool, flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )
    resources = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    instructions = [(int(a, 16), op, rest) for a, op, rest in _INSTRUCTION.findall(sass)]
    return resources, instructions


def all_cases():
    """Every default configuration of every operator."""
    for operator in OPERATORS:
        yield from importlib.import_module(f"kernels.{operator}.forward").static_cases()


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m profiles.static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target", choices=TARGETS, default="sm_90", help="compute capability (default: sm_90)"
    )
    parser.add_argument("--kernel", default="", metavar="REGEX", help="only names that match")
    args = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Triton kernels compiled for {args.target}")
    for column in ("kernel", "registers", "spills", "shared KiB", "main loop", "of which"):
        table.add_column(column, justify="left" if column in ("kernel", "of which") else "right")
    spilled = []
    for case in all_cases():
        meant = args.target in case.get("targets", TARGETS)
        if not meant or not re.search(args.kernel, case["name"]):
            continue
        compiled = compile_case(case, args.target)
        spilled += [compiled.name] if compiled.spills else []
        common = ", ".join(f"{n} {opcode}" for opcode, n in compiled.main_loop.most_common(6))
        table.add_row(
            compiled.name,
            str(compiled.registers),
            str(compiled.spills),
            f"{compiled.shared_bytes / 1024:.0f}",
            str(compiled.main_loop.total()),
            common,
        )
    if not table.row_count:
        parser.error(f"--kernel {args.kernel!r} matches none of the kernels")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if spilled:
        print(f"registers spill in {', '.join(spilled)}", file=sys.stderr)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
