"""The floors of models against numbers counted by hand."""

import pytest

from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem, ConvUpdateProblem
from kernels.roofline import LinearProblem, floor
from kernels.selective_scan.problem import SelectiveScanProblem, StateUpdateProblem
from models.architectures import REGISTRY
from models.build import build
from models.floor import model_floor, model_problems

PEAKS = {
    "copy_bytes_per_s": 1000.0,
    "matmul_flops": {"fp32": 100.0, "tf32": 240.0, "bf16": 800.0},
    "exp_per_s": 10.0,
}
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
    for arch, architecture in REGISTRY.items():
        model = build(arch, "tiny")
        config = {name: getattr(model.config, name) for name in architecture.settings}
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


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rwkv"):
        model_floor({}, "rwkv", 1, 4, "fp32", PEAKS)
    with pytest.raises(ValueError, match="some"):
        model_floor(LLAMA, "llama", 1, 4, "fp32", PEAKS, logits="some")
