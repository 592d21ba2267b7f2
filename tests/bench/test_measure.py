"""Sampling with a clock that tells prepared times, and the memory figures of small forwards."""

import gc
import math
import random
import statistics

import pytest
import torch

from bench.gauges import Gauges
from bench.measure import PRECISION, Rules, half_width, paper_rules, sample, stop_reason, stopwatch
from bench.memory import (
    allocator_peak,
    is_out_of_memory,
    peak_rss,
    reset_peak_rss,
    running_peak,
    weight_bytes,
)


class FakeClock:
    """Each run takes the next of the prepared seconds."""

    def __init__(self, seconds):
        self.seconds, self.runs = iter(seconds), 0

    def __call__(self, forward):
        forward()
        self.runs += 1
        return next(self.seconds), None


def noisy(around, relative, seed=0):
    rng = random.Random(seed)
    while True:
        yield around * rng.gauss(1, relative)


def forever(value):
    while True:
        yield value


nothing = lambda: None


def test_steady_runs_converge_after_the_smallest_number():
    clock = FakeClock(forever(0.01))
    samples = sample(nothing, Rules(), clock, first=(0.5, None))
    assert (samples.stopped_by, len(samples.wall)) == ("converged", 3)
    assert samples.warmups == 3  # the parity forward, one that differs from it, one that agrees
    assert samples.wall == pytest.approx([10.0] * 3)
    assert samples.device == []
    assert clock.runs == 2 + 3


def test_a_noisy_cell_ends_with_its_budget():
    samples = sample(nothing, Rules(budget_s=1.0), FakeClock(noisy(0.05, 0.3)), first=(0.05, None))
    assert samples.stopped_by == "budget"
    assert 1000 <= sum(samples.wall) < 1000 + max(samples.wall)


def test_a_converged_interval_is_as_narrow_as_it_says():
    samples = sample(nothing, Rules(budget_s=1e9), FakeClock(noisy(0.05, 0.03)), first=(0.05, None))
    assert samples.stopped_by == "converged"
    assert half_width(samples.wall) <= PRECISION * statistics.median(samples.wall)
    assert half_width(samples.wall[:-1]) > PRECISION * statistics.median(samples.wall[:-1])


def test_the_number_of_samples_has_a_cap():
    rules = Rules(budget_s=math.inf, max_samples=20)
    assert sample(nothing, rules, FakeClock(noisy(1.0, 0.5))).stopped_by == "max_samples"


def test_a_very_slow_run_is_its_own_sample():
    clock = FakeClock([])
    samples = sample(nothing, Rules(budget_s=0.3, sole_s=0.5), clock, first=(4.0, None))
    assert (samples.stopped_by, samples.warmups, samples.wall) == ("budget", 0, [4000.0])
    assert clock.runs == 0
    assert sample(nothing, Rules(sole_s=2.0), clock, first=(3.0, 2.9)).device == [2900.0]


def test_a_slow_run_is_warm_up_enough():
    clock = FakeClock(forever(0.4))
    samples = sample(nothing, Rules(0.3, slow_s=0.3, sole_s=0.5), clock, first=(0.45, None))
    assert (samples.stopped_by, samples.warmups, samples.wall) == ("budget", 1, [400.0])
    assert clock.runs == 1


def test_where_first_runs_do_not_count_a_slow_cell_is_sampled_once():
    clock = FakeClock(forever(4.0))
    samples = sample(nothing, Rules(budget_s=0.3), clock, first=(4.0, None))
    assert (samples.stopped_by, samples.warmups, samples.wall) == ("budget", 2, [4000.0])


def test_a_cell_slower_than_its_budget_in_sum_still_gets_three_samples():
    samples = sample(nothing, Rules(budget_s=0.3), FakeClock(noisy(0.2, 0.2)), first=(0.2, None))
    assert len(samples.wall) == 3


def test_warming_up_ends_however_unsteady():
    clock = FakeClock(2.0**-n for n in range(1000))
    samples = sample(nothing, Rules(budget_s=100.0, max_samples=1), clock)
    assert samples.warmups == Rules().max_warmups


def test_warming_up_ends_with_the_budget():
    clock = FakeClock(noisy(1.0, 0.4))
    samples = sample(nothing, Rules(budget_s=2.0, max_samples=1), clock, first=(9.0, None))
    assert samples.warmups <= 4


def test_the_paper_protocol_is_exact():
    calls = []
    samples = sample(
        lambda: calls.append(1), paper_rules(), FakeClock(noisy(1.0, 0.5)), first=(1.0, None)
    )
    assert (samples.stopped_by, samples.warmups, len(samples.wall)) == ("protocol", 2, 5)
    assert len(calls) == 7


def test_nothing_stops_before_the_first_sample():
    assert stop_reason([], Rules(budget_s=0.0001)) == ""


def test_the_collector_is_off_inside_samples_and_on_again_after_a_failure():
    seen = []
    sample(lambda: seen.append(gc.isenabled()), Rules(), FakeClock(forever(1.0)))
    assert not any(seen)
    assert gc.isenabled()

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        sample(fail, Rules(), FakeClock(forever(1.0)))
    assert gc.isenabled()


def test_half_width_is_students():
    assert half_width([1.0]) == math.inf
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_the_stopwatch_of_a_cpu_has_no_device_time():
    wall, device = stopwatch("cpu")(lambda: sum(range(1000)))
    assert wall > 0
    assert device is None


def test_running_peak_is_the_largest_prefix_sum():
    assert running_peak([5, 5, -5, 3, -8]) == 10
    assert running_peak([-5, 3]) == 0
    assert running_peak([]) == 0


def test_the_allocator_peak_counts_what_lives_at_once():
    size = 1 << 20
    a = torch.ones(size)

    def forward():
        b = a + 1  # 4 MiB
        c = b + 1  # 8 MiB
        del b
        return c + 1  # 8 MiB

    assert allocator_peak(forward) == pytest.approx(8 << 20, rel=0.01)


def test_a_tied_head_weighs_once():
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(8, 8, bias=False), "b": torch.nn.Linear(8, 8, bias=False)}
    )
    assert weight_bytes(model) == 2 * 8 * 8 * 4
    model["b"].weight = model["a"].weight
    assert weight_bytes(model) == 8 * 8 * 4


def test_the_peak_of_the_resident_size_rises_and_is_reset():
    if not reset_peak_rss():
        pytest.skip("the system does not permit a reset of the peak")
    before = peak_rss()
    block = torch.ones(1 << 25)
    assert peak_rss() > before + (100 << 20)
    del block
    reset_peak_rss()
    assert peak_rss() < before + (100 << 20)


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
            ),
            True,
        ),
        (RuntimeError("shapes do not match"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, yes):
    assert is_out_of_memory(error) == yes


def test_torch_says_out_of_memory_as_expected():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_a_cpu_has_clocks_and_no_energy():
    gauges = Gauges("cpu")
    assert gauges.clocks().keys() == {"cpu_mhz", "load_1min"}
    assert gauges.energy_per_run(nothing) is None
    assert gauges.used_bytes() is None
