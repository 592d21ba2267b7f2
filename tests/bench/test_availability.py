import pytest

from bench.availability import fate, proof_cell
from bench.plan import MODES, Cell


@pytest.mark.parametrize("mode", ["decode", "train"])
def test_only_prefill_is_captured_in_a_graph(mode, monkeypatch):
    cell = Cell("llama", "torch", "tiny", 64, mode=mode, launch="graph")
    kind, reason = fate(cell, "cuda")
    assert kind == "unavailable"
    assert f"{mode} runs under --launch eager" in reason or "under --launch eager" in reason
    assert "CUDA device" in fate(cell, "cpu")[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_interpreter_proves_a_prefix_in_every_mode(mode):
    cell = Cell("llama", "triton", "tiny", 512, 4, mode=mode)
    kind, reason = fate(cell, "cpu")
    assert kind == "interpreted"
    assert "first 64" in reason
    assert (proof_cell(cell).seqlen, proof_cell(cell).batch, proof_cell(cell).mode) == (64, 1, mode)


def test_decoding_asks_for_the_operators_of_a_token(monkeypatch):
    def why(impl, operator, device):
        return "no such kernel" if operator == "selective_state_update" else ""

    monkeypatch.setattr("bench.availability.why_unavailable", why)
    mamba, llama = (Cell(arch, "cuda", "tiny", 64, mode="decode") for arch in ("mamba", "llama"))
    assert fate(mamba, "cpu") == ("unavailable", "selective_state_update: no such kernel")
    assert fate(llama, "cpu")[0] == "measured"
    assert fate(Cell("mamba", "cuda", "tiny", 64), "cpu")[0] == "measured"
