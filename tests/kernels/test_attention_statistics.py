import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kernels import Unavailable
from kernels.attention_statistics import portable
from kernels.attention_statistics.forward import candidates
from kernels.attention_statistics.op import attention_statistics
from kernels.attention_statistics.problem import AttentionStatisticsProblem
from kernels.attention_statistics.received import _bounds
from kernels.implementations import recording
from kernels.tuning import asking, using
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

IMPLS = ["torch", "triton"]
PROBLEMS = [
    AttentionStatisticsProblem(1, 3, 1, 16),
    AttentionStatisticsProblem(2, 2, 129, 64),
    AttentionStatisticsProblem(2, 4, 200, 24, nheads_kv=2, seqlen_q=37),
    AttentionStatisticsProblem(1, 6, 300, 80, nheads_kv=2, seqlen_q=1, tokens_first=False),
    AttentionStatisticsProblem(1, 2, 257, 256, nheads_kv=1, seqlen_q=130, tokens_first=False),
]


def statistics(inputs, impl, **options):
    return attention_statistics(**inputs, impl=impl, **options)


def comparable_threshold(inputs, span_threshold=0.01, **options):
    """A threshold at or above `span_threshold` that no weight which decides a span lies within rounding of.

    A span compares weights with the threshold, so rounding can flip it. Whether it does is seen in the definition.
    """
    span = lambda threshold: (
        statistics(inputs, "reference", span_threshold=threshold, **options).span
    )
    for step in range(100):
        threshold = span_threshold * (1 + 0.001 * step)
        if torch.equal(span(threshold * (1 - 5e-5)), span(threshold * (1 + 5e-5))):
            return threshold
    raise AssertionError("there is a weight near every threshold")


def check(inputs, impl, **options):
    """All five statistics of `impl` against the definition; returns them."""
    wide = {name: t.double() for name, t in inputs.items()}
    options["span_threshold"] = comparable_threshold(wide, **options)
    found, baseline = (statistics(inputs, name, **options) for name in (impl, "reference"))
    gold = statistics(wide, "reference", **options)
    for name in gold._fields:
        assert_as_accurate(name, *(getattr(s, name) for s in (found, baseline, gold)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_definition(impl, problem, dtype, device):
    inputs = problem.inputs(dtype, device)
    found = check(inputs, impl)
    again = statistics(inputs, impl)
    for name in ("entropy", "distance", "top_mass", "received"):
        assert torch.equal(getattr(again, name), getattr(found, name)), name
    assert found.entropy.shape == inputs["q"].shape[:3]
    assert found.received.shape == (*inputs["q"].shape[:2], problem.seqlen)


def test_the_tuner_chooses_blocks(device):
    problem = AttentionStatisticsProblem(1, 2, 150, 40, nheads_kv=1, seqlen_q=100)
    inputs = problem.inputs(torch.float32, device)
    with using(attention_statistics={"BLOCK_M": 32, "BLOCK_N": 16, "PIECE": 16}), asking() as asked:
        check(inputs, "triton")
    assert asked["attention_statistics"]["same"] == {"dtype": "fp32", "headdim": 40}
    found = candidates(
        "attention_statistics", AttentionStatisticsProblem(headdim=128), torch.half, 9
    )
    assert 1 < len(found) <= 24
    assert all(tile.keys() == found[0].keys() for tile in found)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_blocks_equal_the_dense_form_in_float64(problem):
    inputs = problem.inputs(torch.float64, "cpu")
    found, gold = statistics(inputs, "torch"), statistics(inputs, "reference")
    for name in gold._fields:
        torch.testing.assert_close(getattr(found, name), getattr(gold, name), rtol=0, atol=1e-10)


def test_blocks_of_every_size_give_the_same(monkeypatch):
    inputs = AttentionStatisticsProblem(1, 2, 333, 16, nheads_kv=1).inputs(torch.float64, "cpu")
    gold = statistics(inputs, "reference")
    for least, elements in ((1, 1), (1, 64 * 70), (7, 1), (32, 1 << 30)):
        monkeypatch.setattr(portable, "LEAST_ROWS", least)
        monkeypatch.setattr(portable, "BLOCK_ELEMENTS", {"cpu": elements, "cuda": elements})
        found = statistics(inputs, "torch")
        for name in gold._fields:
            torch.testing.assert_close(
                getattr(found, name), getattr(gold, name), rtol=0, atol=1e-10
            )


@pytest.mark.parametrize("impl", ["torch", "triton", "hf", "reference"])
def test_of_equal_weights_everything_is_known(impl, device):
    """Also ties: all of the largest weights are equal. At 0.0099, 101 weights exceed the threshold and 102 do not."""
    seqlen, top_k = 203, 5
    q = torch.randn(1, 2, seqlen, 16, device=device)
    found = attention_statistics(
        q, torch.zeros_like(q), top_k=top_k, span_threshold=0.0099, impl=impl
    )
    i = torch.arange(seqlen, device=device, dtype=torch.float64)
    expected = {
        "entropy": (i + 1).log(),
        "distance": i / 2,
        "top_mass": (top_k / (i + 1)).clamp(max=1),
        "span": torch.where(1 / (i + 1) > 0.0099, i, 0),
        "received": (1 / (i + 1)).flip(0).cumsum(0).flip(0),
    }
    for name, gold in expected.items():
        gold = gold.expand(1, 2, -1)
        assert_as_accurate(name, getattr(found, name), gold.float(), gold)


@pytest.mark.parametrize("impl", ["torch", "triton", "hf", "reference"])
def test_one_hot_rows(impl, device):
    """Keys of length 1 that only their own token matches, and a large scale: every query sees itself alone."""
    seqlen = 150
    q = torch.eye(seqlen, 160, device=device)[None, None]
    found = attention_statistics(q, q, 200.0, impl=impl)
    ones, zeros = torch.ones(1, 1, seqlen, device=device), torch.zeros(1, 1, seqlen, device=device)
    for name, expected in zip(found._fields, (zeros, zeros, ones, zeros, ones), strict=True):
        assert torch.equal(getattr(found, name), expected), name


@pytest.mark.parametrize("impl", IMPLS)
def test_huge_scores(impl, device):
    inputs = AttentionStatisticsProblem(1, 2, 140, 16).inputs(torch.float16, device)
    found = check(inputs, impl, softmax_scale=50.0)
    assert (found.top_mass <= 1.000001).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_what_all_keys_receive_is_one_a_query(impl, device):
    inputs = AttentionStatisticsProblem(1, 2, 150, 16, seqlen_q=77).inputs(torch.float32, device)
    total = statistics(inputs, impl).received.double().sum(-1)
    assert_as_accurate("sum", total.float(), torch.full_like(total, 77).float(), 0 * total + 77)


@pytest.mark.parametrize("seqlen_k", [190, 333])
@pytest.mark.parametrize("impl", IMPLS)
def test_sampled_queries_are_rows_of_all(impl, seqlen_k, device):
    inputs = AttentionStatisticsProblem(1, 4, seqlen_k, 16, nheads_kv=2).inputs(
        torch.float32, device
    )
    positions = torch.tensor([0, 1, 2, 40, 63, 64, 127, 128, 129, 180, 189], device=device)
    sampled = inputs | {"q": inputs["q"][:, :, positions]}
    found = check(sampled, impl, positions=positions)
    whole = statistics(inputs, "reference")
    for name in ("entropy", "distance", "top_mass", "span"):
        rows = getattr(whole, name)[:, :, positions]
        torch.testing.assert_close(getattr(found, name), rows, rtol=1e-5, atol=1e-5)
    assert (found.received[..., 190:] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_positions_may_repeat_and_be_more_than_the_keys(impl, device):
    inputs = AttentionStatisticsProblem(1, 1, 150, 16).inputs(torch.float32, device)
    positions = torch.arange(150, device=device) // 3
    check(inputs | {"k": inputs["k"][:, :, :50]}, impl, positions=positions)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.repeat(1, 1, 1, 3).chunk(3, dim=3)[1],
        lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
        lambda t: t.mT.contiguous().mT,
        lambda t: t[:1].expand(3, -1, -1, -1),
    ],
)
def test_strides(impl, view, device):
    inputs = AttentionStatisticsProblem(2, 2, 70, 16).inputs(torch.float32, device)
    check({name: view(t) for name, t in inputs.items()}, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_top_k(impl, top_k, device):
    inputs = AttentionStatisticsProblem(1, 2, 150, 16).inputs(torch.float32, device)
    check(inputs, impl, top_k=top_k)


@pytest.mark.parametrize("impl", IMPLS)
def test_largest_scores_that_come_last_and_twice(impl, device):
    """Rising scores replace all of the largest in every block; each key is there twice."""
    k = torch.linspace(0, 8, 75, device=device).repeat_interleave(2)[None, None, :, None]
    k = torch.cat([k, torch.zeros(1, 1, 150, 15, device=device)], dim=3)
    check({"q": torch.ones_like(k), "k": k}, impl, softmax_scale=1.0, span_threshold=0.013)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("softmax_scale", [1.0, 0.0, -0.5, 3])
def test_softmax_scale(impl, softmax_scale, device):
    inputs = AttentionStatisticsProblem(1, 2, 67, 16).inputs(torch.float32, device)
    check(inputs, impl, softmax_scale=softmax_scale)


@pytest.mark.parametrize("impl", IMPLS)
def test_span_threshold(impl, device):
    inputs = AttentionStatisticsProblem(1, 2, 150, 16).inputs(torch.float32, device)
    spans = [check(inputs, impl, span_threshold=t).span.mean() for t in (0.003, 0.05, 0.9)]
    assert spans == sorted(spans, reverse=True)


@pytest.mark.parametrize("impl", ["torch", "triton", "reference"])
def test_the_past_does_not_see_the_future(impl, device):
    inputs = AttentionStatisticsProblem(1, 2, 200, 32).inputs(torch.float32, device)
    before = statistics(inputs, impl)
    inputs["k"][:, :, 150:] = 1e4
    after = statistics(inputs, impl)
    for name in ("entropy", "distance", "top_mass", "span"):
        assert torch.equal(getattr(before, name)[..., :150], getattr(after, name)[..., :150]), name
    assert not torch.equal(before.entropy[..., 150:], after.entropy[..., 150:])


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_nan_stays(impl):
    inputs = AttentionStatisticsProblem(1, 1, 90, 16).inputs(torch.float32, "cpu")
    inputs["q"][0, 0, 30] = math.nan
    found = statistics(inputs, impl)
    for name in ("entropy", "distance", "top_mass"):
        assert getattr(found, name)[0, 0].isnan().nonzero().flatten().tolist() == [30], name
    assert found.received[0, 0, :31].isnan().all()


def test_hf_computes_what_transformers_returns_as_attentions():
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    operands = {}

    def grab(module, args, output):
        operands[module] = output

    attention = model.model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.register_forward_hook(grab)
    ids = torch.randint(50, (1, 60))
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions[0]
    assert weights.shape == (1, 4, 60, 60)
    q, k = (t.unflatten(2, (-1, 8)).transpose(1, 2) for t in operands.values())
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    angles = model.model.rotary_emb(q, torch.arange(60)[None])
    q, k = apply_rotary_pos_emb(q, k, *angles)
    found = attention_statistics(q, k, impl="hf")
    torch.testing.assert_close(found.received, weights.sum(2))
    torch.testing.assert_close(found.entropy, torch.special.entr(weights).sum(-1))


def test_memory_beside_the_results_does_not_grow_with_the_square(monkeypatch):
    """No tensor of a long sequence is larger than a block of LEAST_ROWS rows."""
    largest = []
    original = portable._block_statistics
    monkeypatch.setattr(
        portable, "_block_statistics",
        lambda s, *rest: largest.append(s.numel()) or original(s, *rest),
    )  # fmt: skip
    monkeypatch.setattr(portable, "BLOCK_ELEMENTS", {"cpu": 1 << 12})
    inputs = AttentionStatisticsProblem(1, 1, 2000, 4).inputs(torch.float32, "cpu")
    statistics(inputs, "torch")
    assert max(largest) <= portable.LEAST_ROWS * (2000 + portable.GROUP)


@pytest.mark.parametrize("positions", [range(50), (0, 0, 1, 7, 7, 8, 31, 49), (49,), (3, 4)])
def test_the_walk_over_queries_starts_where_a_key_is_first_seen(positions):
    positions = torch.tensor(tuple(positions))
    for block_m, block_n in ((4, 8), (8, 4), (16, 16)):
        found = _bounds(positions, 50, block_m, block_n).T.tolist()
        assert len(found) == -(-50 // block_n)
        for block, (first, full) in enumerate(found):
            keys = range(block * block_n, min(50, (block + 1) * block_n))
            assert first % block_m == 0 or first == len(positions)
            assert full % block_m == 0 or full == len(positions)
            assert (positions[:first] < keys[0]).all()
            assert (positions[full:] >= keys[-1]).all()


@pytest.mark.parametrize("impl", [*IMPLS, "hf", "reference"])
def test_manifest(impl, device):
    inputs = AttentionStatisticsProblem(1, 1, 3, 16).inputs(torch.float32, device)
    with recording() as manifest:
        statistics(inputs, impl)
    name = {"hf": "transformers.eager"}.get(impl, f"{impl}.attention_statistics")
    assert manifest == {"attention_statistics": name}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int, got float"),
        ({"span_threshold": 0.0}, ValueError, "span_threshold must lie between 0 and 1"),
        ({"span_threshold": 1}, ValueError, "span_threshold must lie between 0 and 1"),
        ({"span_threshold": math.nan}, ValueError, "span_threshold must lie between 0 and 1"),
        ({"span_threshold": "x"}, TypeError, "span_threshold must be a number, got str"),
        ({"softmax_scale": math.inf}, ValueError, "softmax_scale must be a finite number"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
        ({"impl": "cpu"}, Unavailable, "those of attention_statistics are triton, torch, hf"),
        ({"impl": "triton", "top_k": 9}, NotImplementedError, "a top_k up to 8, got 9; use impl='torch'"),
        ({"q": torch.zeros(1, 4, 0, 16)}, ValueError, "q must have at least one element"),
        ({"q": torch.zeros(4, 10, 16)}, ValueError, "q must have shape"),
        ({"q": torch.zeros(1, 4, 11, 16)}, ValueError, "k must have at least as many tokens as q"),
        ({"q": torch.zeros(1, 3, 10, 16)}, ValueError, "k must have a number of heads that divides"),
        ({"q": torch.zeros(1, 4, 10, 16).half()}, TypeError, "k must be one of float16"),
        ({"k": torch.zeros(1, 4, 10, 8)}, ValueError, "k must have shape"),
        ({"k": torch.zeros(1, 4, 0, 16), "positions": torch.arange(10)}, ValueError, "k must have at least one token"),
        ({"positions": torch.arange(9)}, ValueError, "positions must have shape"),
        ({"positions": torch.arange(10).int()}, TypeError, "positions must be one of int64"),
        ({"positions": torch.arange(10).flip(0)}, ValueError, "positions must ascend"),
        ({"positions": torch.arange(10) + 1}, ValueError, "positions must be those of keys, 0 to 9, got 1 to 10"),
        ({"positions": torch.arange(10) - 1}, ValueError, "positions must be those of keys, 0 to 9, got -1 to 8"),
        ({"q": torch.zeros(1, 4, 10, 16, requires_grad=True)}, NotImplementedError, "detach q and k"),
        ({"q": torch.zeros(1, 4, 10, 16).double(), "k": torch.zeros(1, 2, 10, 16).double(), "impl": "triton"},
         NotImplementedError, "got torch.float64 and headdim 16; use impl='torch'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, error, message):
    arguments = {"q": torch.zeros(1, 4, 10, 16), "k": torch.zeros(1, 2, 10, 16), "impl": "torch"}
    with pytest.raises(error, match=message):
        attention_statistics(**(arguments | change))


def test_cost_is_two_products_and_two_exponentials_a_score():
    problem = AttentionStatisticsProblem(2, 4, 10, 8, nheads_kv=2, seqlen_q=4)
    kept = 2 * 4 * (7 + 8 + 9 + 10)
    assert problem.flops() == kept * 2 * 2 * 8
    assert problem.exps() == 2 * kept
    # q 4 heads of 4 queries, k 2 heads of 10 keys, in bf16; four rows of 4 and one of 10 for 4 heads, in float32
    assert problem.bytes(torch.bfloat16) == 2 * ((16 + 20) * 8 * 2 + 4 * 4 * (4 * 4 + 10))
