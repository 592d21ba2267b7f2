"""A metrics.jsonl with planted values: known effects of the architecture, noise over seeds, rounding between impls.

value = base(layer) x effect (mamba alone) x exp(noise of the seed) x (1 + rounding of the implementation)
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import gammaln

HIDDEN = {
    "velocity": 4.0, "velocity_max": 9.0, "velocity_relative": 1.41, "drift": 4.1, "drift_relative": 1.4,
    "path_length": 2000.0, "variance": 0.02, "stability": 0.98, "norm": 3.0, "norm_mean": 3.0,
}  # fmt: skip
STATE = {
    "velocity": 0.3, "velocity_relative": 0.05, "drift": 6.0, "drift_relative": 5.0, "cosine": 0.9, "variance": 0.01,
    "stability": 0.99, "norm": 5.0, "half_life": 40.0,
}  # fmt: skip
CONTEXT = {
    "count": 120.0, "range": 400.0, "share": 0.3, "mass_50": 90.0, "mass_90": 300.0, "exp_entropy": 150.0,
    "distance": 130.0,
}  # fmt: skip
SHIFTS = {
    "auc": 0.7, "ap": 0.4, "f1": 0.5, "f1_at_p75": 0.45, "f1_cross": 0.44, "tpr_at_fpr_10": 0.3, "pk": 0.3,
    "window_diff": 0.32, "covering": 0.6, "margin_f1": 0.5, "location_error": 2.0, "p_null": 0.01,
}  # fmt: skip
BASELINES = {
    "input embeddings": 0.68,
    "position": 0.55,
    "texttiling": 0.6,
    "tf-idf": 0.62,
}


def attention(seqlen):
    """What near-uniform attention gives."""
    bound = gammaln(seqlen + 1) / seqlen
    return {
        "entropy": 0.997 * bound, "entropy_normalised": 0.995, "distance": 0.99 * (seqlen - 1) / 4,
        "top_mass": 0.03, "span": 5.0, "span_max": 90.0, "span_cov": 3.0,
    }  # fmt: skip


@dataclass
class MetricSimulation:
    """What to simulate. `noise` is the standard deviation of the logarithm over seeds."""

    archs: tuple = ("llama", "mamba")
    impls: tuple = ("hf", "cpu")  # the first is the baseline of the parity check
    groups: tuple = ("hidden", "state", "attention", "context", "shifts", "similarity")
    seqlen: int = 512
    seeds: int = 5
    layers: int = 8
    dtype: str = "fp32"
    weights: str = "initial"
    noise: float = 0.02
    effects: dict = field(default_factory=dict)  # metric -> mamba / llama
    attention: dict = field(default_factory=dict)  # metric -> value, instead of near-uniform
    broken: dict = field(default_factory=dict)  # (arch, impl) -> factor that its metrics are off by
    unavailable: dict = field(default_factory=dict)  # impl -> reason
    errors: dict = field(default_factory=dict)  # (group, arch) -> reason
    sessions: int = 80
    gold: bool = True  # records of the reference in float64
    seed: int = 0

    def records(self):
        rows = []
        for arch in self.archs:
            for impl in (*self.impls, *self.unavailable):
                for seed in range(self.seeds):
                    rows += [
                        self._record(group, arch, impl, seed)
                        for group in self.groups
                        if group != "similarity" and (group != "state" or arch == "mamba")
                    ]
        if self.gold:
            rows += [self._gold(arch) for arch in self.archs]
        if "similarity" in self.groups and self.impls:
            rows += self._similarity()
        return rows

    def write(self, path):
        """Write the records to the file `path`; returns it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.records()))
        return path

    def _record(self, group, arch, impl, seed):
        unit = self._unit(group, arch, impl, seed)
        if impl in self.unavailable:
            return record(unit, "unavailable", self.unavailable[impl])
        if (group, arch) in self.errors:
            return record(unit, "error", self.errors[group, arch])
        values, profiles, extra = getattr(self, f"_{group}")(arch, seed)
        factor = self.broken.get((arch, impl), 1.0)
        rounding = np.random.default_rng([self.seed, seed, len(impl)])
        parity = {}
        for value in values:
            exact = value["value"]
            value["value"] *= factor * (1 + 1e-7 * rounding.standard_normal())
            error, bound = abs(value["value"] - exact), 1e-6 * abs(exact)
            name = "/".join(value[n] for n in ("layer", "instrument", "metric"))
            parity[name] = {"max": [error, bound], "rms": [error / 2, bound / 2]}
        found = record(unit, values=values, profiles=profiles, extra=extra)
        if impl != self.impls[0]:
            passed = all(
                error <= bound for norms in parity.values() for error, bound in norms.values()
            )
            found["parity"] = {"baseline": self.impls[0], "passed": passed, "metrics": parity}
        return found

    def _gold(self, arch):
        """The hidden states in float64."""
        unit = self._unit("hidden", arch, "reference", 0) | {"dtype": "fp64"}
        return record(unit, values=self._hidden(arch, 0)[0])

    def _unit(self, group, arch, impl, seed, part=""):
        return {
            "group": group, "arch": arch, "impl": impl, "dtype": self.dtype, "seqlen": self.seqlen, "seed": seed,
            "weights": self.weights, "part": part,
        }  # fmt: skip

    def _planted(self, arch, seed, instrument, bases, layers):
        """Values of one instrument; deeper layers have more, and all layers of a seed move together."""
        found = []
        for metric, base in bases.items():
            rng = np.random.default_rng([self.seed, seed, *map(ord, arch + instrument + metric)])
            effect = self.effects.get(metric, 1.0) if arch == "mamba" else 1.0
            noise = self.noise / 50 if metric in ("entropy", "distance") else self.noise  # bounded
            level = base * effect * math.exp(rng.normal(0, noise))
            for depth, layer in enumerate(layers):
                found.append(value(layer, instrument, metric, level * (1 + 1e-4 * depth)))
        return found

    def _blocks(self):
        return [f"block {i}" for i in range(1, self.layers + 1)]

    def _hidden(self, arch, seed):
        layers = ["embedding", *self._blocks(), "final norm"]
        values = self._planted(arch, seed, "residual stream", HIDDEN, layers)
        for v in values:
            if (v["layer"], v["metric"]) == ("final norm", "norm"):
                v["value"] = math.sqrt(512)  # of an RMSNorm with unit weights
        return values, self._by_position(values, "velocity", "norm"), {}

    def _state(self, arch, seed):
        values = self._planted(arch, seed, "ssm state", STATE, self._blocks())
        return values, self._by_position(values, "velocity"), {}

    def _attention(self, arch, seed):
        bases = attention(self.seqlen) | self.attention
        names = ["softmax"] if arch == "llama" else ["implicit, per state", "implicit, per channel"]
        values = [
            v
            for name in [*names, "contribution"]
            for v in self._planted(arch, seed, name, bases, self._blocks())
        ]
        return values, self._by_position(values, "entropy", "distance", "top_mass"), {}

    def _by_position(self, values, *metrics):
        """Profiles that rise with the logarithm of the position to the value planted."""
        positions = np.unique(np.geomspace(1, self.seqlen - 1, 40).round())
        rise = np.log1p(positions) / math.log(self.seqlen)
        return [
            {
                **{n: v[n] for n in ("layer", "instrument", "metric")},
                "positions": positions.tolist(),
                "values": (v["value"] * rise).tolist(),
            }
            for v in values
            if v["metric"] in metrics
        ]

    def _context(self, arch, seed):
        values, profiles = [], []
        distances = [0, *(1 << n for n in range(int(math.log2(self.seqlen))))]
        for name in ("log-probability", "hutchinson", "max logit"):
            values += self._planted(arch, seed, name, CONTEXT, ["model"])
            decay = 60 if arch == "llama" else 20
            shares = [math.exp(-d / decay) / decay for d in distances]
            gradient = {"layer": "model", "instrument": name, "metric": "gradient"}
            profiles.append(gradient | {"positions": distances, "values": shares})
        paper = {"count": 100.0, "share": 0.2, "cov": 0.4}
        values += self._planted(arch, seed, "asymmetric (paper)", paper, ["model"])
        return values, profiles, {}

    def _shifts(self, arch, seed):
        values = self._planted(
            arch, seed, "window cosine", SHIFTS, ["embedding", *self._blocks(), "final norm"]
        )
        for name, auc in BASELINES.items():
            values += [value("", name, "auc", auc, auc - 0.03, auc + 0.03)]
        for v in values:
            if v["metric"] == "auc":
                v["low"], v["high"] = v["value"] - 0.03, v["value"] + 0.03
        fpr = np.linspace(0, 1, 30)
        roc = {
            f"{v['instrument']}/{v['layer']}": {
                "fpr": fpr.tolist(),
                "tpr": (fpr ** (1 / v["value"] - 1)).tolist(),  # a curve with this area
            }
            for v in values
            if v["metric"] == "auc"
        }
        extra = {
            "roc": roc, "sessions": self.sessions, "positives": 3 * self.sessions, "candidates": 12 * self.sessions,
        }  # fmt: skip
        return values, [], extra

    def _similarity(self):
        names = ["embedding", *self._blocks(), "final norm"]
        apart = np.abs(np.subtract.outer(np.arange(len(names)), np.arange(len(names))))
        found = []
        for arch in self.archs:
            same = np.exp(-0.2 * apart)
            itself = self._unit("similarity", arch, self.impls[0], 0, f"{arch} against itself")
            found.append(record(itself, extra=_cka(names, same)))
            for impl in self.impls[1:]:
                part = f"{arch}, {self.impls[0]} against {impl}"
                unit = self._unit("similarity", arch, self.impls[0], 0, part)
                found.append(record(unit, extra=_cka(names, same * (1 - 1e-7))))
        if len(self.archs) == 2:
            unit = self._unit("similarity", "both", self.impls[0], 0, "llama against mamba")
            found.append(record(unit, extra=_cka(names, 0.7 * np.exp(-0.15 * apart))))
        return found


def value(layer, instrument, metric, number, low=None, high=None):
    return {
        "layer": layer, "instrument": instrument, "metric": metric, "value": number, "low": low, "high": high,
    }  # fmt: skip


def record(unit, status="ok", reason="", values=(), profiles=(), extra=None):
    return {
        "unit": unit, "status": status, "reason": reason, "kernels": {}, "settings": {}, "seconds": 1.0,
        "started": "2026-11-22T12:00:00+00:00", "values": list(values), "profiles": list(profiles), "parity": None,
        "extra": extra or {},
    }  # fmt: skip


def _cka(names, values):
    null = np.full_like(values, 0.02)
    return {
        "cka": {"rows": names, "columns": names, "values": values.tolist(), "null": null.tolist()}
    }
