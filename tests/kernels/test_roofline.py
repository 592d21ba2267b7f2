"""The floors against numbers counted by hand: the conventions are what is tested."""

import pytest
import torch

from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.roofline import LinearProblem, floor, model_floor, model_problems, work
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem

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
    with pytest.raises(ValueError, match="rwkv"):
        model_floor({}, "rwkv", 1, 4, "fp32", PEAKS)
    with pytest.raises(ValueError, match="some"):
        model_floor(LLAMA, "llama", 1, 4, "fp32", PEAKS, logits="some")


MAMBA = {
    "hidden_size": 32, "num_hidden_layers": 2, "expand": 2, "state_size": 4, "conv_kernel": 4, "vocab_size": 50,
}  # fmt: skip
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50,
}  # fmt: skip


def test_mamba_is_its_four_projections_conv_scan_and_head():
    steps = model_problems(MAMBA, "mamba", 3, 5)
    assert steps == [
        (2, LinearProblem(15, 32, 128)),
        (2, CausalConv1dProblem(3, 64, 5, 4)),
        (2, LinearProblem(15, 64, 2 + 8)),
        (2, LinearProblem(15, 2, 64)),
        (2, SelectiveScanProblem(3, 5, 64, 4)),
        (2, LinearProblem(15, 64, 32)),
        (1, LinearProblem(3, 32, 50)),
    ]


def test_llama_counts_grouped_heads_and_all_logits():
    config = LLAMA | {"num_key_value_heads": 2, "head_dim": 16}
    steps = model_problems(config, "llama", 3, 5, logits="all")
    assert steps == [
        (2, LinearProblem(15, 32, (4 + 2 * 2) * 16)),
        (2, CausalAttentionProblem(3, 4, 5, 16, 2)),
        (2, LinearProblem(15, 64, 32)),
        (2, LinearProblem(15, 32, 96)),
        (2, LinearProblem(15, 48, 32)),
        (1, LinearProblem(15, 32, 50)),
    ]


def test_the_weights_of_the_projections_are_those_of_the_model():
    """The matrix FLOPs of the projections are twice the tokens times transformers' count of weights."""
    from models.build import build
    from models.presets import PRESETS

    preset = PRESETS["tiny"]
    for arch, config in (("mamba", preset.mamba), ("llama", preset.llama)):
        model = build(arch, "tiny")
        steps = model_problems(config, arch, 1, 9, logits="all")
        flops = sum(n * p.flops() for n, p in steps if isinstance(p, LinearProblem))
        weights = {
            id(module.weight): module.weight.numel()
            for module in model.modules()
            if type(module).__name__ == "Linear"
        }
        assert flops == 2 * 9 * sum(weights.values())


def test_a_model_takes_the_sum_of_its_parts():
    steps = model_problems(LLAMA, "llama", 1, 6)
    parts = [(count, floor(problem, "bf16", PEAKS)) for count, problem in steps]
    found = model_floor(LLAMA, "llama", 1, 6, "bf16", PEAKS)
    assert found.seconds == pytest.approx(sum(n * part.seconds for n, part in parts))
    assert found.terms["memory"] == pytest.approx(sum(n * p.terms["memory"] for n, p in parts))
    # 2 layers of 4 heads and 21 kept scores
    assert found.terms["exponential"] == pytest.approx(2 * 4 * 21 / 10)
    assert found.seconds >= max(found.terms.values())
    assert found.bound == max(found.terms, key=found.terms.get)
    without = model_floor(LLAMA, "llama", 1, 6, "fp16", PEAKS)
    assert without.missing == ("matrix",)


def test_decoding_mamba_updates_its_states():
    steps = model_problems(MAMBA, "mamba", 3, 500, mode="decode")
    assert steps == [
        (2, LinearProblem(3, 32, 128)),
        (2, ConvUpdateProblem(3, 64, 4)),
        (2, LinearProblem(3, 64, 2 + 8)),
        (2, LinearProblem(3, 2, 64)),
        (2, StateUpdateProblem(3, 64, 4)),
        (2, LinearProblem(3, 64, 32)),
        (1, LinearProblem(3, 32, 50)),
    ]
    # whatever the context
    longer = model_floor(MAMBA, "mamba", 3, 5000, "bf16", PEAKS, mode="decode")
    assert model_floor(MAMBA, "mamba", 3, 500, "bf16", PEAKS, mode="decode") == longer


def test_decoding_llama_reads_its_cache():
    steps = model_problems(LLAMA, "llama", 3, 500, logits="all", mode="decode")
    assert steps[1] == (2, CausalAttentionProblem(3, 4, 500, 8, 4, 1))
    assert steps[-1] == (1, LinearProblem(3, 32, 50))
    short, long = (
        model_floor(LLAMA, "llama", 1, n, "bf16", PEAKS, mode="decode").terms["memory"]
        for n in (500, 600)
    )
    # 2 layers with k and v of 4 heads of 8 for 100 more tokens
    assert long - short == pytest.approx(2 * 2 * 4 * 8 * 100 * 2 / 1000)


def test_training_is_forward_and_backward_of_all_positions():
    steps = model_problems(MAMBA, "mamba", 1, 6, mode="train")
    assert steps[-1] == (1, LinearProblem(6, 32, 50))
    found = model_floor(MAMBA, "mamba", 1, 6, "bf16", PEAKS, mode="train")
    forward = model_floor(MAMBA, "mamba", 1, 6, "bf16", PEAKS, "all")
    backward = [(n, floor(problem, "bf16", PEAKS, "backward")) for n, problem in steps]
    assert found.seconds == pytest.approx(
        forward.seconds + sum(n * part.seconds for n, part in backward)
    )
    # the projections: once forward, twice backward
    assert found.terms["matrix"] == pytest.approx(3 * forward.terms["matrix"])
    with pytest.raises(ValueError, match="sleep"):
        model_problems(MAMBA, "mamba", 1, 6, mode="sleep")
