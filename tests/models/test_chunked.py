"""A prompt in chunks gives what one pass gives, under every implementation that can, and in less memory."""

import pytest
import torch

from bench import parity
from bench.forward import hidden_states
from bench.memory import allocator_peak, storage_bytes
from kernels.implementations import interpreted, recording
from models.bind import use
from models.build import build
from models.chunked import cache_tensors, prefill
from tests.tolerance import assert_as_accurate

LENGTH = 29
CHUNKS = (1, 2, 8, LENGTH - 1, LENGTH, 1000)
ARCHS = ("mamba", "llama")


@pytest.fixture(scope="module", params=ARCHS)
def model(request):
    return build(request.param, "tiny")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 32_000, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference(model, ids):
    return parity.compute(model, ids, [LENGTH], "fp32")


def gate(model, ids, reference, chunk, impl, run=prefill):
    with use(model, impl), recording() as kernels, hidden_states(model) as found:
        logits = run(model, ids, chunk).logits
    assert kernels
    assert logits.shape == (len(ids), 1, 32_000)
    return parity.check(reference, torch.cat(found, 1), logits[:, -1], LENGTH)


@pytest.mark.parametrize(
    ("impl", "chunk", "rows"),
    [(impl, chunk, rows) for impl in ("torch", "cpu", "hf") for chunk in CHUNKS for rows in (1, 2)]
    + [("triton", chunk, 2) for chunk in ((8,) if interpreted() else CHUNKS)],  # it is slow there
)
def test_chunks_are_as_accurate_as_one_pass(model, ids, reference, impl, chunk, rows):
    if impl == "hf" and model.config.model_type == "mamba" and chunk in (2, 8):
        with use(model, "hf"), pytest.raises(NotImplementedError, match="use impl 'torch'"):
            prefill(model, ids, chunk)
        return
    found = gate(model, ids[:rows], reference, chunk, impl)
    assert found["passed"], parity.failure(found)
    assert found["seqlen"] == LENGTH


def test_logits_of_all_positions(model, ids, reference):
    with use(model, "torch"):
        found = prefill(model, ids, 12, logits="all").logits
        last = prefill(model, ids, 12).logits
    assert found.shape == (2, LENGTH, 32_000)
    assert_as_accurate(
        "last", found[:, -1:], reference.baseline_logits[:, -1:], reference.gold_logits[:, -1:]
    )
    assert torch.allclose(found[:, -1:], last, atol=1e-5)


def test_the_cache_is_reserved_once_and_decoding_goes_on_from_it(model, ids):
    arch = model.config.model_type
    name = {"mamba": "cache_params", "llama": "past_key_values"}[arch]
    with torch.no_grad(), use(model, "torch"):
        whole = prefill(model, ids, LENGTH).logits
        found = prefill(model, ids[:, :-1], 9, spare=1)
        held = storage_bytes(cache_tensors(found.cache))
        token = model(ids[:, -1:], use_cache=True, **{name: found.cache}).logits
        assert storage_bytes(cache_tensors(found.cache)) == held
        assert torch.allclose(token, whole, atol=1e-4)
        per_row = 2 * 128 * (16 + 4) * 4 if arch == "mamba" else 2 * 2 * 64 * 4 * LENGTH
        assert held == 2 * per_row
        if arch == "llama":
            with pytest.raises(ValueError, match=r"room for 29 tokens and was given 30"):
                model(ids[:, :1], use_cache=True, **{name: found.cache})


def test_nothing_but_the_cache_grows_with_the_length(model):
    ids = torch.zeros(1, 2048, dtype=torch.int64)

    def peak(length):
        with use(model, "cpu"):
            return allocator_peak(lambda: prefill(model, ids[:, :length], 128))

    prefill(model, ids[:, :256], 128)
    grown = peak(2048) - peak(1024)
    if model.config.model_type == "mamba":
        assert grown < 64 * 1024
    else:  # keys and values, and a mask of chunk x length: bool and float32
        cache = 1024 * 2 * 2 * 64 * 4
        assert cache <= grown < cache + 1024 * 128 * 8


def test_after_every_chunk_it_says_how_far_it_is(model, ids):
    seen = []
    with use(model, "torch"):
        prefill(model, ids, 12, after_chunk=seen.append)
    assert seen == [12, 24, 29]


@pytest.mark.parametrize(
    ("chunk", "logits", "shape", "what"),
    [
        (0, "last", (1, 4), "chunk must be .* got 0"),
        (2.0, "last", (1, 4), r"chunk must be .* got 2\.0"),
        (2, "first", (1, 4), "logits must be last or all, got 'first'"),
        (2, "last", (4,), r"ids must be \(batch, seqlen\)"),
        (2, "last", (1, 0), r"ids must be \(batch, seqlen\)"),
    ],
)
def test_bad_arguments_are_named(model, chunk, logits, shape, what):
    with pytest.raises(ValueError, match=what):
        prefill(model, torch.zeros(shape, dtype=torch.int64), chunk, logits)
