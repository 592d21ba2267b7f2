"""A decoded token: the same one again and again, and a gate that sees when it is not."""

import pytest
import torch

from bench import parity
from bench.decode import DecodedToken
from bench.modes import bound
from bench.plan import Cell, Plan
from bench.references import References, Unproven
from models.bind import use
from models.build import build

LENGTHS = (1, 7, 24)
CACHE = {
    "mamba": 2 * 2 * 128 * (16 + 4) * 4,
    "llama": 2 * 2 * 2 * 64 * 4,
}  # of two rows: in all, a token
ARCHS = ("mamba", "llama")


@pytest.fixture(scope="module", params=ARCHS)
def model(request):
    return build(request.param, "tiny")


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 32_000, (2, max(LENGTHS) + 1), generator=generator)


@pytest.fixture(scope="module")
def reference(model, ids):
    return parity.compute(model, ids, [n + 1 for n in LENGTHS], "fp32")


def gate(model, ids, reference, seqlen, impl="torch", make=DecodedToken):
    with torch.no_grad(), use(model, impl):
        hidden, logits, kernels = make(model, ids[:, : seqlen + 1]).outputs()
    assert kernels
    return parity.check_token(reference, hidden, logits, seqlen)


@pytest.mark.parametrize("seqlen", LENGTHS)
@pytest.mark.parametrize("impl", ["torch", "hf"])
def test_an_honest_token_passes_after_every_planned_context(model, ids, reference, impl, seqlen):
    found = gate(model, ids, reference, seqlen, impl)
    assert found["passed"], parity.failure(found)
    assert found["seqlen"] == seqlen
    assert found["outputs"].keys() == {"hidden", "logits"}
    assert gate(model, ids[:1], reference, seqlen, impl)["passed"]


@pytest.mark.parametrize("impl", ["torch", "hf"])
def test_every_repetition_decodes_the_same_token_and_nothing_grows(model, ids, impl):
    arch = model.config.model_type
    with torch.no_grad(), use(model, impl):
        token = DecodedToken(model, ids)
        first, held = token.outputs()[:2], None
        for _ in range(5):
            token.reset()
            held = held or token.held()
            again = token.outputs()[:2]
            assert all(map(torch.equal, first, again))
        token.reset()
    assert token.held() == held
    assert token.cache_bytes == CACHE[arch] * (1 if arch == "mamba" else max(LENGTHS))


def sabotage(**methods):
    return type("Sabotaged", (DecodedToken,), methods)


def test_a_cache_that_is_not_put_back_is_caught(model, ids, reference):
    lazy = sabotage(reset=lambda self: None)
    assert not gate(model, ids, reference, 24, make=lazy)["passed"]


@pytest.mark.parametrize("name", ["conv_states", "recurrent_states"])
def test_a_state_that_is_not_put_back_is_caught(ids, name):
    model = build("mamba", "tiny")
    reference = parity.compute(model, ids, [25], "fp32")

    def reset(self):
        kept = {id(getattr(layer, name)) for layer in self.cache.layers}
        self._states = [entry for entry in self._states if id(entry[0]) not in kept]
        DecodedToken.reset(self)

    assert not gate(model, ids, reference, 24, make=sabotage(reset=reset))["passed"]


def test_a_context_that_is_one_token_short_is_caught(model, ids, reference):
    def read(self, part):
        return DecodedToken._read(self, part[:, 1:] if part.shape[1] > 1 else part)

    assert not gate(model, ids, reference, 24, make=sabotage(_read=read))["passed"]


def test_a_wrong_position_is_caught(ids):
    model = build("llama", "tiny")
    reference = parity.compute(model, ids, [25], "fp32")

    def read(self, part):
        length = self.cache.get_seq_length()
        at = torch.arange(length, length + part.shape[1])[None] + (part.shape[1] == 1)
        return self.model(part, position_ids=at, past_key_values=self.cache, use_cache=True).logits

    assert not gate(model, ids, reference, 24, make=sabotage(_read=read))["passed"]


def test_another_token_is_caught(model, ids, reference):
    changed = ids.clone()
    changed[1, -1] += 1
    assert not gate(model, changed, reference, 24)["passed"]


class OneModel:
    device = torch.device("cpu")

    def __init__(self, model):
        self.model = model

    def get(self, arch, dtype):
        return self.model


def test_the_cell_is_bound_for_its_mode(model, ids):
    cell = Cell(model.config.model_type, "torch", "tiny", 24, 2, mode="decode")
    with bound(OneModel(model), cell, ids, "last") as (found, work):
        assert found is model
        assert isinstance(work, DecodedToken)
        assert not model.training
        assert work().shape == (2, 1, 32_000)


def test_a_context_beyond_the_reference_is_not_proven(model, ids, tmp_path):
    arch = model.config.model_type
    cells = [Cell(arch, "torch", "tiny", n, 2, mode="decode") for n in LENGTHS]
    plan = Plan(cells, 1, 0, "lab", "tiny", {"device": "cpu"})
    (tmp_path / "references").mkdir()
    references = References(tmp_path, plan, OneModel(model), ids[:, :10])
    with pytest.raises(RuntimeError, match=r"no reference .* see log\.txt"):
        references.require(cells[0])
    references.compute(("reference", arch, "fp32"), cells)
    for cell in cells[:2]:
        references.require(cell)
    with pytest.raises(Unproven, match="ends at 10 tokens") as error:
        references.require(cells[2])
    assert "25 is needed" in str(error.value)
    assert "\n" not in str(error.value)
