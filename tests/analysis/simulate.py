"""A run directory from a simulated clock: known costs, known noise, the record format of the sweep.

time(L) = (a + b L + c L^2) x drift(round, order) x process(round) x sample noise
"""

import itertools
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

HALF_OCTAVES = (128, 181, 256, 362, 512, 724, 1024, 1448, 2048)
MIB = 1 << 20

# ms: a + b L + c L^2, the shape of what a 2-core CPU gives
COSTS = {
    ("mamba", "hf"): (20.0, 1.2, 0.0),
    ("mamba", "cpu"): (8.0, 0.12, 0.0),
    ("llama", "hf"): (6.0, 0.07, 6e-5),
    ("llama", "cpu"): (5.0, 0.06, 2e-5),
}
MEMORY = {  # bytes beyond the weights
    ("mamba", "hf"): (2 * MIB, 90_000, 0.0),
    ("mamba", "cpu"): (1 * MIB, 20_000, 0.0),
    ("llama", "hf"): (1 * MIB, 12_000, 32.0),
    ("llama", "cpu"): (1 * MIB, 12_000, 0.0),
}
FURTHER = {  # of other architectures, which a Simulation has where its `further` names them
    ("mamba2", "hf"): (15.0, 0.5, 0.0),
    ("mamba2", "cpu"): (7.0, 0.09, 0.0),
    ("hybrid", "hf"): (9.0, 0.7, 3e-5),
    ("hybrid", "cpu"): (6.0, 0.10, 1e-5),
}
FURTHER_MEMORY = {
    ("mamba2", "hf"): (2 * MIB, 50_000, 0.0),
    ("mamba2", "cpu"): (1 * MIB, 15_000, 0.0),
    ("hybrid", "hf"): (2 * MIB, 50_000, 16.0),
    ("hybrid", "cpu"): (1 * MIB, 16_000, 0.0),
}
WEIGHTS = {
    "mamba": 29_946_368 * 4,
    "llama": 53_748_224 * 4,
    "mamba2": 120 * MIB,
    "hybrid": 200 * MIB,
}
KERNELS = {
    "mamba": {"selective_scan": "numba.selective_scan", "causal_conv1d": "numba.causal_conv1d"},
    "llama": {"causal_attention": "torch.sdpa.flash"},
    "mamba2": {"ssd_scan": "numba.ssd_scan", "causal_conv1d": "numba.causal_conv1d"},
    "hybrid": {"selective_scan": "numba.selective_scan", "causal_attention": "torch.sdpa.flash"},
}
MACHINE = {
    "platform": "Linux", "python": "3.11.2", "cpu": "simulated", "cores": 2, "memory_bytes": 8 << 30,
    "gpu": None, "versions": {"torch": "2.13.0", "triton": "3.7.1", "transformers": "5.17.0"},
    "git": {"revision": "0" * 40, "dirty": False}, "tf32": False, "threads": 2,
}  # fmt: skip


@dataclass
class Simulation:
    """What to simulate. Noise is the standard deviation of the logarithm, within and between processes."""

    costs: dict = field(default_factory=lambda: dict(COSTS))
    memory: dict = field(default_factory=lambda: dict(MEMORY))
    seqlens: tuple = HALF_OCTAVES
    rounds: int = 5
    samples: int = 7
    within: float = 0.005
    between: float = 0.01
    drift: float = 0.0  # of the logarithm over one round, shared by all of its cells
    out_of_memory: dict = field(
        default_factory=dict
    )  # (arch, impl) -> first seqlen that does not fit
    unavailable: dict = field(default_factory=dict)  # impl -> reason
    interpreted: tuple = ()
    machine: dict = field(default_factory=lambda: dict(MACHINE))
    options: dict = field(default_factory=dict)
    dtype: str = "fp32"
    modes: tuple = ("prefill",)  # with the same costs
    # architectures beside those of `costs`, whose records they leave as they are; at one more length, twice the last
    further: tuple = ()
    seed: int = 0

    def time(self, arch, impl, seqlen):
        a, b, c = self.costs[arch, impl]
        return a + b * seqlen + c * seqlen**2

    def records(self):
        rng = np.random.default_rng(self.seed)
        order = random.Random(self.seed)
        rows = [row for impl in self.unavailable for row in self._unmeasured(impl, "unavailable")]
        rows += [row for impl in self.interpreted for row in self._unmeasured(impl, "interpreted")]
        cells = self._cells()
        for round_ in range(self.rounds):
            order.shuffle(cells)
            for position, (arch, impl, seqlen, mode) in enumerate(cells):
                out = seqlen >= self.out_of_memory.get((arch, impl), float("inf"))
                status = "oom" if out else "ok"
                row = self._record(arch, impl, seqlen, status, round_, position, mode=mode)
                if not out:
                    level = self.time(arch, impl, seqlen) * np.exp(
                        self.drift * position / len(cells) + rng.normal(0, self.between)
                    )
                    wall = level * np.exp(rng.normal(0, self.within, self.samples))
                    row |= self._measured(arch, impl, seqlen, wall.tolist(), mode)
                rows.append(row)
        return rows + (self._others().records() if self.further else [])

    def plan(self):
        cells = [self._cell(*cell) for cell in self._cells()]
        if self.further:
            cells += self._others().plan()["cells"]
        sizes = {"mamba": (29_946_368, 16_384_000), "llama": (53_748_224, 32_768_000)}
        sizes |= dict.fromkeys(self.further, (40_000_000, 16_384_000))
        return {
            "version": 1, "created": "2026-11-21T12:00:00+00:00", "command": "python -m bench.sweep",
            "protocol": "lab", "seed": self.seed, "rounds": self.rounds, "preset": "paper-50m",
            "architectures": {
                arch: {"total": total, "embedding": e, "other": total - e}
                for arch, (total, e) in sizes.items()
            },
            "tokens": {"sha256": "0" * 64, "sessions": ["session-000"], "padded": {}},
            "options": self.options, "cells": cells,
        }  # fmt: skip

    def _others(self):
        costs = {key: cost for key, cost in FURTHER.items() if key[0] in self.further}
        lengths = (*self.seqlens, 2 * self.seqlens[-1])
        return replace(
            self,
            costs=costs,
            memory=FURTHER_MEMORY,
            further=(),
            seed=self.seed + 1,
            seqlens=lengths,
        )

    def write(self, folder):
        """Write plan.json, machine.json and records.jsonl to `folder`; returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(self.plan()))
        (folder / "machine.json").write_text(json.dumps(self.machine))
        lines = (json.dumps(row) + "\n" for row in self.records())
        (folder / "records.jsonl").write_text("".join(lines))
        return folder

    def _cells(self):
        return [(a, i, n, m) for m in self.modes for a, i in self.costs for n in self.seqlens]

    def _cell(self, arch, impl, seqlen, mode):
        return {
            "arch": arch, "impl": impl, "preset": "paper-50m", "seqlen": seqlen, "batch": 1,
            "dtype": self.dtype, "mode": mode, "launch": "eager",
        }  # fmt: skip

    def _record(self, arch, impl, seqlen, status, round_=0, position=0, reason="", mode="prefill"):
        if status == "oom":
            reason = "DefaultCPUAllocator: not enough memory"
        return {
            "cell": self._cell(arch, impl, seqlen, mode), "round": round_, "order": position, "status": status,
            "reason": reason, "device": None, "kernels": {}, "parity": None, "time_ms": None, "memory_bytes": None,
            "energy_j": None, "clocks": {}, "stopped_by": "", "warmups": 0, "padded": 0,
            "started": "2026-11-21T12:00:00+00:00",
        }  # fmt: skip

    def _measured(self, arch, impl, seqlen, wall, mode):
        m0, m1, m2 = self.memory[arch, impl]
        held = {
            "llama": 32_768 * seqlen,
            "mamba": 655_360,
            "mamba2": 8 * MIB,
            "hybrid": 16_384 * seqlen,
        }
        cache = held[arch] if mode == "decode" else None
        peak = WEIGHTS[arch] + int(m0 + m1 * seqlen + m2 * seqlen**2)
        return {
            "kernels": {op: k.replace("numba", impl) for op, k in KERNELS[arch].items()},
            "parity": self._parity(),
            "time_ms": {"wall": wall, "device": []},
            "memory_bytes": {
                "weights": WEIGHTS[arch], "peak_allocated": peak, "peak_reserved": None,
                "device_used": None, "peak_rss": peak + 300 * MIB, "cache": cache,
            },
            "stopped_by": "interval", "warmups": 2,
        }  # fmt: skip

    def _parity(self):
        errors = {"max": [2e-6, 8e-6], "rms": [1e-7, 4e-7]}
        outputs = {"hidden": errors, "logits": errors}
        return {"seqlen": 128, "baseline": "hf", "outputs": outputs, "passed": True}

    def _unmeasured(self, impl, status):
        archs = sorted({arch for arch, _ in self.costs})
        for mode, arch in itertools.product(self.modes, archs):
            for seqlen in self.seqlens:
                reason = self.unavailable.get(impl, "runs through the interpreter: parity only")
                row = self._record(arch, impl, seqlen, status, reason=reason, mode=mode)
                if status == "interpreted":
                    row["parity"] = self._parity()
                    row["kernels"] = {op: f"{impl}.{op}" for op in KERNELS[arch]}
                yield row
