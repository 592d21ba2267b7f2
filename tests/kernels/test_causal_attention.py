import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from kernels import tuning
from kernels.causal_attention import forward, tiles
from kernels.causal_attention.descriptors import describable
from kernels.causal_attention.hf import _additive_mask
from kernels.causal_attention.op import causal_attention
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.implementations import recording
from tests.tolerance import assert_as_accurate

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

IMPLS = ["torch", "cpu", "triton"]
PROBLEMS = [
    CausalAttentionProblem(1, 3, 1, 16),
    CausalAttentionProblem(2, 4, 129, 64),
    CausalAttentionProblem(1, 2, 127, 17),
    CausalAttentionProblem(2, 4, 200, 24, nheads_kv=2, seqlen_q=37),
    CausalAttentionProblem(1, 6, 300, 80, nheads_kv=2, seqlen_q=1, tokens_first=False),
    CausalAttentionProblem(1, 2, 257, 256, nheads_kv=1, seqlen_q=130, tokens_first=False),
    CausalAttentionProblem(1, 1, 384, 32, seqlen_q=256),
]


def place(impl, device):
    return "cpu" if impl == "cpu" else device


def double(inputs):
    floats = [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return inputs | {k: inputs[k].double() for k in floats}


def check(inputs, impl):
    """Both outputs of `impl` against the definition; returns o."""
    o, lse = causal_attention(**inputs, return_lse=True, impl=impl)
    gold = causal_attention(**double(inputs), return_lse=True, impl="reference")
    baseline = causal_attention(**inputs, return_lse=True, impl="reference")
    assert_as_accurate("o", o, baseline[0], gold[0])
    assert_as_accurate("lse", lse, baseline[1], gold[1])
    return o


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_definition(impl, problem, dtype, device):
    inputs = problem.inputs(dtype, place(impl, device))
    o = check(inputs, impl)
    assert torch.equal(o, causal_attention(**inputs, impl=impl))
    if problem.tokens_first:
        assert o.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("impl", ["hf", "reference"])
def test_heads_lie_together_in_the_output_as_in_q(impl):
    o = causal_attention(**PROBLEMS[1].inputs(torch.float32, "cpu"), impl=impl)
    assert o.transpose(1, 2).is_contiguous()


def test_reference_is_the_softmax_of_the_whole_matrix():
    inputs = CausalAttentionProblem(1, 2, 200, 16, seqlen_q=150).inputs(torch.float64, "cpu")
    q, k, v = inputs.values()
    seen = torch.ones(150, 200, dtype=torch.bool).tril(50)
    scores = (q @ k.mT / 4).masked_fill(~seen, float("-inf"))
    o, lse = causal_attention(q, k, v, return_lse=True, impl="reference")
    torch.testing.assert_close(o, scores.softmax(-1) @ v)
    torch.testing.assert_close(lse, scores.exp().sum(-1).log())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.repeat(1, 1, 1, 3).chunk(3, dim=3)[1],  # one of three packed in a projection
        lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
        lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
        lambda t: t.mT.contiguous().mT,
        lambda t: t[:1].expand(3, -1, -1, -1),
    ],
)
def test_strides(impl, view, device):
    inputs = CausalAttentionProblem(2, 2, 70, 16).inputs(torch.float32, place(impl, device))
    check({name: view(t) for name, t in inputs.items()}, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("softmax_scale", [1.0, 0.0, -0.5, 3])
def test_softmax_scale(impl, softmax_scale, device):
    inputs = CausalAttentionProblem(1, 2, 67, 16).inputs(torch.float32, place(impl, device))
    check(inputs | {"softmax_scale": softmax_scale}, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_grouped_heads_are_repeated_heads(impl, device):
    inputs = CausalAttentionProblem(2, 6, 90, 32, nheads_kv=2).inputs(
        torch.float32, place(impl, device)
    )
    repeated = {n: t if n == "q" else t.repeat_interleave(3, dim=1) for n, t in inputs.items()}
    o = causal_attention(**inputs, impl=impl)
    torch.testing.assert_close(o, causal_attention(**repeated, impl=impl), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("heads_per_section", [1, 2])
def test_every_head_is_computed_whatever_the_schedule(heads_per_section, device, monkeypatch):
    inputs = CausalAttentionProblem(1, 5, 150, 16).inputs(torch.float32, device)
    head_bytes = 2 * 150 * 16 * 4
    monkeypatch.setattr(tiles, "L2_BYTES", heads_per_section * head_bytes)
    check(inputs, "triton")


@pytest.mark.parametrize("split", [1, 100, 128])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_prompt_in_two_parts_is_the_whole(impl, split, device):
    inputs = CausalAttentionProblem(1, 2, 200, 32).inputs(torch.float32, place(impl, device))
    q, k, v = inputs.values()
    parts = [
        causal_attention(q[:, :, :split], k[:, :, :split], v[:, :, :split], impl=impl),
        causal_attention(q[:, :, split:], k, v, impl=impl),
    ]
    gold = causal_attention(**double(inputs), impl="reference")
    assert_as_accurate(
        "o", torch.cat(parts, dim=2), causal_attention(**inputs, impl="reference"), gold
    )


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton", "reference"])
def test_the_past_does_not_see_the_future(impl, device):
    inputs = CausalAttentionProblem(1, 2, 200, 32).inputs(torch.float32, place(impl, device))
    before = causal_attention(**inputs, impl=impl)
    inputs["k"][:, :, 150:] = 1e4
    inputs["v"][:, :, 150:] = 1e4
    after = causal_attention(**inputs, impl=impl)
    assert torch.equal(before[:, :, :150], after[:, :, :150])
    assert not torch.equal(before[:, :, 150], after[:, :, 150])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_sequence_gives_the_same_in_every_slot_of_the_batch(impl, device):
    inputs = CausalAttentionProblem(1, 2, 90, 32).inputs(torch.float32, place(impl, device))
    alone = causal_attention(**inputs, impl=impl)
    batch = {n: torch.cat([50 * torch.ones_like(t), t, -t]) for n, t in inputs.items()}
    assert torch.equal(causal_attention(**batch, impl=impl)[1:2], alone)


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_scores_give_the_running_mean(impl, device):
    inputs = CausalAttentionProblem(1, 1, 150, 16).inputs(torch.float32, place(impl, device))
    inputs["q"].zero_()
    o = check(inputs, impl)
    count = torch.arange(1, 151, device=o.device)[:, None]
    torch.testing.assert_close(o, inputs["v"].cumsum(2) / count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_huge_scores_stay_finite(impl, dtype, device):
    inputs = CausalAttentionProblem(1, 2, 150, 32).inputs(dtype, place(impl, device))
    inputs["q"] *= 200
    inputs["k"] *= 200
    o, lse = causal_attention(**inputs, return_lse=True, impl=impl)
    assert o.isfinite().all()
    gold = causal_attention(**double(inputs), return_lse=True, impl="reference")
    baseline = causal_attention(**inputs, return_lse=True, impl="reference")
    assert_as_accurate("lse", lse, baseline[1], gold[1])


def test_gradcheck_of_the_reference():
    inputs = CausalAttentionProblem(1, 2, 5, 3, nheads_kv=1, seqlen_q=4).inputs(
        torch.float64, "cpu"
    )
    leaves = [t.requires_grad_() for t in inputs.values()]

    def reference(q, k, v):
        return causal_attention(q, k, v, return_lse=True, impl="reference")

    assert torch.autograd.gradcheck(reference, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[3]], ids=str)
def test_hf_is_what_transformers_computes(problem, dtype):
    inputs = problem.inputs(dtype, "cpu")
    q, k, v = inputs.values()
    config = modeling_llama.LlamaConfig(
        hidden_size=q.shape[1] * q.shape[3],
        num_attention_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        attn_implementation="eager",
    )
    attention = modeling_llama.LlamaAttention(config, layer_idx=0).eval()
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    mask = eager_mask(1, seqlen_q, seqlen_k, q_offset=seqlen_k - seqlen_q, dtype=dtype)
    assert torch.equal(mask, _additive_mask(seqlen_q, seqlen_k, dtype, "cpu"))
    o, _ = modeling_llama.eager_attention_forward(attention, q, k, v, mask, attention.scaling)
    assert torch.equal(causal_attention(**inputs, impl="hf"), o.transpose(1, 2))


def test_hf_has_no_lse():
    with pytest.raises(NotImplementedError, match=r"return_lse=True; use impl='torch'"):
        causal_attention(**PROBLEMS[0].inputs(torch.float32, "cpu"), return_lse=True, impl="hf")


@pytest.mark.parametrize(
    ("impl", "backend", "seqlen", "kernel"),
    [
        ("torch", SDPBackend.MATH, 1, "torch.sdpa.math"),
        ("torch", SDPBackend.FLASH_ATTENTION, 1, "torch.sdpa.flash"),
        ("cpu", SDPBackend.MATH, 1, "torch.sdpa.flash"),  # never the unfused form
        ("hf", SDPBackend.MATH, 1, "transformers.eager"),
        ("triton", SDPBackend.MATH, 1, "triton.causal_attention_decode"),
        ("triton", SDPBackend.MATH, 17, "triton.causal_attention_fwd"),
    ],
)
def test_the_manifest_names_the_kernel_that_ran(impl, backend, seqlen, kernel, device):
    inputs = CausalAttentionProblem(1, 3, seqlen, 16).inputs(
        torch.float32, device if impl == "triton" else "cpu"
    )
    with sdpa_kernel(backend), recording() as manifest:
        causal_attention(**inputs, impl=impl)
    assert manifest == {"causal_attention": kernel}


Q = torch.zeros(1, 4, 3, 8)
CU = torch.tensor([0, 1, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": Q[0]}, ValueError, r"q must have shape \(any, any, any, any\), got \(4, 3, 8\)"),
        ({"q": Q[:, :, :0]}, ValueError, "q must have at least one element"),
        ({"q": Q.int()}, TypeError, "q must be one of float32, .* got torch.int32"),
        ({"k": Q.half()}, TypeError, "k must be one of float32, got torch.float16"),
        ({"k": Q[..., :4]}, ValueError, r"k must have shape \(1, any, any, 8\)"),
        ({"v": Q[:, :, :2]}, ValueError, r"v must have shape \(1, 4, 3, 8\)"),
        ({"k": Q[:, :3], "v": Q[:, :3]}, ValueError, "divides the 4 heads of q, got 3"),
        ({"k": Q[:, :0], "v": Q[:, :0]}, ValueError, "divides the 4 heads of q, got 0"),
        (
            {"k": Q[:, :, :2], "v": Q[:, :, :2]},
            ValueError,
            "at least as many tokens as q, got 2 for 3",
        ),
        ({"v": Q.to("meta")}, ValueError, "v must be on cpu, got meta"),
        (
            {"softmax_scale": float("inf")},
            ValueError,
            "softmax_scale must be a finite number, got inf",
        ),
        ({"impl": "flash"}, ValueError, "impl must be one of .* got 'flash'"),
        ({"cu_seqlens": CU.long()}, TypeError, "cu_seqlens must be one of int32, got torch.int64"),
        ({"cu_seqlens": CU[:1]}, ValueError, "at least two bounds, got 1"),
        ({"cu_seqlens": CU[:2]}, ValueError, r"must rise from 0 to 3, got \[0, 1\]"),
        ({"cu_seqlens": CU, "q": Q[:, :, :2]}, ValueError, "got 3 tokens in k for 2 in q"),
        (
            {"cu_seqlens": CU} | dict.fromkeys("qkv", Q.repeat(2, 1, 1, 1)),
            ValueError,
            "packed into a batch of 1, got 2",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        causal_attention(**({"q": Q, "k": Q, "v": Q, "impl": "torch"} | change))


@pytest.mark.parametrize("q", [Q.double(), torch.zeros(1, 1, 1, 257)], ids=["float64", "wide"])
def test_triton_says_what_it_cannot_take(q):
    with pytest.raises(NotImplementedError, match=r"headdim up to 256, got .*; use impl='torch'"):
        causal_attention(q, q, q, impl="triton")


def test_three_tf32_products_are_as_accurate_as_float32():
    """Why float32 may use tensor cores: the arithmetic of `tf32x3`, emulated, passes the rule of every kernel."""

    def tf32(x):
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def product(a, b):
        large_a, large_b = tf32(a), tf32(b)
        return tf32(a - large_a) @ large_b + large_a @ tf32(b - large_b) + large_a @ large_b

    inputs = CausalAttentionProblem(1, 2, 512, 64, tokens_first=False).inputs(torch.float32, "cpu")
    gold = causal_attention(**double(inputs), impl="reference")
    baseline = causal_attention(**inputs, impl="reference")

    def attention(matmul):
        q, k, v = inputs.values()
        hidden = torch.ones(512, 512, dtype=torch.bool).triu(1)
        scores = matmul(q, k.mT.contiguous()).masked_fill(hidden, float("-inf")) / 8
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        return matmul(p, v) / p.sum(-1, keepdim=True)

    assert_as_accurate("o", attention(product), baseline, gold)
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate("o", attention(lambda a, b: tf32(a) @ tf32(b)), baseline, gold)


TILE = {"BLOCK_M": 32, "BLOCK_N": 16, "PIECE": 16, "num_warps": 1, "num_stages": 1}
VARIANTS = [
    {"LATE_VALUES": True},
    {"DESCRIPTORS": True},
    {"DESCRIPTORS": True, "LATE_VALUES": True},
    {"DESCRIPTORS": True, "WARP_SPECIALIZE": True},
]


@pytest.mark.parametrize(
    ("problem", "bounds"),
    [
        (CausalAttentionProblem(1, 2, 100, 24, nheads_kv=1, seqlen_q=70), None),
        (
            CausalAttentionProblem(1, 1, 33, 16),
            None,
        ),  # the last block has one query, and no key that it does not see
        (CausalAttentionProblem(1, 1, 90, 16), [0, 5, 5, 45, 46, 90]),
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_variants(variant, problem, bounds, device):
    inputs = problem.inputs(torch.float16, device)
    if bounds is not None:
        inputs["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    with tuning.using(causal_attention_fwd=TILE | variant):
        check(inputs, "triton")


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("variant", VARIANTS[:-1], ids=" ".join)
def test_no_variant_touches_another_sequence(variant, device):
    """Infinities there would show through weights of zero, as what a sequence masks in its own blocks does."""
    inputs = CausalAttentionProblem(1, 1, 96, 16).inputs(torch.float32, device)
    cu_seqlens = torch.tensor([0, 48, 96], dtype=torch.int32, device=device)
    inputs["v"][:, :, :48] = float("inf")
    with tuning.using(causal_attention_fwd=TILE | variant | {"BLOCK_M": 16}):
        o = causal_attention(**inputs, cu_seqlens=cu_seqlens, impl="triton")
    assert o[:, :, 48:].isfinite().all()


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (lambda t: t, True),
        (lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), True),
        (lambda t: t[:1].expand(3, -1, -1, -1), True),
        (lambda t: t[..., 8:], True),  # 16 bytes on
        (lambda t: t[..., 4:], False),
        (lambda t: t[..., ::2], False),
        (lambda t: t.mT, False),
        (lambda t: t[:, :, :1].expand(-1, -1, 5, -1), False),
        (lambda t: t[..., :60].contiguous(), False),  # rows of 120 bytes
    ],
)
def test_what_the_copy_engine_can_move(view, expected):
    assert describable(view(torch.zeros(2, 3, 5, 64, dtype=torch.half))) == expected


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_variant_cannot_run_takes_the_default(packed, device, monkeypatch):
    monkeypatch.setattr(forward, "launch_with_descriptors", None)
    inputs = CausalAttentionProblem(1, 2, 70, 16).inputs(torch.float32, device)
    if packed:
        inputs["cu_seqlens"] = torch.tensor([0, 30, 70], dtype=torch.int32, device=device)
    else:
        inputs["k"] = inputs["k"].mT.contiguous().mT
    with tuning.using(causal_attention_fwd=TILE | VARIANTS[-1]):
        check(inputs, "triton")


def test_candidates():
    kernel = "causal_attention_fwd"
    problem = CausalAttentionProblem(headdim=80)
    found = forward.candidates(kernel, problem, torch.bfloat16, 9)
    assert found[0] == tiles.tile_of(forward.TABLES, torch.bfloat16, 80, 9)
    assert len(found) == len({tuple(sorted(tile.items())) for tile in found}) > 5
    assert all(tile["PIECE"] in (32, 64, 128) for tile in found)
    assert len(forward.candidates(kernel, problem, torch.float32, 8)) == 1
    names = [case["name"] for case in forward.static_candidates("sm_90")]
    assert len(set(names)) == len(names) > 40
    assert "causal_attention_fwd-bf16-d128-m128-n128-p128-w8-s2-descriptors-late-values" in names


def test_cost():
    prompt = CausalAttentionProblem(2, 8, 1000, 64, nheads_kv=2)
    scores = 2 * 8 * 1000 * 1001 // 2
    assert (prompt.flops(), prompt.backward_flops()) == (4 * 64 * scores, 10 * 64 * scores)
    assert prompt.exps() == prompt.backward_exps() == scores
    rows, kv_rows = 2 * 8 * 1000, 2 * 2 * 1000  # of headdim elements, two bytes each
    assert prompt.bytes(torch.half) == 128 * (2 * rows + 2 * kv_rows)
    assert prompt.backward_bytes(torch.half) == 128 * (4 * rows + 4 * kv_rows) + 4 * rows
    token = CausalAttentionProblem(2, 8, 1000, 64, nheads_kv=2, seqlen_q=1)
    assert token.flops() == 4 * 64 * 2 * 8 * 1000
    assert token.bytes(torch.half) == 128 * (2 * kv_rows + 2 * 2 * 8)  # the cache once, q and o


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("headdim", [16, 40, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("impl", ["torch", "triton", "cuda"])
def test_on_a_gpu(impl, headdim, dtype):
    for problem in (
        CausalAttentionProblem(2, 4, 1025, headdim, nheads_kv=2),
        CausalAttentionProblem(1, 2, 8192, headdim, seqlen_q=700),
        CausalAttentionProblem(1, 2, 500, headdim, seqlen_q=1, tokens_first=False),
    ):
        inputs = problem.inputs(dtype, "cuda")
        if impl == "triton":
            check(inputs, impl)
            continue
        gold = causal_attention(**double(inputs), impl="reference")
        baseline = causal_attention(**inputs, impl="reference")
        assert_as_accurate("o", causal_attention(**inputs, impl=impl), baseline, gold)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("headdim", [64, 128, 256])
def test_candidates_on_a_gpu(headdim, dtype):
    """What no interpreter runs: descriptors as the copy engine reads them, and groups of warps beside each other."""
    problem = CausalAttentionProblem(2, 4, 1025, headdim, nheads_kv=2, seqlen_q=1000)
    inputs = problem.inputs(dtype, "cuda")
    major = tiles.generation(inputs["q"].device)
    for tile in forward.candidates("causal_attention_fwd", problem, dtype, major):
        with tuning.using(causal_attention_fwd=tile):
            o = check(inputs, "triton")
            for _ in range(20):
                assert torch.equal(o, causal_attention(**inputs, impl="triton")), tile


@pytest.mark.gpu
def test_tf32_is_used_where_torch_allows_it(monkeypatch):
    inputs = CausalAttentionProblem(1, 2, 512, 64).inputs(torch.float32, "cuda")
    exact = causal_attention(**inputs, impl="triton")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    rounded = causal_attention(**inputs, impl="triton")
    difference = (exact - rounded).abs().max().item()
    assert 1e-6 < difference < 1e-2
