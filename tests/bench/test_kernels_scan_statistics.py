"""The benchmark of scan statistics: a result of several outputs, and a definition that is dense."""

from functools import partial

import torch

from bench import kernel_problems, kernel_trial, kernels
from kernels.implementations import interpreted
from kernels.scan_statistics.op import scan_statistics
from kernels.scan_statistics.problem import ScanStatisticsProblem

CPU = torch.device("cpu")
PROBLEM = ScanStatisticsProblem(1, 9, 16, 4)
PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e11}, "exp_per_s": 1e9}


def test_every_implementation_that_there_is_has_a_row():
    rows = kernels.measure_problem(
        "scan_statistics", "forward", PROBLEM, "fp32", CPU, PEAKS, blocks=2, samples=1
    )
    by_name = {row["impl"]: row for row in rows}
    assert set(by_name) == {"triton", "torch", "cpu", "copy"}
    for name in ("torch", "cpu"):
        assert by_name[name]["status"] == "ok", by_name[name]["reason"]
        assert by_name[name]["error_over_bound"] <= 1
        assert by_name[name]["samples_ms"]
    if interpreted():
        assert by_name["triton"]["status"] == "interpreted"
        assert by_name["triton"]["error_over_bound"] <= 1
    assert by_name["cpu"]["kernel"] == "numba.scan_statistics"
    assert by_name["cpu"]["flops"] == PROBLEM.flops()


def test_what_is_checked():
    """Every statistic but the span, on a problem that the dense definition can take."""
    run = partial(scan_statistics, impl="torch")
    trial = kernel_trial.start(run, "forward", PROBLEM.inputs())
    assert set(trial.outputs) == {"entropy", "distance", "top_mass"}
    for place in (("cpu", "quick"), ("cuda", "quick"), ("cuda", "full")):
        for problem in kernel_problems.problems("scan_statistics", "forward", *place):
            checked = kernel_trial.checked_problem(problem, "forward", torch.device(place[0]))
            assert checked.seqlen <= 256
            assert checked.dim == 64
            assert checked.dstate == problem.dstate
