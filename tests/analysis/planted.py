"""Worlds with known effects, for the analyses that split a difference; nothing is written to disk."""

from pathlib import Path

from analysis.summary import Results
from bench.records import Run
from tests.analysis.simulate import MACHINE, MIB, Simulation

# so fast at copying and at exponentials that a floor is its matrix work
PEAKS = {"copy_bytes_per_s": 1e18, "exp_per_s": 1e18, "matmul_flops": {"fp32": 1e12, "bf16": 8e12}}


def world(costs, peaks=PEAKS, **options):
    """A Simulation whose times are proportional to length: {(arch, impl): ms a token}."""
    options.setdefault("seqlens", (1024,))
    return Simulation(
        costs={cell: (0.0, cost, 0.0) for cell, cost in costs.items()},
        memory={cell: (MIB, 1e6 * cost, 0.0) for cell, cost in costs.items()},
        machine=MACHINE | {"peaks": peaks},
        **options,
    )


def results(*simulations, drop=()):
    """The Results of simulations that were measured together.

    Args:
        simulations: each a Simulation, or (Simulation, {field of the cell: value}).
        drop: cells as (arch, impl, launch, dtype) that were not planned.
    """
    records, plan = [], None
    for simulation in simulations:
        simulation, changed = simulation if isinstance(simulation, tuple) else (simulation, {})
        plan = plan or simulation.plan()
        for record in simulation.records():
            record["cell"] |= changed
            cell = record["cell"]
            if (cell["arch"], cell["impl"], cell["launch"], cell["dtype"]) not in drop:
                records.append(record)
    return Results(Run(Path("run"), plan, simulation.machine, records))


def factors(arch=2.0, impl=5.0, interaction=1.0, impls=("hf", "cuda")):
    """Costs of a 2 x 2 world: llama / mamba = arch on average, the first implementation / the second = impl."""
    first, second = impls
    return {
        ("llama", first): 0.1 * arch * impl * interaction**0.5,
        ("llama", second): 0.1 * arch / interaction**0.5,
        ("mamba", first): 0.1 * impl / interaction**0.5,
        ("mamba", second): 0.1 * interaction**0.5,
    }
