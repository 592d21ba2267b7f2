from dataclasses import replace

import pytest

from bench.cost import CPU, FIXED_S, Clock, forward_bytes, forward_seconds, sizes
from bench.plan import Cell
from models.build import build, parameter_counts


@pytest.fixture(scope="module")
def architectures():
    models = {arch: build(arch, "tiny") for arch in ("mamba", "llama")}
    return {a: {"sizes": sizes(m.config, parameter_counts(m))} for a, m in models.items()}


@pytest.mark.parametrize("arch", ["mamba", "llama"])
@pytest.mark.parametrize("impl", ["hf", "torch"])
def test_longer_cells_cost_more(architectures, arch, impl):
    size = architectures[arch]["sizes"]
    cells = [Cell(arch, impl, "tiny", n) for n in (128, 256, 4096)]
    seconds = [forward_seconds(cell, size, CPU) for cell in cells]
    held = [forward_bytes(cell, size) for cell in cells]
    assert seconds == sorted(set(seconds))
    assert held == sorted(set(held))


def test_eager_attention_holds_the_square(architectures):
    size = architectures["llama"]["sizes"]
    cell = Cell("llama", "hf", "tiny", 4096)
    assert forward_bytes(cell, size) > 4 * size["heads"] * 4096**2
    assert forward_bytes(replace(cell, impl="torch"), size) < 4 * 4096**2


def test_the_time_left_follows_what_was_measured(architectures):
    clock = Clock(architectures, CPU, budget_s=0.3)
    cells = [Cell("mamba", "hf", "tiny", n) for n in (128, 256)]
    other = Cell("llama", "torch", "tiny", 128)
    guess = clock.expect(cells[1])
    clock.observe(cells[0], 100.0)
    assert clock.expect(cells[0]) == 100.0
    assert clock.expect(cells[1]) > 10 * guess  # a relative of a slow cell is slow
    clock.observe(other, 1.0)
    assert clock.expect(other) == 1.0
    assert clock.expect(cells[0]) == 100.0
    assert clock.remaining({0: [], 1: []}) == 0
    assert clock.remaining({0: [other], 1: [other]}) == 2 * (FIXED_S + 1.0)
    assert clock.remaining({0: [other], 1: [other]}, begun={0}) == FIXED_S + 2.0
