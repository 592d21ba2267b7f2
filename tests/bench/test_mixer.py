"""The mixer as an operator of bench.kernels: every implementation computes it, and mamba-ssm gets what it takes."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import kernels
from bench import kernels as bench_kernels
from bench.mixer import MixerProblem, floor_of, mamba_mixer, mamba_ssm_mixer, public
from tests.bench.test_kernels import PEAKS

CPU = torch.device("cpu")
PROBLEM = MixerProblem(2, 9, 8, 4)


def test_every_implementation_computes_the_mixer():
    rows = bench_kernels.measure_problem(
        "mamba_mixer", "forward", PROBLEM, "fp32", CPU, PEAKS, blocks=1, samples=1
    )
    by_name = {row["impl"]: row for row in rows}
    for name in ("torch", "cpu", "hf"):
        assert by_name[name]["status"] == "ok", by_name[name]["reason"]
        assert by_name[name]["error_over_bound"] <= 1
    assert by_name["triton"]["status"] in ("ok", "interpreted"), by_name["triton"]["reason"]
    assert by_name["mamba-ssm"]["status"] == by_name["cuda"]["status"] == "unavailable"


def mamba_inner_fn(
    xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, B, C, D, delta_bias, delta_softplus
):  # fmt: skip
    """What mamba-ssm's does, by definition; xz is (batch, 2 dim, seqlen)."""
    assert B is C is out_bias is None
    x, z = xz.chunk(2, dim=1)
    x = kernels.causal_conv1d(
        x, conv_weight.squeeze(1), conv_bias, activation="silu", impl="reference"
    )
    rank, dstate = dt_proj.shape[1], A.shape[1]
    dt, B, C = F.linear(x.mT, x_proj).split([rank, dstate, dstate], dim=-1)
    y = kernels.selective_scan(
        x,
        F.linear(dt, dt_proj).mT,
        A,
        B.mT,
        C.mT,
        D,
        z,
        delta_bias,
        delta_softplus,
        impl="reference",
    )
    return F.linear(y.mT, out_proj)


def test_mamba_ssm_gets_the_same_weights_in_its_layout(monkeypatch):
    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.mamba_inner_fn = mamba_inner_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    inputs = PROBLEM.inputs(torch.float32, CPU)
    ours, theirs = mamba_mixer(**inputs, impl="torch"), mamba_ssm_mixer(**inputs)
    assert ours.shape == theirs.shape == (2, 9, 8)
    torch.testing.assert_close(ours, theirs)
    assert ours.abs().max() > 1e-3


def test_weights_are_of_the_dtype_but_for_rates_and_skip():
    found = PROBLEM.inputs(torch.bfloat16, CPU)
    assert found["hidden_states"].dtype == torch.bfloat16
    dtypes = {name: p.dtype for name, p in found["mixer"].named_parameters()}
    assert dtypes.pop("A_log") == dtypes.pop("D") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    again = PROBLEM.inputs(torch.bfloat16, CPU)
    assert torch.equal(found["hidden_states"], again["hidden_states"])
    assert torch.equal(found["mixer"].in_proj.weight, again["mixer"].in_proj.weight)


def test_its_floor_is_the_sum_of_its_parts():
    floors = [floor_of(part, "fp32", PEAKS, "forward") for part in PROBLEM.parts()]
    whole = floor_of(PROBLEM, "fp32", PEAKS, "forward")
    assert whole.seconds == pytest.approx(sum(found.seconds for found in floors))
    assert whole.bound in {found.bound for found in floors}
    assert PROBLEM.flops() == sum(part.flops() for part in PROBLEM.parts())
    # 18 tokens of width 8 to twice 16 channels, and back from 16
    assert PROBLEM.parts()[0].flops() == 2 * 18 * 8 * 32
    assert PROBLEM.parts()[-1].flops() == 2 * 18 * 16 * 8
    assert public("causal_conv1d") is kernels.causal_conv1d
