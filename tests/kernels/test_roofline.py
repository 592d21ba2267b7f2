"""The floors against numbers counted by hand: the conventions are what is tested."""

import pytest
import torch

from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.roofline import LinearProblem, floor, work
from kernels.selective_scan.problem import SelectiveScanProblem

PEAKS = {
    "copy_bytes_per_s": 1000.0,
    "matmul_flops": {"fp32": 100.0, "tf32": 240.0, "bf16": 800.0},
    "exp_per_s": 10.0,
}


def test_scan_counts_operands_once_and_every_exponential():
    # 2 sequences of 5 tokens and 3 channels, 4 states: 30 elements
    found = floor(SelectiveScanProblem(2, 5, 3, 4), "bf16", PEAKS)
    # bf16: u, delta, z, y of 3 and B, C of 4 for 10 tokens = 10 * (12 + 8) * 2 = 400
    # fp32: A 12, D 3, delta_bias 3, last state 24 = 42 * 4 = 168
    assert found.terms["memory"] == pytest.approx((400 + 168) / 1000)
    # 4 states, 2 for softplus, 2 for the gate
    assert found.terms["exponential"] == pytest.approx(30 * 8 / 10)
    assert found.bound == "exponential"
    assert found.seconds == found.terms["exponential"]
    assert set(found.terms) == {"memory", "exponential"}  # its FLOPs are vector work


def test_scan_without_gate_and_softplus_has_one_exponential_a_state():
    problem = SelectiveScanProblem(2, 5, 3, 4, has_z=False, delta_softplus=False)
    found = floor(problem, "fp32", PEAKS)
    assert found.terms["exponential"] == pytest.approx(30 * 4 / 10)
    # u, delta, y of 3 and B, C of 4 for 10 tokens, and the 42 float32 numbers
    assert found.terms["memory"] == pytest.approx((10 * 17 + 42) * 4 / 1000)


def test_conv_is_bound_by_memory_where_exponentials_are_quick():
    # 7 tokens of 3 channels: x and y 42, weights 12, bias 3, final state 9 = 66 numbers of 2 bytes
    found = floor(CausalConv1dProblem(1, 3, 7, 4), "bf16", PEAKS | {"exp_per_s": 1e6})
    assert found.terms["memory"] == pytest.approx(66 * 2 / 1000)
    assert found.terms["exponential"] == pytest.approx(2 * 21 / 1e6)
    assert found.bound == "memory"


def test_conv_without_silu_needs_no_exponential():
    found = floor(CausalConv1dProblem(1, 3, 7, 4, silu=False), "bf16", PEAKS | {"exp_per_s": None})
    assert set(found.terms) == {"memory"}
    assert found.missing == ()


def test_conv_reads_x_and_dy_and_writes_dx_in_its_backward():
    # 7 tokens of 3 channels: x, dy and dx 63; weights 12 and bias 3, and their gradients
    problem = CausalConv1dProblem(1, 3, 7, 4)
    found = floor(problem, "bf16", PEAKS, "backward")
    assert found.terms["memory"] == pytest.approx((63 + 30) * 2 / 1000)
    assert found.terms["exponential"] == pytest.approx(2 * 21 / 10)  # silu again
    # 8 a tap's sum again, 8 for dx, 8 for dweight, 1 for dbias, 8 for the derivative of silu
    assert problem.backward_flops() == 21 * 33
    # an initial state of 9 is read and its gradient written
    carried = CausalConv1dProblem(1, 3, 7, 4, initial_state=True)
    assert carried.backward_bytes(torch.bfloat16) == (63 + 30 + 18) * 2


def test_an_update_of_the_conv_moves_its_state_twice():
    # 2 sequences of 3 channels: x and y 12, the states of 4 inputs read and written 48, weights 12, bias 3
    found = floor(ConvUpdateProblem(2, 3, 4), "bf16", PEAKS)
    assert found.terms["memory"] == pytest.approx((12 + 48 + 15) * 2 / 1000)
    assert found.terms["exponential"] == pytest.approx(2 * 6 / 10)


def test_a_projection_has_two_products_in_its_backward():
    # 3 tokens of 5 to 7 features: x 15, dx 15, dy 21, the weight and its gradient 35 each
    found = floor(LinearProblem(3, 5, 7), "bf16", PEAKS, "backward")
    assert found.terms["matrix"] == pytest.approx(2 * 2 * 3 * 5 * 7 / 800)
    assert found.terms["memory"] == pytest.approx((15 + 15 + 21 + 70) * 2 / 1000)


def test_a_problem_without_a_backward_says_so():
    with pytest.raises(ValueError, match="ConvUpdateProblem has no backward"):
        floor(ConvUpdateProblem(2, 3, 4), "bf16", PEAKS, "backward")
    with pytest.raises(ValueError, match="sideways"):
        work(ConvUpdateProblem(2, 3, 4), torch.bfloat16, "sideways")


def test_attention_counts_the_scores_that_the_mask_keeps():
    # 4 tokens: 1 + 2 + 3 + 4 = 10 scores a head; 2 heads on 1 key-value head, headdim 8
    found = floor(CausalAttentionProblem(1, 2, 4, 8, nheads_kv=1), "bf16", PEAKS)
    assert found.terms["matrix"] == pytest.approx(20 * 2 * 2 * 8 / 800)
    assert found.terms["exponential"] == pytest.approx(20 / 10)
    # q and o of 2 heads, k and v of 1: 6 * 4 tokens * 8 numbers of 2 bytes
    assert found.terms["memory"] == pytest.approx(6 * 4 * 8 * 2 / 1000)
    assert found.bound == "exponential"


def test_attention_of_the_last_queries_sees_all_earlier_keys():
    # the last 2 of 4 tokens keep 3 and 4 scores
    found = floor(CausalAttentionProblem(1, 1, 4, 8, seqlen_q=2), "bf16", PEAKS)
    assert found.terms["exponential"] == pytest.approx(7 / 10)
    assert found.terms["matrix"] == pytest.approx(7 * 4 * 8 / 800)


@pytest.mark.parametrize(
    ("dtype", "rates", "rate"),
    [
        ("bf16", {"bf16": 800.0, "fp32": 1.0}, 800.0),
        ("fp32", {"fp32": 100.0, "tf32": 240.0}, 100.0),
        ("fp32", {"fp32": 60.0, "tf32": 240.0}, 80.0),  # three products of tf32
        ("fp32", {"fp32": 60.0}, 60.0),
        ("tf32", {"fp32": 60.0, "tf32": 240.0}, 240.0),
    ],
)
def test_matrix_rate_of_a_dtype(dtype, rates, rate):
    found = floor(LinearProblem(3, 5, 7), dtype, {"matmul_flops": rates})
    assert found.terms == {"matrix": pytest.approx(2 * 3 * 5 * 7 / rate)}
    assert found.missing == ("memory",)


@pytest.mark.parametrize(
    ("peaks", "missing"),
    [
        ({"copy_bytes_per_s": 1.0, "matmul_flops": {"bf16": 1.0}}, ("exponential",)),
        ({"copy_bytes_per_s": 1.0, "exp_per_s": 1.0, "matmul_flops": {"fp32": 1.0}}, ("matrix",)),
        ({"exp_per_s": 1.0, "matmul_flops": None}, ("memory", "matrix")),
    ],
)
def test_a_missing_peak_is_left_out_and_named(peaks, missing):
    found = floor(CausalAttentionProblem(1, 2, 4, 8), "bf16", peaks)
    assert found.missing == missing
    assert set(found.terms) == {"memory", "matrix", "exponential"} - set(missing)
    assert found.seconds == max(found.terms.values())


def test_bad_arguments_are_named():
    problem = SelectiveScanProblem(1, 4, 2, 2)
    with pytest.raises(ValueError, match="int8"):
        floor(problem, "int8", PEAKS)
    with pytest.raises(ValueError, match="none of the peaks"):
        floor(problem, "fp32", {"matmul_flops": {"fp32": 1.0}})
