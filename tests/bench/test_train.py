"""A training step: its gradients are compared before it is timed, and a wrong one is seen."""

import pytest
import torch

from bench import gradients, references
from bench.modes import bound
from bench.parity import failure
from bench.plan import Cell, Plan, gradient_path
from bench.references import References, Unproven, gradient_keys, missing
from bench.train import TrainingStep
from models.bind import use
from models.build import build
from tests.bench.test_decode import OneModel

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
    return gradients.compute(model, ids, "fp32")


@pytest.fixture
def outputs(model, ids):
    """{impl: (logits, gradients)} of a step, made on demand."""

    def run(impl="torch", ids=ids):
        cell = Cell(model.config.model_type, impl, "tiny", ids.shape[1], len(ids), mode="train")
        with bound(OneModel(model), cell, ids, "last") as (_, work):
            assert model.training
            assert isinstance(work, TrainingStep)
            logits, found, kernels = work.outputs()
            assert kernels
            return logits, {name: gradient.clone() for name, gradient in found.items()}

    return run


@pytest.mark.parametrize("impl", ["torch", "hf"])
def test_an_honest_step_passes(model, ids, reference, outputs, impl):
    found = gradients.check(reference, *outputs(impl), ids)
    assert found["passed"], failure(found)
    assert (found["seqlen"], found["baseline"]) == (LENGTH, "hf")
    for name in ("loss", "gradient of embedding", "gradient of final norm"):
        assert name in found["outputs"]
    mixer = {"mamba": "A_log", "llama": "q_proj.weight"}[model.config.model_type]
    assert {f"gradient of {place} {mixer}" for place in ("first", "last")} <= set(found["outputs"])


def test_a_binding_leaves_neither_gradients_nor_training_mode(model, outputs):
    outputs()
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_wrong_gradient_is_caught_and_named(ids, reference, outputs):
    logits, honest = outputs()
    for name, gradient in honest.items():
        wrong = honest | {name: gradient * 1.0001}
        found = gradients.check(reference, logits, wrong, ids)
        assert not found["passed"], name
        assert f"of gradient of {name} " in failure(found)
        assert not gradients.check(reference, logits, honest | {name: None}, ids)["passed"]


def test_the_baseline_of_a_long_scan_is_the_chunked_one(ids, monkeypatch):
    model, ids = build("mamba", "tiny"), ids[:1, :20]
    short = gradients.compute(model, ids, "fp32")
    monkeypatch.setattr(gradients, "LONG", 16)
    long = gradients.compute(model, ids, "fp32")
    assert (short.baseline_impl, long.baseline_impl) == ("hf", "torch")
    for name, gold in short.gold.items():
        assert torch.equal(long.gold[name], gold)
    assert not gradients.is_long("llama", 10_000)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_logit_of_any_position_is_caught(ids, reference, outputs, wrong):
    logits, honest = outputs()
    logits[1, 3, ids[1, 4]] += wrong
    found = gradients.check(reference, logits, honest, ids)
    assert not found["passed"]
    assert "error of loss" in failure(found)


def test_a_loss_of_the_token_itself_is_caught(model, ids, reference):
    class Unshifted(TrainingStep):
        def _forward(self):
            return self.model(self.ids, labels=self.ids.roll(1, 1), use_cache=False)

    with use(model, "torch"):
        model.train()
        found = Unshifted(model, ids).outputs()[:2]
        checked = gradients.check(reference, *found, ids)
        model.zero_grad()
        model.eval()
    assert not checked["passed"]


def test_gradients_that_add_up_are_caught(model, ids, reference):
    with use(model, "torch"):
        step = TrainingStep(model, ids)
        step()  # and no reset
        logits, found, _ = step.outputs()
        assert not gradients.check(reference, logits, found, ids)["passed"]
        step.reset()
        logits, found, _ = step.outputs()
        assert gradients.check(reference, logits, found, ids)["passed"]
        step.reset()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_prefix_has_other_gradients(ids, reference, outputs):
    found = outputs(ids=ids[:, :8])[1]
    longer, _ = outputs()
    assert not gradients.check(reference, longer, found, ids)["passed"]


def test_the_loss_is_transformers_own(model, ids, reference):
    with torch.no_grad(), use(model, "hf"):
        loss = model(ids, labels=ids).loss.item()
    assert reference.baseline["loss"].mean().item() == pytest.approx(loss, rel=1e-6)
    assert reference.gold["loss"].dtype == torch.float64


@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_half_precision_has_a_reference_of_its_own_rounding(arch, ids):
    model, ids = build(arch, "tiny", dtype=torch.bfloat16), ids[:, :16]
    reference = gradients.compute(model, ids, "bf16")
    cell = Cell(arch, "torch", "tiny", 16, 2, "bf16", "train")
    with bound(OneModel(model), cell, ids, "last") as (_, work):
        logits, found, _ = work.outputs()
        assert gradients.check(reference, logits, found, ids)["passed"]
        wrong = found | {"final norm": found["final norm"] * 1.02}
        assert not gradients.check(reference, logits, wrong, ids)["passed"]


def test_a_reference_is_small_and_survives_its_file(reference, tmp_path):
    path = gradient_path(tmp_path, "mamba", "fp32", LENGTH, 2)
    gradients.save(path, reference)
    assert path.stat().st_size < 8 << 20
    found = gradients.load(path)
    assert found.baseline_impl == reference.baseline_impl
    for side in ("gold", "baseline"):
        ours, theirs = getattr(found, side), getattr(reference, side)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dropout_is_refused(ids):
    model = build("llama", "tiny")
    model.config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        TrainingStep(model, ids)


def cells_of(arch, impl="torch", lengths=(8, LENGTH)):
    return [Cell(arch, impl, "tiny", n, 2, mode="train") for n in lengths]


@pytest.fixture
def run(model, ids, tmp_path):
    arch = model.config.model_type
    sizes = {"layers": 2, "hidden": 64, "inner": 128, "heads": 4, "dstate": 16}
    architectures = {arch: {"sizes": sizes | {"vocab": 32_000, "total": 4_000_000}}}
    plan = Plan(cells_of(arch), 1, 0, "lab", "tiny", {"device": "cpu"}, architectures)
    (tmp_path / "references").mkdir()
    return References(tmp_path, plan, OneModel(model), ids)


def test_every_length_has_a_reference_of_its_own(model, ids, run, outputs, tmp_path):
    cells = cells_of(model.config.model_type)
    steps = missing(tmp_path, cells, "cpu")
    assert [step[3:] for step in steps] == [("8", "2"), (str(LENGTH), "2")]
    for step in steps:
        run.compute(step, cells)
    assert missing(tmp_path, cells, "cpu") == []
    for cell in cells:
        run.require(cell)
        part = ids[:, : cell.seqlen]
        assert run.check(cell, *outputs(ids=part))["passed"]


def test_without_memory_for_a_reference_a_cell_is_not_proven(model, run, tmp_path, monkeypatch):
    cell = cells_of(model.config.model_type)[0]
    monkeypatch.setattr(references, "free_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(gradients, "compute", lambda *args: pytest.fail("it was computed"))
    (step, _) = missing(tmp_path, cells_of(cell.arch), "cpu")
    run.compute(step, [cell])
    with pytest.raises(Unproven, match="at 8 tokens: it would take about"):
        run.require(cell)


def test_running_out_of_memory_is_an_excuse_and_another_error_is_none(model, run, monkeypatch):
    cell = cells_of(model.config.model_type)[0]
    step = ("gradients", cell.arch, cell.dtype, "8", "2")

    def fail(error):
        def compute(*args):
            raise error

        monkeypatch.setattr(gradients, "compute", compute)
        with pytest.raises(type(error)):
            run.compute(step, [cell])

    fail(ZeroDivisionError("no"))
    with pytest.raises(RuntimeError, match=r"see log\.txt"):
        run.require(cell)
    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(Unproven, match="memory ran out"):
        run.require(cell)


def test_interpreted_cells_share_the_short_reference(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cells = cells_of("llama", "triton", (8, 64, 512)) + cells_of("llama", "torch", (8,))
    want = [("llama", "fp32", 8, 1), ("llama", "fp32", 64, 1), ("llama", "fp32", 8, 2)]
    assert gradient_keys(cells, "cpu") == want
    assert gradient_keys([Cell("llama", "torch", "tiny", 8)], "cpu") == []
