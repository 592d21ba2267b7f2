import pytest
import torch

from bench import parity
from bench.forward import EagerForward
from bench.plan import reference_path
from models.bind import use
from models.build import build

LENGTH = 24


@pytest.fixture(scope="module", params=["mamba", "llama"])
def model(request):
    return build(request.param, "tiny")


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 32_000, (2, LENGTH), generator=generator)


@pytest.fixture(scope="module")
def reference(model, ids):
    return parity.compute(model, ids, [8, LENGTH], "fp32")


def outputs(model, ids, impl="torch"):
    with torch.no_grad(), use(model, impl):
        return EagerForward(model, ids, keep=1).outputs()


@pytest.mark.parametrize("seqlen", [8, LENGTH])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_honest_implementation_passes_at_every_planned_length(
    model, ids, reference, seqlen, rows
):
    hidden, logits, kernels = outputs(model, ids[:rows, :seqlen])
    found = parity.check(reference, hidden, logits, seqlen)
    assert found["passed"]
    assert found["seqlen"] == seqlen
    assert found["baseline"] == "hf"
    assert found["outputs"].keys() == {"hidden", "logits"}
    assert kernels
    for norms in found["outputs"].values():
        for error, bound in norms.values():
            assert 0 < error <= bound


def test_a_length_without_planned_logits_is_compared_by_its_hidden_states(model, ids, reference):
    hidden, logits, _ = outputs(model, ids[:, :11])
    found = parity.check(reference, hidden, logits, 11)
    assert found["passed"]
    assert found["outputs"].keys() == {"hidden"}


def test_a_cell_longer_than_its_reference_is_compared_as_far_as_it_reaches(model, ids):
    short = parity.compute(model, ids[:, :8], [8], "fp32")
    hidden, logits, _ = outputs(model, ids)
    found = parity.check(short, hidden, logits, LENGTH)
    assert found["passed"]
    assert found["seqlen"] == 8


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
@pytest.mark.parametrize("output", ["hidden", "logits"])
def test_one_wrong_element_fails_and_is_named(model, ids, reference, wrong, output):
    hidden, logits, _ = outputs(model, ids)
    broken = {"hidden": hidden, "logits": logits}[output]
    broken.view(-1)[-1] += wrong
    found = parity.check(reference, hidden, logits, LENGTH)
    assert not found["passed"]
    assert f"max error of {output}" in parity.failure(found)
    assert "\n" not in parity.failure(found)


def test_other_tokens_fail(model, ids, reference):
    hidden, logits, _ = outputs(model, ids.flip(1))
    assert not parity.check(reference, hidden, logits, LENGTH)["passed"]


def test_bfloat16_has_a_reference_of_its_own_rounding(ids):
    model = build("mamba", "tiny", dtype=torch.bfloat16)
    reference = parity.compute(model, ids, [LENGTH], "bf16")
    hidden, logits, _ = outputs(model, ids)
    assert parity.check(reference, hidden, logits, LENGTH)["passed"]
    exact = build("mamba", "tiny")
    other = parity.compute(exact, ids, [LENGTH], "fp32")
    assert not parity.check(other, hidden, logits, LENGTH)["passed"]


def test_a_reference_survives_its_file(reference, tmp_path):
    path = reference_path(tmp_path, "mamba", "fp32")
    parity.save(path, reference)
    found = parity.load(path)
    assert (found.lengths, found.baseline) == (reference.lengths, reference.baseline)
    assert torch.equal(found.gold_hidden, reference.gold_hidden)
    assert found.gold_hidden.dtype == torch.float64
    assert torch.equal(found.baseline_logits, reference.baseline_logits)
    assert [file.name for file in path.parent.iterdir()] == ["mamba-fp32.safetensors"]


def test_a_reference_that_does_not_fit_gets_shorter(model, ids, monkeypatch):
    honest = parity._hidden
    monkeypatch.setattr(parity, "SHORTEST", 4)

    def cramped(model, ids):
        if ids.shape[1] > LENGTH // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, ids)

    monkeypatch.setattr(parity, "_hidden", cramped)
    short = parity.compute(model, ids, [8, LENGTH], "fp32")
    assert (short.length, short.lengths) == (LENGTH // 2, [8])
    hidden, logits, _ = outputs(model, ids)
    assert parity.check(short, hidden, logits, LENGTH)["passed"]


def test_where_hf_runs_out_of_memory_the_reference_is_the_baseline(model, ids, monkeypatch):
    honest = parity.use

    def without_hf(model, impl):
        if impl == "hf":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, impl)

    monkeypatch.setattr(parity, "use", without_hf)
    assert parity.compute(model, ids, [LENGTH], "fp32").baseline == "reference"


def test_an_error_that_is_not_of_memory_is_not_hidden(model, ids, monkeypatch):
    def broken(model, ids):
        raise RuntimeError("wrong shape")

    monkeypatch.setattr(parity, "_hidden", broken)
    with pytest.raises(RuntimeError, match="wrong shape"):
        parity.compute(model, ids, [LENGTH], "fp32")
