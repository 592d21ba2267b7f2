"""In which configurations `forward.py` launches its kernels: the static choice, and what `bench.tune` tries besides."""

import triton

from kernels.implementations import interpreted

# One warp a program; not measured on a GPU yet. 64 channels are two a thread: independent work that hides
# latencies with few warps, and B and C are loaded once for both. 16 states of them and their rates take 64
# registers; up to 255 leave eight warps to a multiprocessor, and with the assembler's own choice some spill.
#
# POLY and POLY_STATES: how many of a token's exponentials are polynomials, in the pass with outputs and without: first
# that of softplus, which costs 5 issue slots, then those of states, 8 each. Counted for sm_90, dstate 16, per token and
# 32 channels: 126 (float32) or 130 (bfloat16) slots beside 136 clocks of the exponential unit, without outputs 109
# beside 112. Without polynomials (and with UNROLL 4) it is 115 or 120 beside 152, and 90 beside 136.
# WARPS_PER_SM: the sequence is split until a multiprocessor has so many warps, two for each of its four schedulers.
# That runs 16 of 20 exponentials twice and costs launches: worth it below half of them; 0 never splits.
# CONVERT: copy 16-bit B and C as float32 rows (`default_configuration`).
CONFIG = {
    "BLOCK_D": 64, "AHEAD": 2, "UNROLL": 8, "POLY": 2, "POLY_STATES": 3, "WARPS_PER_SM": 8, "num_warps": 1,
    "maxnreg": 216,
}  # fmt: skip
LAUNCH = ("BLOCK_D", "AHEAD", "UNROLL", "num_warps", "maxnreg")

# What to try besides (`candidates`), as changes of CONFIG, for what cannot be counted: how well latencies are hidden,
# what more loads ahead or a longer loop cost, whether both pipes of arithmetic really fill. NARROW: one channel a
# thread, and twice the warps. WIDE: several warps a block, which share rows of B and C in the first-level cache.
POLYNOMIALS = tuple(
    {"POLY": n, "POLY_STATES": m} for n, m in ((0, 0), (1, 1), (1, 2), (2, 2), (3, 4))
)
NARROW = {"BLOCK_D": 32, "maxnreg": 128}
WIDE = ({"BLOCK_D": 128, "num_warps": 2}, {"BLOCK_D": 256, "num_warps": 4})
ALTERNATIVES = (
    *POLYNOMIALS, {"UNROLL": 4}, {"UNROLL": 4, "POLY": 0, "POLY_STATES": 0}, {"AHEAD": 1},
    {"AHEAD": 4, "maxnreg": 255}, NARROW, NARROW | {"POLY": 0, "POLY_STATES": 0},
)  # fmt: skip
LABELS = {
    "BLOCK_D": "d", "num_warps": "w", "UNROLL": "u", "AHEAD": "a", "POLY": "p", "POLY_STATES": "s", "CONVERT": "c",
    "maxnreg": "r",
}  # fmt: skip

# From here on (about 80 us of scan) converting B and C, two short launches, costs less than unpacking 16-bit
# numbers for every block of channels, which is one instruction in ten.
CONVERT_ELEMENTS = 1 << 24


def default_configuration(batch, dim, seqlen, ngroups):
    """The static choice for a problem: {name: value}."""
    config = CONFIG | {"CONVERT": batch * dim * seqlen >= CONVERT_ELEMENTS}
    if interpreted():  # there a step costs the same for any width
        config["BLOCK_D"] = min(4096, triton.next_power_of_2(dim // ngroups))
    return config


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a SelectiveScanProblem in `dtype`, the static choice first; as `kernels.tuning` says.

    The same for every generation of GPUs.
    """
    default = default_configuration(problem.batch, problem.dim, problem.seqlen, problem.ngroups)
    group_dim = problem.dim // problem.ngroups
    more = list(ALTERNATIVES)
    more += [change for change in WIDE if change["BLOCK_D"] <= group_dim]
    if dtype.itemsize == 2:
        more.append({"CONVERT": not default["CONVERT"]})
    warps = problem.batch * problem.ngroups * triton.cdiv(group_dim, CONFIG["BLOCK_D"])
    if warps < 1056:  # what an H200 holds at once: else there is nothing to split
        more += [{"WARPS_PER_SM": n} for n in (0, 2, 4, 6)]
        more.append(NARROW | {"WARPS_PER_SM": 16})
    return (default, *(default | change for change in more))
