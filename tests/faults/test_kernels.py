"""Kernels that return nonsense or want all memory, in real workers."""

import pytest

from bench.records import read_records
from tests.faults.sweeping import ALONE, BROKEN, Sweep


@pytest.mark.slow
def test_wrong_results_are_errors_with_numbers_and_lack_of_memory_is_oom(tmp_path):
    run = tmp_path / "run"
    sweep = Sweep(
        tmp_path / "out.txt", "--preset", "tiny", "--arch", "mamba", "--impl", "hf,torch,cpu",
        "--seqlens", "32", "--rounds", 1, "--budget", 0.02, "--device", "cpu", *ALONE, "--out", run,
        inject=BROKEN,
    )  # fmt: skip
    status, text = sweep.wait(280)
    assert status == 0, text
    assert "Traceback" not in text
    found = {r["cell"]["impl"]: r for r in read_records(run / "records.jsonl")}
    assert {impl: r["status"] for impl, r in found.items()} == {
        "hf": "ok",
        "torch": "error",
        "cpu": "oom",
    }
    wrong = found["torch"]
    assert wrong["time_ms"] is None
    assert not wrong["parity"]["passed"]
    assert "max error of hidden inf > " in wrong["reason"]  # a NaN is an infinite error
    assert found["cpu"]["time_ms"] is None
    assert "memory" in found["cpu"]["reason"]
