"""How fast this machine is at the parts of a plan, in a few seconds: the matrix rate, the bandwidth, and a few layers.

For every architecture, implementation and mode of a plan, the first two layers run at a short length; what they took,
over what `bench.cost` expects of them, corrects every cell of that kind. Nothing is kept: the next call measures again,
since a machine is as fast as what else runs on it permits. It happens in a process of its own, with the environment
of a worker: `python -m bench.calibrate` takes a plan as JSON and gives what `calibrate` returns.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import torch

from bench.availability import fate
from bench.cost import (
    forward_seconds,
    rates_of,
    size_of,
    token_seconds,
    training_seconds,
)
from bench.engines.node import environment, worker_settings
from bench.forward import Models
from bench.machine import measure_peaks
from bench.modes import bound
from bench.plan import Cell, Plan
from bench.slices import label

SECONDS = 6.0  # after which no further kind is measured
LAYERS = 2
TOKENS = 256
LARGEST = 5e7  # parameters of such a slice; drawing more takes longer than the rest
RUNS = 3  # the fastest counts
SLOW_S = 0.3  # one run of this is enough


def calibrated(plan):
    """As `calibrate`, in a process of its own; (None, {}) if that fails: the estimate is a rough one then."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench.calibrate"],
        input=json.dumps(plan.to_json()),
        env=environment(worker_settings(plan.options["threads"])),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        return None, {}
    peaks, factors = json.loads(ended.stdout.splitlines()[-1])
    return peaks, {tuple(kind): factor for kind, factor in factors}


def calibrate(plan):
    """(peaks, {(arch, impl, mode): measured / expected seconds}).

    A kind that there was no time for, or that fails, is as much slower as the others are in the median.
    """
    deadline = time.perf_counter() + SECONDS
    peaks = measure_peaks(plan.options["device"])
    rates, factors = rates_of(plan, peaks), {}
    models = Models(plan.options, plan.options["device"])
    every = kinds(plan)
    for kind, cell in every.items():
        if time.perf_counter() > deadline:
            break
        size = size_of(cell, plan.architectures)
        if size["total"] > LARGEST:
            continue
        work = {"decode": token_seconds, "train": training_seconds}.get(cell.mode, forward_seconds)
        try:
            seconds = fastest(models.of(LAYERS), cell, plan.options)
        except (RuntimeError, ValueError, NotImplementedError):
            continue
        factors[kind] = seconds / work(cell, size, rates)
    others = median(factors.values()) if factors else 1.0
    return peaks, dict.fromkeys(every, others) | factors


def kinds(plan):
    """{(arch, impl, mode): a short cell of two layers} of what is measured."""
    found = {}
    for cell in plan.cells:
        whole = plan.architectures[cell.arch]["sizes"]["layers"]
        kind = cell.arch, cell.impl, cell.mode
        if kind not in found and fate(cell, plan.options["device"])[0] == "measured":
            depth = label(plan.options["preset"], min(LAYERS, whole))
            found[kind] = replace(cell, preset=depth, seqlen=min(TOKENS, cell.seqlen), batch=1)
    return found


def fastest(models, cell, options):
    """Seconds of the fastest of a few runs of a cell, after one that compiles what is to be compiled."""
    vocabulary = options["vocabulary"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, cell.tokens), generator=generator).to(models.device)
    took = []
    with bound(models, cell, ids, options["logits"]) as (_, work):
        for _ in range(1 + RUNS):
            synchronize(models.device)
            start = time.perf_counter()
            work()
            synchronize(models.device)
            took.append(time.perf_counter() - start)
            work.reset()
            if len(took) > 1 and took[-1] > SLOW_S:
                break
    return min(took[1:])


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main():
    """Read a plan from standard input, and print what `calibrate` returns in the last line."""
    data = json.load(sys.stdin)
    data.pop("version")
    plan = Plan(cells=[Cell(**cell) for cell in data.pop("cells")], **data)
    torch.set_num_threads(plan.options["threads"])
    peaks, factors = calibrate(plan)
    print(json.dumps([peaks, list(factors.items())]))


if __name__ == "__main__":
    main()
