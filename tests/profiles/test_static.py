"""The tool that reads machine code: its counts on a kernel that is simple enough to know."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from profiles.static import Compiled

SCRIPT = """
import sys
import triton
import triton.language as tl
from profiles.static import compile_case


@triton.jit
def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(n, loop_unroll_factor=1):
        acc += tl.exp2(tl.load(x_ptr + offs + i * BLOCK))
    tl.store(y_ptr + offs, acc)


case = {
    "name": "sum_of_exp2",
    "kernel": kernel,
    "signature": {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "BLOCK": "constexpr"},
    "constexprs": {"BLOCK": 128},
    "num_warps": 4,
    "num_stages": 1,
}
compiled = compile_case(case, sys.argv[1])
print(compiled.registers, compiled.spills, sum(op == "MUFU" for _, op, _ in compiled.instructions))
print(compiled.main_loop["MUFU"], compiled.main_loop["LDG"], compiled.tensor_core_instructions)
"""


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_counts_of_a_known_kernel(target, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.getcwd()
    }
    done = subprocess.run(
        [sys.executable, script, target], env=env, capture_output=True, text=True, check=True
    )
    registers, spills, all_exps, exps, loads, tensor_core = map(int, done.stdout.split())
    assert 8 <= registers <= 255
    assert spills == 0
    assert 1 <= exps <= all_exps  # one exponential per trip, or a few if the assembler unrolled
    assert loads == exps
    assert tensor_core == 0


def compiled(*instructions):
    return Compiled(
        "x", "sm_90", 32, 0, 0, [(16 * i, *rest) for i, rest in enumerate(instructions)]
    )


def test_the_main_loop_is_the_largest_innermost_one():
    code = compiled(
        ("MOV", ""),
        ("FFMA", ""),  # outer loop from here
        ("MUFU", ".EX2"),  # inner loop
        ("BRA", " 0x20"),
        ("LDG", ""),  # second, larger inner loop
        ("FFMA", ""),
        ("BRA", " 0x40"),
        ("BRA", " 0x10"),
    )
    assert code.main_loop == Counter({"LDG": 1, "FFMA": 1, "BRA": 1})


def test_spills_are_moves_to_local_memory():
    assert compiled(("STL", ""), ("LDL", ""), ("STG", "")).spills == 2


def test_code_without_a_loop_has_an_empty_one():
    assert compiled(("MOV", ""), ("EXIT", "")).main_loop == Counter()
