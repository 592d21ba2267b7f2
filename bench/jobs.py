"""What a worker process does: prepare (references, memory on a CPU, proofs through the interpreter) or run a round."""

import gc
import math
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench import memory, memory_model, parity, slices
from bench.availability import fate, proof_cell
from bench.device import describe_place
from bench.forward import Models
from bench.gauges import Gauges
from bench.measure import (
    SOLE_S,
    Rules,
    is_sole,
    no_collection,
    paper_rules,
    rep,
    resetting,
    sample,
    stopwatch,
)
from bench.modes import bound
from bench.plan import read_plan
from bench.records import make_record, now, one_line
from bench.references import References, Unproven, missing
from kernels.implementations import Unavailable
from profiles.ranges import annotate

NOT_HERE = (NotImplementedError, Unavailable, Unproven)  # nothing went wrong: it cannot be had


class Poisoned(RuntimeError):
    """The device is in a state that no later cell can run in; a fresh process is needed."""


class Lab:
    """A run as one process sees it: plan, tokens, device and models."""

    def __init__(self, run):
        self.run = Path(run)
        self.plan = read_plan(self.run / "plan.json")
        options = self.plan.options
        self.device = torch.device(options["device"])
        self.place = describe_place(self.device)
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        self.tokens = load_file(self.run / "references" / "tokens.safetensors")["ids"]
        self.models = Models(options, self.device)
        self.gauges = Gauges(self.device)
        self.watch = stopwatch(self.device)
        self.rules = rules(self.plan, self.device)
        self.references = {
            preset: self._references(preset) for preset in {c.preset for c in self.plan.cells}
        }

    def _references(self, preset):
        """What the cells of a preset, or of a slice of it, are compared with."""
        folder, models = slices.folder(self.run, preset), self.models.of(slices.layers_of(preset))
        (folder / "references").mkdir(parents=True, exist_ok=True)
        return References(folder, slices.plan_of(self.plan, preset), models, self.tokens)

    def prepare(self, job, events):
        """Compute the references, measure the memory of `memory`, prove `cells`; leave out the steps in `skip`."""
        skip = {tuple(step) for step in job["skip"]}
        able = [c for c in self.plan.cells if fate(c, self.device)[0] != "unavailable"]
        cells = [cell for cell in able if not self._hopeless(cell)]
        for preset, references in self.references.items():
            own = [cell for cell in cells if cell.preset == preset]
            for step in missing(references.run, own, self.device):
                told = (*step, *slices.mark(preset))
                if told not in skip:
                    events.send("step", step=told)
                    self._attempt(lambda s=step, r=references, own=own: r.compute(s, own))
        gc.freeze()  # models stay: see `round`
        for index in job["memory"]:
            cell = self.plan.cells[index]
            if ("memory", cell.id) not in skip:
                events.send("step", step=["memory", cell.id])
                self._attempt(lambda cell=cell: self._measure_memory(cell))
        self._prove_all(job["cells"], events)

    def _attempt(self, work):
        """Do what cells can do without, if they must: they say so in their records."""
        try:
            work()
        except Exception:
            traceback.print_exc(file=sys.stderr)
        self._release()

    def _measure_memory(self, cell):
        """Note the allocator's peak of a cell on a CPU.

        Not in a round: the events fill the heap with what the timed cells after it would not find there otherwise.
        """
        if self._hopeless(cell):
            return
        self.references[cell.preset].require(cell)
        with self._bound(cell) as (_, work):
            if work.held():
                memory.allocator_peak(
                    work
                )  # what is freed counts only if the profiler saw it allocated
                work.reset()
            peak = work.held() + memory.allocator_peak(work)
        memory.write_peaks(self.run, memory.read_peaks(self.run) | {cell.id: peak})

    def _prove_all(self, cells, events):
        """Compare small cells with their references through Triton's interpreter; nothing is timed."""
        proofs = {}
        for index, order in cells:
            cell = self.plan.cells[index]
            events.send("cell", index=index)
            proof = proof_cell(cell)
            if proof not in proofs:
                proofs[proof] = self._guarded(proof, 0, order, self._prove)
            record = proofs[proof] | {"cell": asdict(cell), "order": order}
            if record["status"] == "interpreted":
                record["reason"] = fate(cell, self.device)[1]
            events.send("record", index=index, record=record)

    def round(self, job, events):
        """Warm every (arch, impl, dtype, mode) up, then run the cells in the order of the job."""
        cells = [(index, order, self.plan.cells[index]) for index, order in job["cells"]]
        with annotate(f"round/{job['round']}", category="sweep", payload=job["round"]):
            for group, smallest in warm_ups(
                [cell for _, _, cell in cells if not self._hopeless(cell)]
            ).items():
                events.send("step", step=["warm", *group])
                self._warm(smallest)
            gc.freeze()  # modules and models stay: without this, each collection walks half a million objects
            for index, order, cell in cells:
                events.send("cell", index=index)
                record = self._guarded(cell, job["round"], order, self._measure)
                events.send("record", index=index, record=record)
                self._release()

    def _warm(self, cell):
        """Compile and autotune; what goes wrong here goes wrong again in the cell, where it is recorded."""
        try:
            with self._bound(cell) as (_, work):
                work()
        except Exception:
            traceback.print_exc(file=sys.stderr)
        self._release()

    def _guarded(self, cell, round_, order, work):
        """The record of `work(cell, round)`: its own fields, or what went wrong."""
        started, before = now(), self.gauges.clocks()
        self._start_peaks()
        try:
            with annotate(f"cell/{cell.id}", payload=cell.seqlen):
                status, reason, fields = work(cell, round_)
        except NOT_HERE as error:
            status, reason, fields = "unavailable", one_line(error, kind=False), {}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            status = "oom" if memory.is_out_of_memory(error) else "error"
            reason, fields = one_line(error), {}
        if status == "oom":
            gc.collect()
            fields = {
                "memory_bytes": self._memory(self._models(cell).weight_bytes(cell.arch, cell.dtype))
            }
        clocks = {"before": before, "after": self.gauges.clocks()}
        fields |= {"clocks": clocks, "started": started, "padded": self._padding(cell)}
        fields["device"] = self.place
        return make_record(cell, round_, order, status, reason, **fields)

    def _prove(self, cell, round_):
        if reason := self._hopeless(cell):
            return "oom", reason, {}
        self.references[cell.preset].require(cell)
        with self._bound(cell) as (_, work):
            found, _ = self._gate(cell, work)
        if not found["parity"]["passed"]:
            return "error", parity.failure(found["parity"]), found
        return "interpreted", "", found

    def _hopeless(self, cell):
        return memory_model.why_hopeless(cell, self.plan, self.device)

    def _measure(self, cell, round_):
        if reason := self._hopeless(cell):
            return "oom", reason, {}
        self.references[cell.preset].require(cell)
        with self._bound(cell) as (model, work):
            if cell.mode != "prefill":
                self._start_peaks()  # what came before the work, such as a prefill, is no part of it
            found, first = self._gate(cell, work)
            if not found["parity"]["passed"]:
                return "error", parity.failure(found["parity"]), found
            if (
                self.device.type == "cuda"
                and cell.launch == "eager"
                and not is_sole(first, self.rules)
            ):
                self._start_peaks()  # the runs to come hold no outputs for a comparison
            samples = sample(work, self.rules, resetting(self.watch, work.reset), first)
            found["time_ms"] = {"wall": samples.wall, "device": samples.device}
            found["stopped_by"], found["warmups"] = samples.stopped_by, samples.warmups
            weights = memory.weight_bytes(model)
            found["memory_bytes"] = self._memory(weights, work.cache_bytes)
            if round_ == 0 and self.device.type == "cuda":
                found["energy_j"] = self.gauges.energy_per_run(lambda: (work(), work.reset()))
            peak = memory.read_peaks(self.run).get(cell.id)
            if round_ == 0 and peak is not None:
                found["memory_bytes"]["peak_allocated"] = weights + peak
        return "ok", "", found

    def _gate(self, cell, work):
        """Run a cell for the first time and compare its outputs: ({kernels, parity}, what the stopwatch gave)."""
        outputs = []
        with no_collection():
            first = rep(lambda: outputs.extend(work.outputs()), self.watch)
        work.reset()
        *compared, kernels = outputs
        passed = self.references[cell.preset].check(cell, *compared)
        return {"kernels": kernels, "parity": passed}, first

    def _bound(self, cell):
        ids = self.tokens[: cell.batch, : cell.tokens].to(self.device)
        return bound(self._models(cell), cell, ids, self.plan.options["logits"])

    def _models(self, cell):
        return self.models.of(slices.layers_of(cell.preset))

    def _padding(self, cell):
        return self.plan.tokens["padded"].get(str(cell.seqlen), 0)

    def _start_peaks(self):
        if self.device.type == "cuda":
            memory.CudaPeak().start()
        else:
            memory.reset_peak_rss()

    def _memory(self, weights, cache=None):
        if self.device.type == "cuda":
            peaks = memory.CudaPeak().read() | {"device_used": self.gauges.used_bytes()}
        else:
            peaks = {"peak_rss": memory.peak_rss()}
        return memory.memory_record(weights, cache=cache, **peaks)

    def _release(self):
        """Give memory back; Poisoned if the device does not answer any more."""
        gc.collect()
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise Poisoned(one_line(error)) from error


def rules(plan, device):
    """The stopping rules of a plan on a device."""
    if plan.protocol == "paper":
        return paper_rules()
    budget = plan.options["budget"]
    slow = budget if device.type == "cpu" else math.inf
    return Rules(budget_s=budget, slow_s=slow, sole_s=max(budget, SOLE_S[device.type]))


def warm_ups(cells):
    """{(arch, impl, dtype, mode): its smallest cell}, in the order of `cells`."""
    smallest = {}
    for cell in cells:
        key = cell.arch, cell.impl, cell.dtype, cell.mode
        if key not in smallest or (cell.seqlen, cell.batch) < (
            smallest[key].seqlen,
            smallest[key].batch,
        ):
            smallest[key] = cell
    return smallest
