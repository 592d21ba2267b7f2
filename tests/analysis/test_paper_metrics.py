import math

import pytest

from analysis.paper_metrics import (
    TABLE_3,
    UNEXPLAINED,
    attainable,
    beside,
    uniform_distance,
    uniform_entropy,
)
from tests.analysis.metric_simulate import MetricSimulation

TABLES = {}  # by simulation


def claim(source, start):
    """The one row of a simulation's, or of records', table that begins so."""
    if isinstance(source, MetricSimulation) and repr(source) not in TABLES:
        TABLES[repr(source)] = beside(source.records())
    table = TABLES[repr(source)] if isinstance(source, MetricSimulation) else beside(source)
    found = table[table.claim.str.startswith(start)]
    assert len(found) == 1, found.claim.tolist()
    return found.iloc[0]


def planted(values, **changed):
    """Records of one implementation with the values of {(arch, instrument, metric, layer): value}."""
    rows = MetricSimulation(**{"impls": ("cpu",), "gold": False} | changed).records()
    for row in rows:
        for value in row["values"]:
            key = (row["unit"]["arch"], *(value[n] for n in ("instrument", "metric", "layer")))
            value["value"] = values.get(key, value["value"])
    return rows


def test_uniform_attention():
    assert uniform_entropy(1847) == pytest.approx(6.524, abs=5e-4)
    assert uniform_entropy(3) == pytest.approx((math.log(2) + math.log(3)) / 3)
    assert uniform_distance(3) == (0 + 0.5 + 1) / 3


def test_what_an_auc_can_be():
    """The smallest numbers of samples that can give the paper's areas."""
    assert [attainable(0.7834, n) for n in (12, 27, 28)] == [False, False, True]
    assert [attainable(0.7123, n) for n in (12, 31, 32)] == [False, False, True]
    assert attainable(0.75, 4)


def test_near_uniform_attention_is_the_reason():
    row = claim(
        MetricSimulation(seqlen=1847, groups=("attention",)),
        "attention entropy, nats (llama), block 1",
    )
    assert row.value == pytest.approx(0.997 * 6.524, rel=1e-2)
    assert (row.paper, row.tokens, row.seeds) == (2.1234, 1847, 5)
    assert row.reason.startswith("attention is nearly uniform: 99.")
    assert "uniform attention, ln(L!)/L = 6.52 at 1,847 tokens" in row.reason
    assert "2.1234 nats would be an even spread over 8.4 tokens" in row.reason
    distance = claim(
        MetricSimulation(seqlen=1847, groups=("attention",)),
        "attention distance, tokens (llama), block 4",
    )
    assert "(L - 1)/4 = 462 at 1,847 tokens" in distance.reason


def test_no_reason_contradicts_the_data():
    """Concentrated attention is not called uniform, and a length like the paper's is no reason."""
    simulation = MetricSimulation(seqlen=1847, attention={"entropy": 3.0, "distance": 80.0})
    row = claim(simulation, "attention entropy, nats (llama), block 1")
    assert row.reason == "46% of uniform attention, ln(L!)/L = 6.52"
    rows = planted({("mamba", "residual stream", "velocity", f"block {i}"): 0.5 for i in range(1, 9)},
                   seqlen=1847, seeds=1, groups=("hidden",))  # fmt: skip
    assert claim(rows, "mean velocity").reason == UNEXPLAINED
    still = planted(
        {("mamba", "residual stream", "velocity_relative", "block 1"): 0.04}, seqlen=1847
    )
    assert "cosine" not in claim(still, "velocity (mamba), block 1").reason


def test_agreement():
    values = {
        ("mamba", "residual stream", metric, f"block {layer}"): value
        for metric in ("velocity", "norm")
        for layer, value in TABLE_3[metric].items()
    }
    values["llama", "window cosine", "auc", "final norm"] = 0.72
    rows = planted(values, seqlen=1847, seeds=2, groups=("hidden", "shifts"))
    table = beside(rows).set_index("claim").reason
    for layer in (1, 2, 4, 6, 8):
        assert table[f"velocity (mamba), block {layer}"] == "agrees"
        assert table[f"norm of the last token (mamba), block {layer}"] == "agrees"
    reason = table["shifts, AUC (llama), final norm"]
    assert reason.startswith("agrees; no set of 12 samples")  # whatever is measured


def test_every_measured_layer_is_listed():
    table = beside(MetricSimulation(layers=10, seeds=1, impls=("cpu",)).records())
    for metric, extra in (
        ("velocity (mamba)", 1),
        ("norm of the last token", 1),
        ("attention entropy", 0),
    ):
        found = table[table.claim.str.startswith(metric)]
        assert len(found) == 10 + extra
        assert found.paper.notna().sum() == 5
        assert (found.reason[found.paper.isna()] == "").all()


def test_velocity_and_norm_of_the_paper_contradict_different_tokens():
    reason = claim(MetricSimulation(), "velocity (mamba), block 1").reason
    assert "over its norm is 0.038, so neighbouring tokens would have cosine 0.9993" in reason
    assert "here velocity is 1.4" in reason
    assert "512 tokens here, 1,847 in the paper" in reason
    assert "outside of the range of 5 initialisations" in reason


def test_the_index_shift_is_computed():
    reason = claim(MetricSimulation(), "norm of the last token (mamba), block 8").reason
    assert "index 8 of Mamba is final norm: 22.6 here, sqrt(512) whatever comes in" in reason
    assert (
        "index" not in claim(MetricSimulation(), "norm of the last token (mamba), block 4").reason
    )
    rows = planted({("mamba", "residual stream", "norm", "block 5"): 6.0})
    assert (
        "index 4 of Mamba is block 5: 6.00 here"
        in claim(rows, "norm of the last token (mamba), block 4").reason
    )


def test_denominators_of_the_effective_context():
    mamba = claim(MetricSimulation(), "effective context, share of the prefix (mamba), asym")
    assert "90.2% are 892.4 tokens of a prefix of 989; over all 1,847" in mamba.reason
    assert "they are 48.3%" in mamba.reason
    llama = claim(MetricSimulation(), "effective context, share of the prefix (llama), asym")
    assert "234.7 tokens by all 1,847" in llama.reason
    count = claim(MetricSimulation(), "effective context, tokens (mamba), asym")
    assert "892.4 tokens do not fit into 512" in count.reason
    like = claim(
        MetricSimulation(), "effective context, tokens (llama), like for like by hutchinson"
    )
    assert like.value == pytest.approx(120, rel=0.1)
    assert math.isnan(like.paper)


def test_shifts_say_what_they_stand_on():
    row = claim(MetricSimulation(sessions=12), "shifts, AUC (mamba)")
    assert "no set of 12 samples (4 sessions, 3 pairs of quarters) can give 0.7834" in row.reason
    assert "here 36 shifts among 144 turn boundaries of 12 sessions" in row.reason
    assert "no credit" not in row.reason
    weak = {("mamba", "window cosine", "auc", "final norm"): 0.6}
    weak = planted(weak, seqlen=0, groups=("shifts",))
    row = claim(weak, "shifts, AUC (mamba)")
    assert "its input embeddings alone reach 0.680" in row.reason
    assert math.isnan(row.tokens)  # whole sessions
    assert "carry no labels" in claim(MetricSimulation(), "shifts, F1 at P75 (llama)").reason


def test_trained_weights_are_a_reason():
    row = claim(MetricSimulation(weights="trained"), "attention entropy, nats (llama), block 1")
    assert "trained weights here, random ones in the paper" in row.reason
    small = {"groups": ("attention",), "seeds": 1}
    both = [
        r for w in ("trained", "initial") for r in MetricSimulation(weights=w, **small).records()
    ]
    assert claim(both, "attention entropy, nats (llama), block 1").weights == "initial"


def test_the_nearest_length_and_an_implementation_that_passed():
    rows = [
        r
        for n in (256, 2048, 8192)
        for r in MetricSimulation(seqlen=n, groups=("hidden",)).records()
    ]
    assert claim(rows, "mean velocity").tokens == 2048
    broken = MetricSimulation(groups=("hidden",), broken={("mamba", "cpu"): 2.0})
    assert claim(broken, "mean velocity").impl == "hf"


@pytest.mark.parametrize("changed", [
    {"groups": ()}, {"archs": ("llama",)}, {"archs": ("mamba",)}, {"groups": ("shifts",)}, {"seeds": 1},
])  # fmt: skip
def test_parts_that_are_missing_say_so(changed):
    table = beside(MetricSimulation(**changed, gold=False).records())
    missing = table[(table.seeds == 0) & table.paper.notna()]
    assert (missing.measured == "not measured").all()
    assert (missing.reason == "not measured").all()
    assert table.claim.is_unique
    assert table.paper.notna().sum() == 20 + 2 + 6 + 8
