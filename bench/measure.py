"""The time of a forward, a token or a training step: warm until stable, then sample until the interval is narrow or
the budget is spent.

Every process compiles and warms each implementation up before any cell, so a first run of a cell differs little from
the next: in 60 cells of 0.1 to 1.3 s of processor time on two cores it took 1.00 times the median of three more
(quartiles 0.98 and 1.02). A slow one therefore needs no further warm-up, and one slower still is the only
sample: another round says more than a second run in the same process.

Every sample is kept. Host wall time ends with the device idle; device time lies between two CUDA events. A pool of
iterations of one process is no evidence by itself: intervals of the report run over rounds, and the one here
only decides when to stop.
"""

import gc
import math
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from profiles.ranges import annotate

PRECISION = 0.01  # half-width of the 95 % t interval of the mean, relative to the median
SOLE_S = {"cpu": 0.5, "cuda": 2.0}  # on a GPU a first run may hold milliseconds of allocations
STEADY = 0.05  # two successive runs that differ by less end the warm-up


@dataclass(frozen=True)
class Rules:
    """When to stop.

    Attributes:
        budget_s: seconds of sampling of one cell in one round; the run that exceeds it is the last.
        min_samples: taken even beyond the budget, unless one run alone exceeds it.
        max_warmups: runs before sampling, beside the very first one.
        slow_s: a first run longer than this needs no further warm-up.
        sole_s: a first run longer than this is the only sample. It lies far above the budget, lest a quick cell that
            was disturbed be judged by the disturbed run.
        exact: (warm-ups, samples) of a protocol that fixes both, or None.
    """

    budget_s: float = 1.0
    min_samples: int = 3
    max_samples: int = 1000
    max_warmups: int = 10
    slow_s: float = math.inf
    sole_s: float = math.inf
    exact: tuple[int, int] | None = None


@dataclass(frozen=True)
class Samples:
    """Raw times in milliseconds, and what ended the sampling."""

    wall: list[float]
    device: list[float]
    warmups: int
    stopped_by: str  # converged, budget, max_samples or protocol


def paper_rules():
    """What the paper did: 2 warm-ups and 5 runs."""
    return Rules(exact=(2, 5))


def stopwatch(device):
    """A function that runs `forward` once and gives (wall seconds, device seconds or None)."""
    return _time_cuda if torch.device(device).type == "cuda" else _time_cpu


def resetting(watch, reset):
    """The same stopwatch, calling `reset` after every run, outside of what it times."""

    def timed(forward):
        took = watch(forward)
        reset()
        return took

    return timed


def _time_cpu(forward):
    start = time.perf_counter()
    forward()
    return time.perf_counter() - start, None


def _time_cuda(forward):
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    before.record()
    forward()
    after.record()
    torch.cuda.synchronize()
    return time.perf_counter() - start, before.elapsed_time(after) / 1e3


def sample(forward, rules, watch, first=None):
    """Time `forward`, a callable without arguments, which does the same at every call.

    Args:
        rules: when to stop.
        watch: as `stopwatch` gives it.
        first: what `watch` gave for a run before (the parity forward): the first warm-up, or the sample if it is slow.
    """
    if first is not None and is_sole(first, rules):
        return _samples([first], 0, "budget")
    with no_collection():
        if rules.exact:
            warmups, count = rules.exact
            for _ in range(warmups):
                watch(forward)
            times = [rep(forward, watch) for _ in range(count)]
            return _samples(times, warmups, "protocol")
        warmups = _warm(forward, rules, watch, first)
        times = []
        while not (reason := stop_reason([wall for wall, _ in times], rules)):
            times.append(rep(forward, watch))
    return _samples(times, warmups, reason)


def is_sole(first, rules):
    """Whether a first run, as `watch` gave it, is all that there will be."""
    return not rules.exact and first[0] > rules.sole_s


def stop_reason(walls, rules):
    """Why sampling is over after these wall times in seconds; empty to go on."""
    spent, n = sum(walls), len(walls)
    if n == 0:
        return ""
    if n >= rules.min_samples and half_width(walls) <= PRECISION * statistics.median(walls):
        return "converged"
    if n >= rules.max_samples:
        return "max_samples"
    if spent >= rules.budget_s and (n >= rules.min_samples or walls[0] >= rules.budget_s):
        return "budget"
    return ""


def half_width(values):
    """Half the 95 % t interval of the mean of at least two values."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return math.inf
    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)


def _warm(forward, rules, watch, first):
    """Run until two successive runs agree; returns how many runs there were, the one before included."""
    warmups = 0 if first is None else 1
    last, spent = first[0] if first else None, 0.0
    if last is not None and last > rules.slow_s:
        return warmups
    for _ in range(rules.max_warmups):
        wall, _ = watch(forward)
        warmups += 1
        spent += wall
        if last is not None and abs(wall / last - 1) < STEADY:
            break
        if spent >= rules.budget_s:
            break
        last = wall
    return warmups


def rep(forward, watch):
    """One timed run, as a range for profilers."""
    with annotate("rep", category="cell"):
        return watch(forward)


def _samples(times, warmups, reason):
    wall = [1e3 * seconds for seconds, _ in times]
    device = [1e3 * seconds for _, seconds in times if seconds is not None]
    return Samples(wall, device, warmups, reason)


@contextmanager
def no_collection():
    """Keep the garbage collector from running inside a sample."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
