"""The Triton kernels as machine code: what can be known of their speed on a GPU with no GPU here."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import importlib, json, sys
from profiles.static import compile_case

found = []
for operator in ("causal_conv1d", "causal_attention"):
    for case in importlib.import_module(f"kernels.{operator}.forward").static_cases():
        if sys.argv[1] in case.get("targets", [sys.argv[1]]):
            c = compile_case(case, sys.argv[1])
            count = lambda name, kind="": sum(
                opcode == name and kind in operands for _, opcode, operands in c.instructions
            )
            found.append(
                dict(
                    name=c.name, spills=c.spills, stack=c.stack_bytes, shared=c.shared_bytes,
                    tensor_core=c.tensor_core_instructions, asynchronous=count("HGMMA"),
                    waits=count("WARPGROUP", "DEPBAR"), wide_loads=count("LDG", ".128"),
                    wide_stores=count("STG", ".128"), stores=count("STG"),
                )
            )
print(json.dumps(found))
"""
SHARED_BYTES = {
    "sm_80": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
}  # sm_80: also fits sm_86 and sm_89


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_default_configurations(target):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, target], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert len(kernels) >= 10
    for kernel in kernels:
        assert (kernel["spills"], kernel["stack"]) == (0, 0), kernel
        assert kernel["shared"] <= SHARED_BYTES[target], kernel
        if kernel["name"].startswith("causal_attention"):
            assert kernel["tensor_core"] > 0, kernel
            if (
                target == "sm_90"
            ):  # asynchronous products in groups: ptxas can serialise them, a wait after each
                assert kernel["asynchronous"] > 0, kernel
                assert 4 * kernel["waits"] <= kernel["asynchronous"], kernel
        else:
            assert kernel["wide_loads"] >= 4, kernel
            assert kernel["stores"] - kernel["wide_stores"] <= 6, (
                kernel
            )  # the rest keeps the final state
