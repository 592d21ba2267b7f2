from dataclasses import replace

import pytest

from bench.cost import (
    CPU,
    FIXED_S,
    Clock,
    cache_bytes,
    cell_seconds,
    forward_bytes,
    forward_seconds,
    gradient_bytes,
    held_bytes,
    reference_seconds,
    sizes,
    token_seconds,
    training_seconds,
)
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


@pytest.mark.parametrize("arch", ["mamba", "llama"])
def test_modes_cost_what_they_do(architectures, arch):
    size = architectures[arch]["sizes"]
    prefill, decode, train = (
        Cell(arch, "torch", "tiny", 2048, mode=mode) for mode in ("prefill", "decode", "train")
    )
    token, step = token_seconds(decode, size, CPU), training_seconds(train, size, CPU)
    assert token < forward_seconds(prefill, size, CPU) < step
    assert cell_seconds(decode, size, CPU, 0.01) > forward_seconds(prefill, size, CPU) + token
    held = [held_bytes(cell, size) for cell in (prefill, decode, train)]
    assert held == sorted(held)
    grows = cache_bytes(replace(decode, seqlen=4096), size) / cache_bytes(decode, size)
    assert grows == (2 if arch == "llama" else 1)
    needs = [gradient_bytes(arch, n, 1, size) for n in (512, 1024)]
    assert needs[1] > needs[0] > 4 * 512 * size["vocab"] * 8
    key = arch, "fp32", 512, 1
    assert reference_seconds([key, key], architectures, CPU) == 2 * reference_seconds(
        [key], architectures, CPU
    )


def test_a_mode_says_nothing_of_another(architectures):
    clock = Clock(architectures, CPU, budget_s=0.3)
    decode, train = (Cell("mamba", "hf", "tiny", 128, mode=m) for m in ("decode", "train"))
    guess = clock.expect(train)
    clock.observe(decode, 100.0)
    assert clock.expect(train) == guess
