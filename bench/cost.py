"""How long a plan takes: a model of its parts before anything ran, measured times once they exist.

Of a forward the model counts matrix work, attention's pairs, scan states, and what a layer costs however short the
input is; of a sweep the starts of processes, references, memory, proofs, cells, metrics and report. The rates of a CPU
were fitted to the parts of a sweep of paper-50m on two cores; matrix rate and bandwidth are those of the machine
where they were measured, and `bench.calibrate` corrects each architecture and implementation by a few layers that it
runs. Those of a GPU are a guess. It is for planning only: no result depends on it.
"""

from dataclasses import dataclass, field, replace
from statistics import median

from bench.availability import fate, proof_cell
from bench.gradients import is_long
from bench.measure import SOLE_S, paper_rules
from bench.memory_model import BYTES, cache_bytes, why_hopeless
from bench.plan import Cell
from bench.slices import layers_of, sliced_sizes
from models.architectures import REGISTRY

FIXED_S = 7.5  # a fresh process: importing torch and transformers, warming up, ending
DOUBT_S = 1.0  # seconds of measurements that weigh as much as the model
PARENT_S = 7.0  # the sweep itself: importing, reading sessions, measuring the machine's peaks
DRAWING_S = 1.2e-8  # a random weight
MEMORY_FORWARDS = 1.5  # a forward whose allocations are recorded, in plain ones
REFERENCE_FORWARDS = 3  # the definition in float64, and hf's forward
PROOF_S = {"prefill": 0.5, "decode": 1.0, "train": 2.0}  # per layer, in Triton's interpreter
METRICS_S = {"none": 0.0, "small": 22.0, "full": 22.0}
METRICS_FORWARDS = {
    "none": 0,
    "small": 11,
    "full": 120,
}  # forwards of the longest length, by `torch`
PROFILE_S = 5.0
REPORT_S, REPORT_CELL_S = 8.0, 0.09  # tables, figures and page
TABLES_SHARE = 0.5  # of it; the rest is the page


@dataclass(frozen=True)
class Rates:
    """Speeds of a device.

    Attributes:
        flops: FLOP/s of matrix products.
        bytes: bytes/s of copying.
        layer_s: seconds of a layer, however short its input is.
        token_s: seconds of a layer of a decoded token, beside reading weights and cache.
        hidden_s: of what LLaMA does beside matrix products, per token, layer and number of the hidden state.
        score_s: of eager attention, per pair of tokens, layer and head.
        state_s: {impl: of the scan, per token, channel and state}; `hf` takes its steps one after another:
        step_s: seconds per step and layer, of launching what a step does.
        is_cpu: whether the stopping rules are those of a CPU.
    """

    flops: float
    bytes: float
    layer_s: float
    token_s: float
    hidden_s: float
    score_s: float
    step_s: float
    state_s: dict = field(hash=False)
    is_cpu: bool = False


CPU = Rates(flops=1.7e11, bytes=4e10, layer_s=1.5e-3, token_s=4e-4, hidden_s=1.2e-8, score_s=5e-9, step_s=6e-5,
            state_s={"hf": 5e-9, "torch": 2.8e-9, "cpu": 2e-10}, is_cpu=True)  # fmt: skip
GPU = Rates(flops=2e13, bytes=1e12, layer_s=3e-4, token_s=3e-4, hidden_s=1e-11, score_s=1e-11, step_s=8e-5,
            state_s={"hf": 1e-12, "torch": 1e-11})  # fmt: skip
MATRIX_SHARE = 0.85  # of the measured peak that a CPU reaches in the projections of a model
BACKWARD = 3  # a forward and a backward cost this many forwards


def sizes(config, counts):
    """What the models of time and memory need to know of an architecture, from its transformers configuration.

    One with attention heads counts as a LLaMA, any other as a Mamba: a hybrid as if every block had attention.

    `per_layer` are the parameters of a layer; `kv` is the width of the keys of all heads.
    """
    heads = getattr(config, "num_attention_heads", 0)
    headdim = getattr(config, "head_dim", 0) or config.hidden_size // max(heads, 1)
    return {
        # all but the final norm are in the layers
        "per_layer": (counts.other - config.hidden_size) // config.num_hidden_layers,
        "headdim": headdim,
        "kv": headdim * getattr(config, "num_key_value_heads", 0),
        "rank": getattr(config, "time_step_rank", 0),
        "width": getattr(config, "conv_kernel", 0),
        "parameters": counts.other,
        "total": counts.total,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "inner": getattr(config, "intermediate_size", 0) or config.expand * config.hidden_size,
        "heads": getattr(config, "num_attention_heads", 0),
        "dstate": getattr(config, "state_size", 0),
        "vocab": config.vocab_size,
    }


def forward_seconds(cell, size, rates):
    """Seconds of one forward that computes the logits of one position."""
    tokens, layers, hidden = cell.batch * cell.seqlen, size["layers"], size["hidden"]
    seconds = layers * rates.layer_s + 2 * size["parameters"] * tokens / rates.flops
    seconds += size["vocab"] * hidden * BYTES[cell.dtype] / rates.bytes
    if size["heads"]:
        eager = cell.impl == "hf"
        pairs = tokens * cell.seqlen * layers
        seconds += (4 if eager else 2) * pairs * hidden / rates.flops
        seconds += layers * hidden * tokens * rates.hidden_s
        return seconds + (pairs * size["heads"] * rates.score_s if eager else 0.0)
    states = layers * size["inner"] * size["dstate"] * tokens
    seconds += states * rates.state_s.get(cell.impl, min(rates.state_s.values()))
    return seconds + (layers * cell.seqlen * rates.step_s if cell.impl == "hf" else 0.0)


def token_seconds(cell, size, rates):
    """Seconds of one decoded token: weights and cache are read once."""
    read = size["total"] * BYTES[cell.dtype] + cache_bytes(cell, size)
    return size["layers"] * rates.token_s + read / rates.bytes


def training_seconds(cell, size, rates):
    """Seconds of one forward and backward with the logits of all positions."""
    head = 2 * size["hidden"] * size["vocab"] * cell.batch * cell.seqlen
    seconds = BACKWARD * (forward_seconds(cell, size, rates) + head / rates.flops)
    if cell.impl == "hf" and "selective_scan" in REGISTRY[cell.arch].operators:
        # the gradient of the slice of each token is as large as the whole sequence
        slices = cell.batch * cell.seqlen**2 * size["inner"] * size["dstate"] * 4
        seconds += 3 * size["layers"] * slices / rates.bytes
    return seconds


def reference_seconds(keys, architectures, rates):
    """Seconds of the gradients of `bench.references.gradient_keys`: twice, in float64 too, with checkpointing."""
    impl = lambda arch, seqlen: "torch" if is_long(arch, seqlen) else "hf"
    cells = [Cell(arch, impl(arch, n), "", n, batch, dtype) for arch, dtype, n, batch in keys]
    return sum(4 * training_seconds(c, architectures[c.arch]["sizes"], rates) for c in cells)


def cell_seconds(cell, size, rates, budget_s, runs=None):
    """Seconds that a cell takes in one round: parity, warm-up and sampling; `runs` if the protocol fixes them."""
    if cell.mode == "decode":
        one = token_seconds(cell, size, rates)
        return forward_seconds(cell, size, rates) + 3 * one + max(budget_s, 3 * one)
    one = (training_seconds if cell.mode == "train" else forward_seconds)(cell, size, rates)
    if runs is not None:
        return one * (runs + 1)
    if rates.is_cpu and one > budget_s:
        return one if one > SOLE_S["cpu"] else 2 * one
    return 2 * one + max(budget_s, 3 * one if one < budget_s else one)


def size_of(cell, architectures):
    """The sizes of what a cell runs: of its architecture, or of the slice that it is."""
    return sliced_sizes(architectures[cell.arch]["sizes"], layers_of(cell.preset))


class Clock:
    """Time left, from what the same cells took in earlier rounds and from the model elsewhere.

    `architectures` is that of a plan: {arch: {"sizes": …}}; `factors` corrects the model: {(arch, impl, mode): factor}.
    """

    def __init__(self, architectures, rates, budget_s, runs=None, factors=None):
        self._factors = factors or {}
        self._model = lambda cell: cell_seconds(
            cell, size_of(cell, architectures), self._rates(cell, rates), budget_s, runs
        )
        self._took = {}

    def _rates(self, cell, rates):
        return slower(rates, self._factors.get((cell.arch, cell.impl, cell.mode), 1.0))

    def observe(self, cell, seconds):
        """Note that `cell` took `seconds` in a round."""
        self._took.setdefault(cell, []).append(seconds)

    def expect(self, cell):
        """Seconds that `cell` will take."""
        if cell in self._took:
            return median(self._took[cell])
        return self._model(cell) * self._correction(cell)

    def _correction(self, cell):
        """How much slower than the model cells of the same arch, impl and mode were; near 1 while little is known."""
        kind = lambda c: (c.arch, c.impl, c.mode)
        alike = [c for c in self._took if kind(c) == kind(cell)]
        took = sum(median(self._took[c]) for c in alike)
        return (took + DOUBT_S) / (sum(map(self._model, alike)) + DOUBT_S)

    def remaining(self, cells_by_round, begun=()):
        """Seconds left for {round: cells}; each round that has not begun also starts a process."""
        return sum(
            (0.0 if round_ in begun else FIXED_S) + sum(map(self.expect, cells))
            for round_, cells in cells_by_round.items()
            if cells
        )


def slower(rates, factor):
    """Rates at which everything takes `factor` times as long."""
    if factor == 1:
        return rates
    times = {
        n: getattr(rates, n) * factor
        for n in ("layer_s", "token_s", "hidden_s", "score_s", "step_s")
    }
    states = {impl: seconds * factor for impl, seconds in rates.state_s.items()}
    return replace(
        rates, flops=rates.flops / factor, bytes=rates.bytes / factor, state_s=states, **times
    )


def rates_of(plan, peaks=None):
    """The speeds of the device of a plan, its matrix rate and bandwidth as measured (`bench.machine.measure_peaks`)."""
    if plan.options["device"] == "cuda":
        return GPU
    if not peaks:
        return CPU
    flops = MATRIX_SHARE * peaks["matmul_flops"]["fp32"]
    return replace(CPU, flops=flops, bytes=peaks["copy_bytes_per_s"])


def clock_of(plan, peaks=None, factors=None):
    """The clock of a plan, before anything of it ran."""
    runs = sum(paper_rules().exact) if plan.protocol == "paper" else None
    rates = rates_of(plan, peaks)
    return Clock(plan.architectures, rates, plan.options["budget"], runs, factors)


def sweep_seconds(plan, clock, metrics, profiler, finished=frozenset(), peaks=None):
    """{part: seconds} of a sweep, or of what is left of it: what `bench.sweep` does, in its order.

    Args:
        clock: the Clock of the plan.
        metrics: the extent of the representation metrics.
        profiler: what profiles the fastest cell of each architecture, or "none".
        finished: {(cell, round)} that are not measured again.
    """
    device, rates = plan.options["device"], rates_of(plan, peaks)
    fates = {cell: fate(cell, device)[0] for cell in plan.cells}
    tried = {cell for cell in plan.cells if not why_hopeless(cell, plan, device)}
    measured = [cell for cell, kind in fates.items() if kind == "measured" and cell in tried]
    proofs = {proof_cell(cell) for cell, kind in fates.items() if kind == "interpreted"}
    left = {r: [c for c in measured if (c, r) not in finished] for r in range(plan.rounds)}
    models = {(cell.arch, cell.preset): cell for cell in measured}.values()
    drawn = sum(size_of(cell, plan.architectures)["total"] for cell in models)
    processes = sum(1 for cells in left.values() if cells)
    parts = {"start": PARENT_S}
    if not finished:
        parts["references"] = _outputs_seconds(measured, plan, rates) + _gradients_seconds(
            measured, plan, rates
        )
        if device == "cpu":
            once = [_once_seconds(cell, plan, rates) for cell in measured]
            parts["memory"] = MEMORY_FORWARDS * sum(once)
        sizes = {cell: size_of(cell, plan.architectures) for cell in proofs}
        parts["proofs"] = sum(PROOF_S[c.mode] * size["layers"] for c, size in sizes.items())
        processes += 1
    parts["processes"] = processes * (FIXED_S + DRAWING_S * drawn)
    parts["cells"] = sum(clock.expect(cell) for cells in left.values() for cell in cells)
    parts["metrics"] = METRICS_S[metrics] + METRICS_FORWARDS[metrics] * _longest_seconds(
        plan, rates
    )
    parts["report"] = REPORT_S + REPORT_CELL_S * len(plan.cells)
    # the profiler works beside the tables
    profiles = 0.0 if profiler == "none" else PROFILE_S * len(plan.architectures)
    parts["profiles"] = max(0.0, profiles - TABLES_SHARE * parts["report"])
    return parts


def _once_seconds(cell, plan, rates):
    size = size_of(cell, plan.architectures)
    if cell.mode == "train":
        return training_seconds(cell, size, rates)
    return forward_seconds(cell, size, rates)


def _outputs_seconds(measured, plan, rates):
    """Of what outputs are compared with: a pass over the longest length for every model and dtype."""
    longest = {}
    for cell in measured:
        if cell.mode != "train":
            key = cell.arch, cell.preset, cell.dtype
            longest[key] = max(longest.get(key, 0), cell.seqlen)
    cells = [Cell(arch, "hf", preset, n, 1, dtype) for (arch, preset, dtype), n in longest.items()]
    return sum(REFERENCE_FORWARDS * _once_seconds(cell, plan, rates) for cell in cells)


def _gradients_seconds(measured, plan, rates):
    keys = {(c.arch, c.dtype, c.seqlen, c.batch) for c in measured if c.mode == "train"}
    return reference_seconds(sorted(keys), plan.architectures, rates)


def _longest_seconds(plan, rates):
    longest = max(cell.seqlen for cell in plan.cells)
    cells = [Cell(arch, "torch", "", longest) for arch in plan.architectures]
    return sum(_once_seconds(cell, plan, rates) for cell in cells)
