"""The configurations of scan, update and convolution: what is asked for, what is tried, and that any gives the same."""

import pytest
import torch

from kernels import tuning
from kernels.causal_conv1d import backward as conv_backward
from kernels.causal_conv1d import forward as conv_forward
from kernels.causal_conv1d.op import causal_conv1d
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.selective_scan import decode, forward
from kernels.selective_scan.op import selective_scan, selective_state_update
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem
from tests.kernels.scans import assert_defined, triton_in_segments

SCANS = SelectiveScanProblem(8, 4096, 2048), SelectiveScanProblem(1, 2048, 1024, 64, ngroups=4)
CONVS = CausalConv1dProblem(8, 1536, 2048), CausalConv1dProblem(1, 64, 300, channel_last=False)
CASES = [
    *(("selective_scan_fwd", forward, problem) for problem in SCANS),
    ("selective_state_update", decode, StateUpdateProblem(64, 5120)),
    *(("causal_conv1d_fwd", conv_forward, problem) for problem in CONVS),
    *(("causal_conv1d_bwd", conv_backward, problem) for problem in CONVS),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kernel", "module", "problem"), CASES, ids=str)
def test_candidates_are_complete_and_few(kernel, module, problem, dtype):
    found = module.candidates(kernel, problem, dtype, 9)
    assert 4 <= len(found) <= 24
    assert all(config.keys() == found[0].keys() for config in found)
    assert all(found.count(config) == 1 for config in found)
    assert tuning.KERNELS[kernel][2] == module.__name__


def test_the_first_candidate_is_what_a_launch_takes(device):
    scan, update = SelectiveScanProblem(1, 3, 20, 4), StateUpdateProblem(2, 20, 4)
    conv = CausalConv1dProblem(1, 20, 9)
    operands = conv.inputs(torch.float32, device)
    operands["x"].requires_grad_()
    with tuning.asking() as asked:
        selective_scan(**scan.inputs(device=device))
        selective_state_update(**update.inputs(device=device))
        causal_conv1d(**operands).sum().backward()
    of_scan = asked["selective_scan_fwd"]
    assert of_scan["same"] == {"dtype": "fp32", "dstate": 4}
    assert of_scan["near"] == {"channels": 20, "seqlen": 3}
    assert of_scan["default"] == forward.candidates("selective_scan_fwd", scan, torch.float32, 9)[0]
    assert asked["selective_state_update"]["near"] == {"channels": 40}
    for kernel in ("causal_conv1d_fwd", "causal_conv1d_bwd"):
        assert asked[kernel]["same"] == {"dtype": "fp32", "layout": "channel-last"}


@pytest.mark.parametrize(
    "config",
    [{"BLOCK_D": 16, "AHEAD": 1, "UNROLL": 2}, {"BLOCK_D": 64, "AHEAD": 4, "UNROLL": 4, "CONVERT": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("segments", [1, 2])
def test_a_scan_in_any_configuration(config, segments, device):
    inputs = SelectiveScanProblem(1, 11, 40, 3, has_initial_state=True).inputs(
        torch.float16, device
    )
    with tuning.using(selective_scan_fwd=config):
        found = triton_in_segments(inputs, segments)
    assert_defined(inputs, found)


def test_segments_of_whole_trips(device, monkeypatch):
    """As many as there are warps wanted; none holds a rest but the last."""
    monkeypatch.setattr(forward, "_sm_count", lambda device: 8)
    inputs = SelectiveScanProblem(1, 100, 40, 2).inputs(device=device)
    grids = {}
    for warps in (0, 2, 8):
        config = {"BLOCK_D": 64, "WARPS_PER_SM": warps}
        with tuning.using(selective_scan_fwd=config):
            y, last_state, _, launches = forward.plan(**inputs)
        grids[warps] = [
            grid[1] for kernel, grid, _ in launches if kernel is not forward.carry_kernel
        ]
        assert launches[0][2]["segment"] % forward.CONFIG["UNROLL"] == 0 or warps == 0
        forward.run(launches, inputs["u"])
        assert_defined(inputs, (y, last_state))
    assert grids == {0: [1], 2: [2, 3], 8: [2, 3]}


@pytest.mark.parametrize("tile", [16, 64, 4096])
def test_an_update_in_any_tile(tile, device):
    inputs = StateUpdateProblem(2, 20, 4).inputs(device=device)
    expected = selective_state_update(**inputs | {"state": inputs["state"].clone()})
    with tuning.using(selective_state_update={"TILE": tile}):
        assert torch.equal(selective_state_update(**inputs), expected)


@pytest.mark.parametrize("channel_last", [True, False])
def test_a_convolution_in_any_tile(channel_last, device):
    inputs = CausalConv1dProblem(2, 24, 37, channel_last=channel_last).inputs(torch.float32, device)
    inputs["x"].requires_grad_()

    def outputs():
        y = causal_conv1d(**inputs)
        return y, *torch.autograd.grad(y.square().sum(), [inputs["x"]])

    expected = outputs()
    tile = {"GROUP": 4, "BLOCK_G": 2, "BLOCK_D": 8}
    with tuning.using(causal_conv1d_fwd=tile, causal_conv1d_bwd=tile | {"TILES": 1}):
        for one, other in zip(outputs(), expected, strict=True):
            assert torch.equal(one, other)
