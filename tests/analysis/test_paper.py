import math

import pytest

from analysis.scaling import means, r_squared
from tests.analysis.simulate import MACHINE, MIB, Simulation

PAPER_LENGTHS = (512, 724, 1024, 1448, 2048, 2896, 4096, 5793, 8192)
A100 = {**MACHINE, "gpu": {"name": "NVIDIA A100-SXM4-40GB", "memory_bytes": 40 << 30}}


def claim(results, start):
    table = results.paper
    return table[table.claim.str.startswith(start)].iloc[0]


def like_the_paper(**changed):
    """Costs that give the paper's numbers: ratio 10.67 at 4,096, crossover at 370, out of memory at 8,192."""
    b = 0.01
    # (a + c L^2) = (a0 + b L) at 370, and 10.67 times as much at 4,096
    a0 = 0.5
    c = (10.67 * (a0 + b * 4096) - (a0 + b * 370)) / (4096**2 - 370**2)
    a = a0 + b * 370 - c * 370**2
    costs = {("llama", "hf"): (a, 0.0, c), ("mamba", "cuda"): (a0, b, 0.0)}
    memory = {("llama", "hf"): (MIB, 12_000, 200.0), ("mamba", "cuda"): (MIB, 60_000, 0.0)}
    settings = {
        "costs": costs, "memory": memory, "seqlens": (128, 181, 256, 362, *PAPER_LENGTHS),
        "out_of_memory": {("llama", "hf"): 8192}, "machine": A100, "between": 0.001, "within": 0.001,
    }  # fmt: skip
    return Simulation(**settings | changed)


def test_agreement_is_said_plainly(results):
    found = results(like_the_paper())
    ratio = claim(found, "time,")
    assert ratio.value == pytest.approx(10.67, rel=0.02)
    assert ratio.reason == "agrees"
    assert ratio.pairing == "llama hf / mamba cuda"
    crossover = claim(found, "crossover of time")
    assert crossover.value == pytest.approx(370, rel=0.02)
    assert crossover.reason == "agrees"
    out = claim(found, "length at which")
    assert (out.value, out.reason) == (8192, "agrees")


def test_reasons_follow_from_the_data(results):
    found = results(Simulation())
    ratio = claim(found, "time,")
    matrix = found.matrix["time"]
    expected = matrix[(matrix.seqlen == 2048) & matrix.paper].iloc[0]
    assert (ratio.value, ratio.low, ratio.high) == (expected.ratio, expected.low, expected.high)
    assert ratio.measured.endswith("at 2,048")
    assert "4,096 tokens were not measured" in ratio.reason
    assert "a CPU here, a GPU in the paper" in ratio.reason
    assert "Mamba's fused scan is `cpu` here, as `cuda` was not measured" in ratio.reason
    assert "eager attention takes 1.9 times the time of `cpu` at 2,048" in ratio.reason
    assert ratio.best_pairing.endswith("(llama cpu / mamba cpu)")


def test_reasons_that_do_not_apply_are_absent(results):
    found = results(
        like_the_paper(costs={("llama", "hf"): (1, 0.1, 0), ("mamba", "cuda"): (1, 0.05, 0)})
    )
    reason = claim(found, "time,").reason
    assert reason == "no reason found in the data of this run"
    other = results(
        like_the_paper(
            costs={("llama", "hf"): (1, 0.1, 0), ("mamba", "hf"): (1, 0.05, 0)},
            memory={("llama", "hf"): (MIB, 1, 0.0), ("mamba", "hf"): (MIB, 1, 0.0)},
            machine={**MACHINE, "gpu": {"name": "NVIDIA H200"}},
            dtype="bf16",
        )
    )
    reason = claim(other, "time,").reason
    assert "NVIDIA H200 here, an A100 in the paper" in reason
    assert "dtype bf16 here, fp32 in the paper" in reason
    assert "sequential" in reason
    assert "not measured" not in reason


def test_memory_is_compared_with_its_weights_and_says_what_they_do(results):
    found = results(Simulation())
    row = claim(found, "memory,")
    matrix = found.matrix["peak_memory"]
    assert row.value == matrix[(matrix.seqlen == 2048) & matrix.paper].ratio.iloc[0]
    apart = found.matrix["memory"]
    apart = apart[(apart.seqlen == 2048) & apart.paper].ratio.iloc[0]
    assert apart > 1.5 * row.value
    assert "with the weights, as in the paper, and without them" in row.reason


def test_crossover_outside_of_the_range(results):
    found = results(Simulation(seqlens=(1024, 1448, 2048)))
    row = claim(found, "crossover of time")
    assert row.measured == "none: mamba"
    assert "measured from 1,024 tokens only" in row.reason
    assert "below its smallest length of 512: extrapolated" in row.reason


def test_out_of_memory_that_did_not_happen(results):
    row = claim(results(like_the_paper(out_of_memory={})), "length at which")
    assert row.measured == "none up to 8,192"
    assert (
        "keeping the attention weights of its 8 layers and 8 heads at 8,192 tokens would add 16 GiB"
        in row.reason
    )
    row = claim(results(Simulation()), "length at which")
    assert "8,192 tokens were not measured" in row.reason


def test_r_squared_with_its_degrees_of_freedom(results):
    found = results(Simulation())
    (key,) = [k for k in found.curves["time"] if k[1:] == ("llama", "hf")]
    lengths, values = means(found.curves["time"][key])
    row = claim(found, "R^2 of a quadratic")
    assert row.value == r_squared(lengths, values, 2)[0]
    line = r_squared(lengths, values, 1)[0]
    assert "degrees of freedom: 1 in the paper, 6 here" in row.reason
    assert f"a straight line through the same points has {line:.4f}" in row.reason


def test_parameters(results):
    row = claim(results(Simulation()), "parameters")
    assert row.measured == "llama 53.7M, mamba 29.9M"
    assert "Mamba's output head is tied" in row.reason


def test_without_eager_attention_there_is_no_pairing(results):
    costs = {k: v for k, v in Simulation().costs.items() if k[1] == "cpu"}
    row = claim(results(Simulation(costs=costs)), "time,")
    assert row.measured == "not measured"
    assert math.isnan(row.value)
    assert row.reason == "needs llama under hf, and Mamba under any implementation"
