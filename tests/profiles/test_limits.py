"""Occupancy and bounds, on cases that a hand can compute."""

from collections import Counter

import pytest

from profiles.limits import clocks, mix, occupancy
from profiles.machine_code import MachineCode


def code(registers=32, shared=0, warps=4, target="sm_90", instructions=()):
    return MachineCode("x", target, registers, 0, shared, list(instructions), warps)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected", "limit"),
    [
        (32, 0, 4, 64, "warps"),
        (64, 0, 8, 32, "registers"),  # 65,536 / (64 * 256) = 4 blocks
        (208, 0, 1, 8, "registers"),  # 16,384 / (208 * 32 = 6,656) = 2 warps a scheduler
        (32, 113 * 1024, 8, 16, "shared memory"),  # two blocks of 114 KiB in 228
        (16, 0, 1, 32, "blocks"),
    ],
)
def test_occupancy(registers, shared, warps, expected, limit):
    found = occupancy(code(registers, shared, warps))
    assert (found.warps, found.limit) == (expected, limit)
    assert found.share == expected / 64


def test_no_occupancy_without_a_table_or_a_launch():
    assert occupancy(code(target="gfx942")) is None
    assert occupancy(code(warps=None)) is None


def loop(*bodies):
    """Instructions of a loop from address 0 on."""
    body = [(16 * i, *instruction) for i, instruction in enumerate(bodies)]
    return [*body, (16 * len(body), "BRA", " 0x0")]


def test_clocks_of_a_scheduler():
    """Every instruction is a slot; MUFU takes 8 clocks; 2 * 16 * 8 * 16 FLOPs at 1,024 a clock are 4."""
    body = loop(("MUFU", ".EX2"), ("FFMA", ""), ("HMMA", ".16816.F32.BF16 R0, R1"))
    assert clocks(code(instructions=body)) == {"issue": 4, "exponential": 8, "tensor core": 4.0}
    assert clocks(code(target="gfx942", instructions=body)) == {}


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        # 128 x 64 scores of depth 16, q from shared memory: 64 + 64 rows of 32 bytes, 4 KiB in the 32 clocks of its
        # products, all that a multiprocessor has
        (("HGMMA", ".64x64x16.F32.BF16 R88, gdesc[UR8], R88"), 32),
        (("HGMMA", ".64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT"), 48),  # of 64
        (("HGMMA", ".64x128x16.F32.BF16 R24, R120, gdesc[UR8].tnspB, R24, gsb0"), 32),
        (("HGMMA", ".64x64x8.F32.TF32 R24, gdesc[UR8], R24"), 32),
        (("LDGSTS", ".E.BYPASS.LTC128B.128 [R1], desc[UR14][R90.64], !P4"), 16),
        (("LDGSTS", ".E [R1], desc[UR14][R90.64]"), 4),
        (("LDS", ".64 R4, [R2]"), 8),
        (("STS", ".U16 [R2], R4"), 4),
        (("LDSM", ".16.M88.4 R4, [R2]"), 16),
        (("LDSM", ".16.MT88.2 R4, [R2]"), 8),
        (("STSM", ".16.M88 [R2], R4"), 4),
        (("SHFL", ".BFLY PT, R1, R2, 0x1, 0x1f"), 4),
        (("FFMA", " R1, R2, R3, R4"), None),
    ],
)
def test_clocks_of_shared_memory(instruction, expected):
    """A warp's share of the bytes, of which a scheduler has 32 a clock: 512 bytes take it 16."""
    found = clocks(code(instructions=loop(instruction)))
    assert found.get("shared memory") == expected
    assert "shared memory" not in clocks(code(target="sm_100", instructions=loop(instruction)))


def test_a_product_from_shared_memory_takes_all_of_it():
    found = clocks(code(instructions=loop(("HGMMA", ".64x64x16.F32.BF16 R8, gdesc[UR8], RZ"))))
    assert found["shared memory"] == found["tensor core"] == 32


def test_a_kernel_without_a_loop_counts_whole():
    assert clocks(code(instructions=[(0, "FFMA", ""), (16, "EXIT", "")])) == {"issue": 2}


def test_mix_of_both_makers():
    found = mix(Counter(MUFU=2, HGMMA=1, FFMA=3, LDG=1, STS=1, SHFL=1, BAR=1, IADD3=4))
    assert found == {
        "exp": 2, "matrix": 1, "FFMA": 3, "FMUL": 0, "FADD": 0, "global": 1, "shared": 1, "shuffle": 1,
        "barrier": 1, "other": 4,
    }  # fmt: skip
    amd = mix(
        Counter(
            {"v_exp_f32_e32": 1, "v_mfma_f32_32x32x8_bf16": 2, "ds_read_b128": 1, "s_barrier": 1}
        )
    )
    assert (amd["exp"], amd["matrix"], amd["shared"], amd["barrier"]) == (1, 2, 1, 1)
