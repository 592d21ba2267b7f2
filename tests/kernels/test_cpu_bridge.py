"""The numba kernels take torch's number of threads and leave it alone."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from kernels.{operator}.op import {operator}
from kernels.{operator}.problem import {problem}

before = torch.get_num_threads()
inputs = {problem}(batch=1, seqlen=8, dim=64).inputs(torch.float32, "cpu")
for _ in range(2):
    {operator}(**inputs, impl="cpu")
    assert torch.get_num_threads() == before == 1, (before, torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("operator", "problem"),
    [("selective_scan", "SelectiveScanProblem"), ("causal_conv1d", "CausalConv1dProblem")],
)
def test_the_first_launch_does_not_change_torchs_threads(operator, problem):
    script = SCRIPT.format(operator=operator, problem=problem)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
