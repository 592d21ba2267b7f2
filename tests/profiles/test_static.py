"""The tool that reads machine code: its counts on a kernel that is simple enough to know."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from profiles import candidates
from profiles.machine_code import MachineCode
from profiles.static import main

SCRIPT = """
import sys
import triton
import triton.language as tl
from profiles.limits import mix
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
exps = sum(op in ("MUFU", "v_exp_f32_e32") for _, op, _ in compiled.instructions)
loop = mix(compiled.main_loop)
print(compiled.registers, compiled.spills, exps)
print(loop["exp"], loop["global"], compiled.tensor_core_instructions)
"""


def _run(tmp_path, target):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.getcwd()
    return subprocess.run(
        [sys.executable, script, target], env=env, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_counts_of_a_known_kernel(target, tmp_path):
    done = _run(tmp_path, target)
    registers, spills, all_exps, exps, loads, tensor_core = map(int, done.stdout.split())
    assert 8 <= registers <= 255
    assert spills == 0
    assert 1 <= exps <= all_exps  # one exponential per trip, or a few if the assembler unrolled
    assert loads == exps
    assert tensor_core == 0


def compiled(*instructions):
    return MachineCode(
        "x", "sm_90", 32, 0, 0, [(16 * i, *rest) for i, rest in enumerate(instructions)]
    )


def test_what_is_compiled_for_amd_is_read_too(tmp_path):
    registers, spills, _, exps, loads, _ = map(int, _run(tmp_path, "gfx942").stdout.split())
    assert 4 <= registers <= 256
    assert spills == 0
    assert 1 <= exps == loads


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


def test_an_opcode_can_name_the_main_loop():
    small = [("SHFL", ""), ("BRA", " 0x10")]
    code = compiled(("MOV", ""), *small, ("LDG", ""), ("FFMA", ""), ("BRA", " 0x30"))
    assert code.main_loop == Counter({"LDG": 1, "FFMA": 1, "BRA": 1})
    code = replace(code, main="SHFL")
    assert code.main_loop == Counter({"SHFL": 1, "BRA": 1})
    code = replace(code, main="HGMMA")  # other targets have other names: size decides
    assert code.main_loop == Counter({"LDG": 1, "FFMA": 1, "BRA": 1})


def test_with_tensor_cores_it_is_the_one_without_masks():
    masked = [("HMMA", ".16816.F32"), ("ISETP", ""), ("FSEL", ""), ("BRA", " 0x40")]
    code = compiled(("MOV", ""), ("HMMA", ".16816.F32"), ("FFMA", ""), ("BRA", " 0x10"), *masked)
    assert code.main_loop == Counter({"HMMA": 1, "FFMA": 1, "BRA": 1})
    assert code.tensor_core_instructions == 1


def test_spills_are_moves_to_local_memory():
    assert compiled(("STL", ""), ("LDL", ""), ("STG", "")).spills == 2


def test_code_without_a_loop_has_an_empty_one():
    assert compiled(("MOV", ""), ("EXIT", "")).main_loop == Counter()


def test_float_atomics_are_seen_and_integer_ones_are_not():
    code = compiled(("RED", ".E.ADD.F32.FTZ.RN"), ("ATOMG", ".E.ADD.F32"), ("RED", ".E.ADD.U32"))
    assert code.float_atomics == 2


def test_flops_of_tensor_core_instructions_are_those_of_a_warp():
    code = compiled(
        ("HMMA", ".16816.F32.BF16 R4, R8, R12, R4"),
        ("HGMMA", ".64x128x16.F32.BF16 R24, gdesc[UR4]"),
        ("HMMA", ".1688.F32.TF32 R4, R8, R12, R4"),
        ("BRA", " 0x0"),
    )
    assert code.main_loop_flops == 2 * 16 * 8 * 16 + 2 * 64 * 128 * 16 // 4 + 2 * 2 * 16 * 8 * 8


CANDIDATES = """
import triton
import triton.language as tl


@triton.jit
def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, FOLDED: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(n, loop_unroll_factor=1):
        x = tl.load(x_ptr + offs + i * BLOCK)
        acc += tl.exp2(x) if FOLDED else tl.exp2(x) + tl.log2(x)
    tl.store(y_ptr + offs, acc)


def static_candidates(target):
    for type_ in ("fp32", "bf16"):
        for block, folded, warps in ((128, False, 4), (256, False, 4), (128, True, 4), (128, False, 3)):
            configuration = {"BLOCK": block, "FOLDED": folded, "num_warps": warps}
            yield {
                "name": f"toy-{type_}-b{block}-f{folded:d}-w{warps}",
                "kernel_name": "causal_conv1d_fwd",
                "configuration": configuration,
                "kernel": kernel,
                "signature": {
                    "x_ptr": f"*{type_}", "y_ptr": "*fp32", "n": "i32", "BLOCK": "constexpr", "FOLDED": "constexpr",
                },
                "constexprs": {"BLOCK": block, "FOLDED": folded},
                "num_warps": warps,
                "num_stages": 1,
                "work": {"tokens": block},
            }
"""
RANKED = """
import sys

from kernels.tuning import KERNELS
from profiles.static import main

if __name__ == "__main__":
    for kernel, (operator, mode, _) in KERNELS.items():
        KERNELS[kernel] = (operator, mode, "toy" if kernel == "causal_conv1d_fwd" else "nowhere")
    sys.exit(main(["--candidates", "--kernel", "fp32", "--jobs", "1", "--out", sys.argv[1]]))
"""


def test_candidates_are_ranked_beside_their_default(tmp_path):
    (tmp_path / "toy.py").write_text(CANDIDATES)
    (tmp_path / "script.py").write_text(RANKED)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = f"{os.getcwd()}:{tmp_path}"
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "no code: toy-fp32-b128-f0-w3" in done.stderr
    assert "selective_scan_fwd: no candidates: No module named 'nowhere'" in done.stdout
    rows = json.loads((tmp_path / "candidates.json").read_text())["rows"]
    assert [row["configuration"]["FOLDED"] for row in rows] == [False, False, True, False]
    assert rows[3]["error"] == "AssertionError: num_warps must be a power of 2"
    lines = (tmp_path / "candidates.md").read_text().splitlines()[6:]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert names[0] == "toy-fp32-b128-f1-w4"  # half of the exponentials
    assert names[-1] == "toy-fp32-b128-f0-w3"
    assert sorted(names) == sorted(row["kernel"] for row in rows)
    assert "FOLDED False -> True" in lines[0]
    (default,) = (line for line in lines if "(the default)" in line)
    assert " | 1.000 | 32 tokens | " in default
    assert not [line for line in lines if "bf16" in line]


def test_candidates_of_one_problem_are_compared():
    def group(name, **sizes):
        configuration = {"BLOCK_M": 1, "LATE_VALUES": True}
        return candidates.group(
            {"name": name, "kernel_name": "k", "configuration": configuration, "constexprs": sizes}
        )

    default = group("k_fwd-bf16-split-d64-w8", HEADDIM=64, BLOCK_M=64)
    assert group("k_fwd-bf16-split-d64-warps4-late-values", HEADDIM=64, BLOCK_M=32) == default
    for name, headdim in (
        ("k_fwd-fp32-split-d64-w8", 64),
        ("k_fwd-bf16-d64-w8", 64),
        ("k_states-bf16-split-d64-w8", 64),
        ("k_fwd-bf16-split-d64-w8", 128),
    ):
        assert group(name, HEADDIM=headdim) != default


def test_spills_count_where_they_repeat():
    once = compiled(("STL", ""), ("FFMA", ""), ("BRA", " 0x10"), ("LDL", ""))
    assert (once.spills, candidates.loop_spills(once)) == (2, 0)
    assert candidates.loop_spills(compiled(("STL", ""), ("LDL", ""), ("BRA", " 0x10"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--binary", "absent.so"], "absent.so: there is no such file"),
        (["--kernel", "("], "is no regular expression"),
        (["--target", "sm_12"], "invalid choice: 'sm_12'"),
        (["--candidates", "--kernel", "nobody"], "'nobody' matches none of the candidates"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
