"""Kernels are compiled in other processes, and the launch finds their code."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.tuning.compile_ahead import Compiler, collecting

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def scale_kernel(x_ptr, strides, n, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ptrs = x_ptr + offs * strides[0]
    tl.store(ptrs, tl.load(ptrs, mask=offs < n) * factor, mask=offs < n)
"""
SCRIPT = """
import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bench.tuning.compile_ahead import Compiler, collecting
from scale import scale_kernel


class Driver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)


def launch(**options):
    x = torch.ones(64)
    scale_kernel[(1,)](x, x.stride(), 64, 0.5, BLOCK=64, **options)


if __name__ == "__main__":
    driver.set_active(Driver())
    with collecting() as found:
        launch(num_warps=2)
        launch(num_warps=4, maxnreg=64)
    compiler = Compiler(1)
    keys = compiler.submit(found)
    assert compiler.submit(found) == keys
    print(json.dumps([request[1] for request in found]))
    print(json.dumps([compiler.wait([key]) for key in keys]))
    wrong = found[0][:5] + (found[0][5] | {"num_warps": 3},) + found[0][6:]
    print(json.dumps(compiler.wait(keys + compiler.submit([wrong]))))
    compiler.close()
    hits = []
    triton.knobs.compilation.listener = lambda cache_hit, **rest: hits.append(cache_hit)
    for options in ({"num_warps": 2}, {"num_warps": 4, "maxnreg": 64}, {"num_warps": 8}):
        try:
            launch(**options)
        except AttributeError:
            pass  # no GPU: the launch goes no further than its code
    print(json.dumps(hits))
"""


def test_a_launch_finds_what_another_process_compiled(tmp_path):
    (tmp_path / "scale.py").write_text(KERNEL)
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names, reasons, wrong, hits = map(json.loads, done.stdout.splitlines())
    assert names == ["scale_kernel", "scale_kernel"]
    assert reasons == ["", ""]
    assert wrong == "AssertionError: num_warps must be a power of 2"
    assert hits == [True, True, False]  # the last one nobody had asked for


def test_hooks_are_as_they_were():
    from triton import knobs

    with collecting() as found:
        assert knobs.runtime.jit_cache_hook is not None
    assert knobs.runtime.jit_cache_hook is None
    assert found == []


def test_a_compiler_that_does_not_answer_is_a_reason():
    compiler = Compiler(1)
    try:
        keys = compiler.submit([("nowhere", "f", {}, {}, {}, {}, ("cuda", 90, 32))])
        assert compiler.wait(keys, 0.0) == "the compiler died, or took longer than 0 s"
    finally:
        compiler.close()
