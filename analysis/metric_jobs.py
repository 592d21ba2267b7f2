"""Carry out the jobs of `analysis.metric_plan`: models bound to implementations, observed, and made into records.

Parity of metrics follows the one rule of the lab (kernels.accuracy): gold is the model in float64 under `reference`,
baseline the model in the run's dtype under `hf`, and an implementation whose metrics err more than twice as much as
the baseline's has failed. Counts over a threshold jump by rounding, so they are reported and not judged.
"""

import copy
import time
from dataclasses import replace

import torch

from analysis import context
from analysis.attention import (
    attention_series,
    implicit_series,
    interval,
    sample_rows,
    scan_series,
)
from analysis.contributions import contribution_series
from analysis.hidden_states import hidden_series
from analysis.measured import check_finite
from analysis.metric_plan import statistics_impl
from analysis.shift_evaluation import compare, evaluate
from analysis.shift_sessions import ShiftSessions
from analysis.similarity import cka_matrix
from analysis.states import state_series
from bench.forward import TORCH_DTYPES, build_planned, precision
from bench.records import now, one_line
from kernels.accuracy import errors
from kernels.implementations import Unavailable, recording
from models.bind import use
from models.build import assemble
from models.gold import gold
from models.observe import observing

POINTS = 64  # of a profile over positions
BASELINE = "hf"
ALL = "blocks"  # the layer of what is judged over all of them
NOT_HERE = (NotImplementedError, Unavailable)


class Metrics:
    """The models and tokens of a run, as the jobs need them.

    Args:
        plan: the Plan of the run; extent: an Extent.
        ids: (1, length) int64, the run's tokens, as long as the longest job.
        made: records that there are; the caller appends those that are made.
        progress: called with a text whenever something long has moved on.
    """

    def __init__(self, plan, extent, ids, made, progress=lambda text: None):
        self.plan, self.extent, self.made, self.progress = plan, extent, made, progress
        self.sessions = ShiftSessions(plan.options)
        self.device = torch.device(plan.options["device"])
        self.ids = ids.to(self.device)
        self._models, self._forwards, self._hidden = {}, {}, {}

    def records(self, job, groups):
        """The records of a job for those of its groups that are wanted, made one after the other."""
        work = {
            "forward": self._forward, "context": self._context, "similarity": self._similarity,
            "session": self._session, "shifts": self._shifts, "shift_difference": self._shift_difference,
        }[job.kind]  # fmt: skip
        if job.reason:
            for group in groups:
                yield make_record(job, group, "unavailable", job.reason)
            return
        started, began = now(), time.perf_counter()
        with precision(job.dtype), recording() as kernels:
            try:
                found = work(job, groups)
            except NOT_HERE as error:
                found = {g: ("unavailable", one_line(error, kind=False)) for g in groups}
            except (ValueError, RuntimeError, torch.OutOfMemoryError) as error:
                found = {g: ("error", one_line(error)) for g in groups}
        seconds = time.perf_counter() - began
        common = {"kernels": dict(kernels), "seconds": seconds, "started": started}
        common["settings"] = self.settings(job)
        for group in groups:
            made = found[group]
            if isinstance(made, tuple):
                yield make_record(job, group, *made, **common)
            else:
                yield make_record(job, group, "ok", "", **common, **made)

    def settings(self, job):
        """What of the extent decides the numbers of a job."""
        names = {
            "forward": ("rows", "channels"),
            "context": ("probes", "draws"),
            "session": ("session_tokens",),
            "shifts": ("sessions", "session_tokens", "bootstrap"),
            "shift_difference": ("sessions", "session_tokens", "bootstrap"),
            "similarity": ("shuffles",),
        }[job.kind]
        return {name: getattr(self.extent, name) for name in names}

    def _forward(self, job, groups):
        measured = self._series(job, groups)
        found = {group: described(measured[group]) for group in groups}
        if job.impl not in ("reference", BASELINE) and self._is_compared(job):
            baseline, exact = self._truth(job, groups)
            for group in groups:
                found[group]["parity"] = parity(measured[group], baseline[group], exact[group])
        return found

    def _is_compared(self, job):
        """Implementations are compared on the weights of the run at one length."""
        return job.seed == self.plan.options["seed"] and job.seqlen == self.extent.seqlen

    def _truth(self, job, groups):
        """({group: {layer: Series}} of the baseline, the same of gold) for the model of a job."""
        sides = (replace(job, impl=BASELINE), replace(job, impl="reference", dtype="fp64"))
        for side in sides:
            if not set(groups) <= set(self._forwards.get((side.arch, side.impl), ())):
                with precision(side.dtype):
                    self._series(side, groups)
        return [self._forwards[side.arch, side.impl] for side in sides]

    def _series(self, job, groups):
        """{group: {layer: list of Series}} of one forward."""
        found = {group: {} for group in groups}
        dtype = job.dtype
        scan = statistics_impl("scan_statistics", self.device, dtype)
        softmax = statistics_impl("attention_statistics", self.device, dtype)
        rows = sample_rows(job.seqlen, self.extent.rows)

        def on_hidden(name, tensor):
            check_finite(f"the hidden state of {name}", tensor, 1)
            if "hidden" in groups:
                found["hidden"][name] = hidden_series(tensor)

        def on_mixing(mixing):
            for name in ("q", "k", "v", "u", "delta", "B", "C"):
                if name in mixing.operands:
                    axis = 2 if name in "qkv" else -1
                    check_finite(f"{name} of {mixing.layer}", mixing.operands[name], axis)
            if "state" in groups:
                found["state"][mixing.layer] = state_series(mixing.operands)
            if "attention" in groups:
                if mixing.operator == "causal_attention":
                    made = attention_series(mixing.operands, impl=softmax)
                else:
                    made = scan_series(mixing.operands, impl=scan)
                    channels = sample_rows(mixing.operands["u"].shape[1], self.extent.channels)
                    made += implicit_series(mixing.operands, rows, channels)
                found["attention"][mixing.layer] = made + contribution_series(mixing, rows)
            self.progress(f"{job}: {mixing.layer}")

        model = self._gold(job) if job.impl == "reference" else self._model(job)
        with torch.no_grad(), use(model, job.impl), observing(model, on_hidden, on_mixing):
            model.base_model(self.ids[:, : job.seqlen], use_cache=False)
        if self._is_compared(job) and job.impl in ("reference", BASELINE):
            self._forwards[job.arch, job.impl] = found
        return found

    def _context(self, job, groups):
        model = self._model(job).requires_grad_(False)
        ids = self.ids[:, : job.seqlen]
        softmax = statistics_impl("attention_statistics", self.device, job.dtype)

        def spans(operands):
            made = attention_series(operands, impl=softmax, span_threshold=context.SPAN_THRESHOLD)
            return next(s.values for s in made if s.metric == "span")[None]

        with use(model, job.impl):
            found, profiles = context.context_series(
                model, ids, self.extent.probes, self.extent.draws, job.seed,
                lambda: self.progress(str(job)),
            )  # fmt: skip
            peak = [s for s in found if s.instrument == "max logit"]
            found += context.asymmetric(model, ids, spans, peak)
        made = described({"model": found}, profiles=False)
        made["profiles"] = [
            {"layer": "model", "instrument": name, "metric": "gradient", "positions": at, "values": shares}
            for name, (at, shares) in profiles.items()
        ]  # fmt: skip
        return {"context": made}

    def _session(self, job, groups):
        with use(self._model(job), job.impl) as binding:
            index = int(job.part.removeprefix("session "))
            scores = self.sessions.scores(binding.model, index, self.extent.session_tokens)
        return {"shift_scores": {"values": [], "profiles": [], "extra": scores}}

    def _shifts(self, job, groups):
        values, extra = evaluate(self._scores(job), bootstrap=self.extent.bootstrap)
        return {"shifts": {"values": values, "profiles": [], "extra": extra}}

    def _shift_difference(self, job, groups):
        """Mamba minus LLaMA on identical candidates, layer by layer where both have one of the name."""
        sides = [self._scores(replace(job, arch=arch)) for arch in ("mamba", "llama")]
        names = [set(side[0]["scores"]) for side in sides]
        values, extra = [], {}
        for key in sorted(names[0] & names[1]):
            instrument, _, layer = key.partition("/")
            if instrument != "window cosine":
                continue
            found = compare(*sides, key, key, bootstrap=self.extent.bootstrap)
            row = {"layer": layer, "instrument": instrument, "metric": "auc_difference"}
            values.append(
                row | {"value": found["difference"], "low": found["low"], "high": found["high"]}
            )
            extra[key] = found
        return {"shifts": {"values": values, "profiles": [], "extra": {"compare": extra}}}

    def _scores(self, job):
        """The scores of the sessions of this extent under an architecture, in the order of the sessions."""
        parts = [f"session {i}" for i in range(self.extent.sessions)]
        found = {
            r["unit"]["part"]: r["extra"]
            for r in self.made
            if r["unit"]["group"] == "shift_scores" and r["status"] == "ok"
            and all(r["unit"][n] == getattr(job, n) for n in ("arch", "dtype", "seqlen", "seed"))
        }  # fmt: skip
        return [found[part] for part in parts if part in found]

    def _similarity(self, job, groups):
        a, b = (self._states(*side, job.seqlen) for side in job.sides)
        rows, columns, values, null = cka_matrix(a, b, shuffles=self.extent.shuffles)
        cka = {"rows": rows, "columns": columns, "values": values.tolist(), "null": null.tolist()}
        return {"similarity": {"values": [], "profiles": [], "extra": {"cka": cka}}}

    def _states(self, arch, impl, dtype, seed, seqlen):
        """{layer: (seqlen, width)} hidden states of one side of a comparison; the last few sides are kept."""
        key = arch, impl, dtype, seed, seqlen
        if key not in self._hidden:
            found = {}

            def visit(name, tensor):
                check_finite(f"the hidden state of {name} ({arch} under {impl})", tensor, 1)
                found[name] = tensor[0].detach().float().cpu()

            model = self._built(arch, dtype, seed)
            with precision(dtype), torch.no_grad(), use(model, impl), observing(model, visit):
                model.base_model(self.ids[:, :seqlen], use_cache=False)
            while len(self._hidden) > 3:
                self._hidden.pop(next(iter(self._hidden)))
            self._hidden[key] = found
        return self._hidden[key]

    def _model(self, job):
        return self._built(job.arch, job.dtype, job.seed)

    def _built(self, arch, dtype, seed):
        """A model of the run.

        Kept are, of each architecture, the one with the run's seed and the last other one, in the widest dtype of the
        run; narrower ones are cast from it, which gives the bits that building them would.
        """
        slot = arch, seed == self.plan.options["seed"]
        if self._models.get(slot, (None,))[0] != seed:
            options = self.plan.options | {"seed": seed}
            widest = max((TORCH_DTYPES[d] for d in options["dtype"]), key=lambda d: d.itemsize)
            self._models[slot] = (seed, build_planned(arch, options, widest).to(self.device))
        model, dtype = self._models[slot][1], TORCH_DTYPES[dtype]
        return model if model.dtype == dtype else _cast(model, dtype)

    def _gold(self, job):
        return gold(self._built(job.arch, self.plan.options["dtype"][0], job.seed))


def _cast(model, dtype):
    """A copy of a model whose weights are rounded to `dtype`."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    config = copy.deepcopy(model.config)
    return assemble(config, lambda name, shape: weights[name], dtype, model.device).eval()


def described(measured, profiles=True):
    """The fields `values` and `profiles` of a record, of {layer: list of Series}."""
    values, curves = [], []
    for layer, found in measured.items():
        for s in found:
            low, high = interval(s)
            name = {"layer": layer, "instrument": s.instrument, "metric": s.metric}
            values.append(name | {"value": s.value(), "low": low, "high": high})
            if profiles and len(s.positions) > 1 and s.summary in ("mean", "last"):
                positions, means = binned(s)
                curves.append(name | {"positions": positions, "values": means})
    return {"values": values, "profiles": curves}


def binned(s):
    """(positions, values) of a Series in at most POINTS runs of positions: the middle position and the mean of each."""
    parts = [p for p in torch.arange(len(s.positions)).tensor_split(POINTS) if len(p)]
    by_position = s.by_position()
    middle = [int(s.positions[part[len(part) // 2]]) for part in parts]
    return middle, [by_position[part].mean().item() for part in parts]


def parity(measured, baseline, exact):
    """The record's `parity`: every exact metric by the rule, over all layers, heads and tokens at once.

    Each layer is divided by the RMS of its gold, so that all count alike; taken one by one, a layer whose baseline
    happens to be exact would set a bound that rounding passes.
    """
    metrics = {}
    for mine, theirs, truth in zip(*map(_by_metric, (measured, baseline, exact)), strict=True):
        (instrument, metric), layers = mine
        scales = [t.square().mean().sqrt().clamp(min=torch.finfo(t.dtype).tiny) for t in truth[1]]
        pooled = (
            torch.cat([v.flatten() / scale for v, scale in zip(side, scales, strict=True)])
            for side in (layers, theirs[1], truth[1])
        )
        metrics[f"{ALL}/{instrument}/{metric}"] = errors(*pooled)
    passed = all(e <= bound for judged in metrics.values() for e, bound in judged.values())
    return {"baseline": BASELINE, "passed": passed, "metrics": metrics}


def _by_metric(measured):
    """[((instrument, metric), values by layer)] of the exact metrics of {layer: list of Series}."""
    found = {}
    for layer in measured.values():
        for s in layer:
            if s.exact and s.values.numel():
                found.setdefault((s.instrument, s.metric), []).append(s.values)
    return found.items()


def make_record(job, group, status, reason, **fields):
    """A line of metrics.jsonl."""
    empty = {"kernels": {}, "settings": {}, "seconds": 0.0, "started": now()}
    empty |= {"values": [], "profiles": [], "parity": None, "extra": {}}
    return {"unit": job.unit(group), "status": status, "reason": reason} | empty | fields
