"""What follows from machine code: theoretical occupancy, and the bound of a loop on each unit of a multiprocessor.

A multiprocessor has four schedulers, each with a quarter of its registers, of its exponential unit and of its tensor
cores. Per clock a scheduler issues one instruction of one warp; its exponential unit (MUFU: exp2, log2, reciprocal,
square root) gives 4 results, so a warp of 32 takes 8 clocks; its tensor core does the FLOPs of TENSOR_FLOPS. Shared
memory moves 128 bytes a clock for all four, so a scheduler counts 32 for its own warps: what they load, store, copy in
and shuffle, and the operands that tensor cores read there, which on Hopper are all of B, and A unless it is in
registers. The clocks of a loop on each unit, whatever the order of its instructions, are therefore known from the code:
the largest is the bound, and the loop takes at least that long when all else overlaps.
"""

import re
from dataclasses import dataclass

from profiles.machine_code import EXPONENTIAL, MachineCode

REGISTERS = 65_536  # of a multiprocessor, and what rounds a warp's share up
REGISTER_UNIT = 256
MAX_WARPS = 64
MAX_BLOCKS = 32
RESERVED_SHARED = 1024  # by the system, for each block
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}
MUFU_CLOCKS = 8

# FLOPs a clock of one scheduler's tensor core, dense, from 16-bit operands; a third operand format halves it (tf32)
TENSOR_FLOPS = {"sm_80": 512, "sm_90": 1024, "sm_100": 2048}
# bytes a clock that a scheduler has of shared memory: a quarter of 128, which all four share; sm_100 keeps operands of
# its tensor cores in a memory of their own
SHARED_BYTES_A_CLOCK = {"sm_80": 32, "sm_90": 32}

# What makes an instruction mix readable
UNITS = {
    "exp": EXPONENTIAL,
    "matrix": re.compile(r"HGMMA|HMMA|UTC\w*MMA|v_mfma"),
    "FFMA": re.compile(r"FFMA|v_(pk_)?fma"),
    "FMUL": re.compile(r"FMUL|v_(pk_)?mul_f"),
    "FADD": re.compile(r"FADD|v_(pk_)?add_f"),
    "global": re.compile(r"LDG|STG|LDGSTS|UTMA|global_|buffer_"),
    "shared": re.compile(r"LDS|STS|LDSM|ds_(read|write)"),
    "shuffle": re.compile(r"SHFL|ds_(bpermute|swizzle)|v_permlane|v_mov_b32_dpp"),
    "barrier": re.compile(r"BAR|WARPSYNC|SYNCS|s_barrier"),
}


@dataclass(frozen=True)
class Occupancy:
    """How many warps of a kernel a multiprocessor holds at once, and what stops it from holding more."""

    warps: int
    limit: str

    @property
    def share(self):
        return self.warps / MAX_WARPS


def occupancy(code: MachineCode, warps=None):
    """Theoretical occupancy of a kernel launched with `warps` warps a block; None for a target without a table."""
    warps = warps or code.warps
    if code.target not in SHARED_BYTES or not warps:
        return None
    per_warp = -(-code.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    blocks = {
        "warps": MAX_WARPS // warps,
        # registers are shared out by scheduler, each with a quarter of the warps
        "registers": REGISTERS // 4 // per_warp * 4 // warps,
        "shared memory": SHARED_BYTES[code.target] // (code.shared_bytes + RESERVED_SHARED),
        "blocks": MAX_BLOCKS,
    }
    limit = min(blocks, key=blocks.get)
    return Occupancy(blocks[limit] * warps, limit)


def mix(loop):
    """{unit: instructions} of a loop (a Counter of opcodes); what belongs to none is `other`."""
    found = dict.fromkeys([*UNITS, "other"], 0)
    for opcode, count in loop.items():
        unit = next((name for name, pattern in UNITS.items() if pattern.match(opcode)), "other")
        found[unit] += count
    return found


def clocks(code: MachineCode):
    """{unit: clocks of a scheduler} that one trip of the main loop takes at least; NVIDIA targets only."""
    if code.target not in TENSOR_FLOPS:
        return {}
    found = {
        "issue": code.body.total(),
        "exponential": MUFU_CLOCKS * sum(n for op, n in code.body.items() if EXPONENTIAL.match(op)),
        "tensor core": code.main_loop_flops / TENSOR_FLOPS[code.target],
    }
    if code.target in SHARED_BYTES_A_CLOCK:
        found["shared memory"] = code.shared_traffic / SHARED_BYTES_A_CLOCK[code.target]
    return {unit: count for unit, count in found.items() if count}
