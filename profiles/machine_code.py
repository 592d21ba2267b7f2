"""Machine code as text, NVIDIA's and AMD's: instructions, loops, registers, spills."""

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TENSOR_CORE = ("HGMMA", "HMMA", "QGMMA", "IMMA", "DMMA", "UTCHMMA", "UTCMMA", "UTCQMMA")
EXPONENTIAL = re.compile(r"MUFU|v_(exp|log|rcp|rsq|sqrt)_")
MATRIX_AMD = "v_mfma"

_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_]*)([^;]*);")
_AMD_LABEL = re.compile(r"^(\.LBB\d+_\d+):")
_AMD_INSTRUCTION = re.compile(
    r"^\s+([vs]_\w+|ds_\w+|buffer_\w+|global_\w+|scratch_\w+|flat_\w+)\b(.*)"
)


@dataclass(frozen=True)
class MachineCode:
    """One kernel as compiled for one target.

    Attributes:
        name, target: of the configuration, or of the function in a binary; `sm_90`, `gfx942`, …
        registers: vector registers of a thread.
        stack_bytes, shared_bytes: of a thread, and static of a block.
        warps: of a block; None where the code does not tell (a binary's launch decides).
        instructions: (address, opcode, operands), in order.
        spills: instructions that move a register to or from local memory.
        main: an opcode that only the main loop holds, where its size does not tell it.
    """

    name: str
    target: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: list = field(repr=False)
    warps: int | None = None
    main: str | None = None

    @property
    def spills(self):
        return sum(
            opcode in ("LDL", "STL") or "scratch_" in opcode for _, opcode, _ in self.instructions
        )

    @functools.cached_property
    def innermost_loops(self):
        """Opcodes of every innermost loop, in order of address: [Counter]; an unrolled body counts whole."""
        found = self._loops()
        inner = [
            (start, end)
            for start, end in found
            if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in found)
        ]
        return [
            Counter(opcode for at, opcode, _ in self.instructions if start <= at <= end)
            for start, end in sorted(inner)
        ]

    @property
    def main_loop(self):
        """{opcode: count} of the largest innermost loop; empty if the code has no loop.

        With tensor-core instructions, the smallest of the loops that have most of them: it is the one without masks.
        """
        if named := [loop for loop in self.innermost_loops if self.main and loop[self.main]]:
            return max(named, key=Counter.total)
        matrix = max(map(_matrix, self.innermost_loops), default=0)
        if matrix:
            loops = [loop for loop in self.innermost_loops if _matrix(loop) == matrix]
            return min(loops, key=Counter.total)
        return max(self.innermost_loops, key=Counter.total, default=Counter())

    @property
    def body(self):
        """Where the work is: the main loop, or all of a kernel that has no loop."""
        return self.main_loop or Counter(opcode for _, opcode, _ in self.instructions)

    @property
    def tensor_core_instructions(self):
        return _matrix(self.main_loop)

    @property
    def float_atomics(self):
        """Atomic sums of floating-point numbers: their order, and so the result, differs between runs."""
        return sum(
            opcode.startswith(("RED", "ATOM")) and re.search(r"\.F(16|32|64)", operands) is not None
            for _, opcode, operands in self.instructions
        )

    @functools.cached_property
    def body_instructions(self):
        """(address, opcode, operands) of what `body` counts."""
        for start, end in self._loops():
            loop = [i for i in self.instructions if start <= i[0] <= end]
            if Counter(opcode for _, opcode, _ in loop) == self.main_loop:
                return loop
        return self.instructions

    @property
    def main_loop_flops(self):
        """FLOPs of one warp in the tensor-core instructions of `body` (NVIDIA only).

        Those in tf32 count twice, since they run at half the rate of 16-bit ones.
        """
        return sum(_mma_flops(opcode, operands) for _, opcode, operands in self.body_instructions)

    @property
    def shared_traffic(self):
        """Bytes that one warp moves into, out of or through shared memory in `body` (NVIDIA up to Hopper).

        Without what bank conflicts repeat, and without the copies of TMA: no thread issues those byte by byte.
        """
        return sum(
            _shared_bytes(opcode, operands) for _, opcode, operands in self.body_instructions
        )

    def _loops(self):
        """(first address, last address) of every backward jump."""
        loops = []
        for at, opcode, operands in self.instructions:
            is_jump = opcode == "BRA" or opcode.startswith(("s_cbranch", "s_branch"))
            to = re.search(r"0x([0-9a-f]+)", operands) if is_jump else None
            if to and int(to.group(1), 16) < at:
                loops.append((int(to.group(1), 16), at))
        return loops


def _matrix(loop):
    return sum(n for op, n in loop.items() if op in TENSOR_CORE or op.startswith(MATRIX_AMD))


def _mma_sizes(operands):
    """(m, n, k): .64x128x16 on Hopper; .16816 and .1688 before: 16 x 8 x (16 or 8)."""
    sizes = re.match(r"\.(\d+)x(\d+)x(\d+)|\.(16)(8)(\d+)\b", operands)
    return tuple(int(size) for size in sizes.groups() if size) if sizes else (0, 0, 0)


def _mma_flops(opcode, operands):
    """FLOPs of one warp in a tensor-core instruction; on Hopper a warp does a quarter of its group's."""
    if opcode not in ("HMMA", "HGMMA"):
        return 0
    m, n, k = _mma_sizes(operands)
    flops = 2 * m * n * k // (4 if opcode == "HGMMA" else 1)
    return 2 * flops if "TF32" in operands else flops


def _shared_bytes(opcode, operands):
    """Bytes of shared memory for one warp of an instruction: 32 lanes of 4 bytes where it does not say more."""
    if opcode == "HGMMA":
        # the group reads n rows of 32 bytes (its k in any format), and its own m too if they are not in registers
        m, n, _ = _mma_sizes(operands)
        first = re.search(r"R\d+, (\w+)", operands)
        return 32 * (n + m * (first is not None and first.group(1) == "gdesc")) // 4
    size = operands.split(" ")[0]
    if opcode in ("LDSM", "STSM"):
        tiles = re.search(r"M\w*\.([24])\b", size)
        return 128 * (int(tiles.group(1)) if tiles else 1)
    if opcode in ("LDS", "STS", "LDGSTS", "SHFL"):
        bits = re.search(r"\.(64|128)\b", size)
        return 4 * int(bits.group(1)) if bits else 128
    return 0


def read_cubin(cubin, name, target, **fields):
    """MachineCode of the one kernel in a cubin (bytes)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = _cuobjdump("-res-usage", file.name), _cuobjdump("-sass", file.name)
    return _from_text(name, target, usage, sass, **fields)


def read_binary(path, pattern):
    """MachineCode of every kernel in a shared object whose (mangled) name matches the regular expression."""
    usage = _cuobjdump("-res-usage", str(path))
    for part in usage.split("Fatbin elf code")[1:]:
        target = re.search(r"arch = (\w+)", part)
        for name, line in re.findall(r"Function (\S+):\s*\n(.*)", part):
            if target and re.search(pattern, name):
                sass = _cuobjdump("-sass", "-arch", target.group(1), "-fun", name, str(path))
                yield _from_text(name, target.group(1), line, sass)


def _from_text(name, target, usage, sass, **fields):
    resources = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    fields = {"shared_bytes": resources.get("SHARED", 0)} | fields
    return MachineCode(
        name=name,
        target=target,
        registers=resources["REG"],
        stack_bytes=resources["STACK"],
        instructions=[(int(a, 16), op, rest) for a, op, rest in _SASS.findall(sass)],
        **fields,
    )


def _cuobjdump(*arguments):
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"cuobjdump cannot read {arguments[-1]}: {done.stderr.strip().splitlines()[-1]}"
        )
    return done.stdout


def read_amd(text, name, target, **fields):
    """MachineCode of the one kernel in AMD's assembly; addresses count instructions."""
    labels, instructions = {}, []
    for line in text.splitlines():
        if label := _AMD_LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif found := _AMD_INSTRUCTION.match(line):
            instructions.append((len(instructions), *found.groups()))
    to_address = lambda rest: re.sub(
        r"\.LBB\d+_\d+", lambda m: hex(labels.get(m.group(), len(instructions))), rest
    )
    metadata = {key: int(n) for key, n in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.M)}
    return MachineCode(
        name=name,
        target=target,
        registers=metadata["vgpr_count"],
        stack_bytes=metadata["private_segment_fixed_size"],
        instructions=[(at, op, to_address(rest)) for at, op, rest in instructions],
        **fields,
    )
