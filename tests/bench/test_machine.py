import json
import os
import subprocess
import sys

import pytest
import torch

from bench import machine


def test_a_description_is_plain_json_and_names_what_decides_a_result():
    described = machine.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["versions"]["torch"]
    assert described["gpu"] is None
    assert described["tf32"] is False
    assert described["peaks"]["copy_bytes_per_s"] > 0
    assert described["peaks"]["matmul_flops"]["fp32"] > 0
    assert described["peaks"]["exp_per_s"] is None


def test_rates_of_a_cpu_count_the_work_of_all_threads(monkeypatch):
    """One thread computes, and its rate counts as often as there are threads."""
    computed, threads = [], []
    real = torch.exp
    monkeypatch.setattr(torch, "exp", lambda x, out: computed.append(x.numel()) or real(x, out=out))

    def half_a_second(run, device):
        threads.append(torch.get_num_threads())
        product = run()
        if product.ndim == 2:
            computed.append(2 * product.shape[0] * product.numel())
        return 0.5

    monkeypatch.setattr(machine, "_best_time", half_a_second)
    monkeypatch.setattr(machine, "_copy_bandwidth", lambda *where: 1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        peaks = machine.measure_peaks("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1]
    (matmul,) = computed
    assert peaks["matmul_flops"] == {"fp32": 3 * matmul / 0.5}


def test_a_chain_is_that_many_exponentials():
    """In the interpreter where there is no GPU."""
    from bench.exp_rate import BLOCK, chain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = 3
    found = chain(torch.full((2 * BLOCK,), torch.nan, device=device), steps)
    expected = (torch.arange(2 * BLOCK, device=device) % 1024) / 1024
    for _ in range(steps):
        expected = torch.exp2(-expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


STATIC = """
import json, sys
from bench.exp_rate import static_cases
from profiles.static import compile_case

(case,) = static_cases()
compiled = compile_case(case, sys.argv[1])
kinds = {operands.split()[0] for _, opcode, operands in compiled.instructions if opcode == "MUFU"}
print(json.dumps({"loop": compiled.main_loop, "kinds": sorted(kinds), "registers": compiled.registers}))
"""


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_chain_keeps_the_exponential_unit_busy_in_machine_code(target):
    """One MUFU takes 8 issue slots of its scheduler, so the loop may spend up to 7 others for each."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(machine.Path(machine.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", STATIC, target], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    loop = found["loop"]
    assert found["kinds"] == [".EX2"]
    assert loop["MUFU"] >= 8  # the chains of a thread
    assert sum(loop.values()) <= 3 * loop["MUFU"]
    assert not {"LDG", "STG", "LDS", "STS", "LDL", "STL", "BAR", "SHFL"} & set(loop)
    assert found["registers"] <= 32  # 2,048 threads a multiprocessor


def test_idle_threads_sleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert machine.wait_policy() == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert machine.wait_policy() == "ACTIVE"


def test_revision_is_that_of_the_checkout():
    state = machine.git_state()
    root = machine.Path(machine.__file__).parent
    found = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert state["revision"] == (found.stdout.strip() or None)


def test_outside_a_checkout_the_revision_is_unknown(monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(machine.subprocess, "run", no_git)
    assert machine.git_state() == {"revision": None, "dirty": None}


def test_code_is_what_measures_and_not_what_describes_it(monkeypatch, tmp_path):
    for folder in machine.CODE:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "bench" / "machine.py"))
    before = machine.code_state()
    (tmp_path / "bench" / "notes.md").write_text("text")
    assert machine.code_state() == before
    (tmp_path / "models" / "a.py").write_text("a = 2\n")
    changed = machine.code_state()
    assert [folder for folder in machine.CODE if changed[folder] != before[folder]] == ["models"]
    (tmp_path / "kernels" / "a.py").rename(tmp_path / "kernels" / "b.py")
    assert machine.code_state()["kernels"] != before["kernels"]
