"""What the representation metrics of a run consist of: extents, and the jobs that make them.

A job is one architecture with one set of weights under one implementation on one length; what comes out of it is one
record for each of its groups. Implementations are compared on the weights of the run; initialisations (seeds) under
one implementation, the fastest that runs.
"""

from dataclasses import asdict, dataclass, replace

from analysis.load import PAIR
from bench.availability import fate
from bench.plan import Cell
from kernels.implementations import why_unavailable

GROUPS = ("hidden", "state", "attention", "context", "shifts", "similarity")
OF_STREAM = ("forward", "context", "similarity")  # kinds of jobs that read the run's tokens
OF_FORWARD = ("hidden", "state", "attention")  # one forward gives all three
EVERYWHERE = ("hidden",)  # what every architecture has; the rest compares Mamba and LLaMA
OF_THE_PAIR = "defined for Mamba and LLaMA"
FASTEST = {"cuda": ("triton", "cuda", "torch", "hf"), "cpu": ("cpu", "torch", "hf")}
QUADRATIC = 64  # tokens above which transformers' sequential scan is not differentiated
NO_SESSIONS = "no session has labels of phases or shifts, and without them nothing can be detected"


@dataclass(frozen=True)
class Extent:
    """How much is computed.

    Attributes:
        seqlen: tokens at which implementations and initialisations are compared.
        long: tokens of one more forward of each architecture; 0 for none.
        seeds: initialisations, that of the run included.
        rows, channels: sampled query rows and channels of what is not computed for all of them.
        context: tokens of the gradient's context; probes and draws of the Hutchinson estimate.
        sessions: labelled sessions of the shift task; session_tokens of each, 0 for whole sessions.
        bootstrap: resamples of its intervals.
        shuffles: of the tokens, for the similarity that chance gives.
        pairs: 1 to compare the layers of initialisations and dtypes too, 0 for those of architectures and
            implementations alone.
    """

    seqlen: int
    long: int
    seeds: int
    rows: int
    channels: int
    context: int
    probes: int
    draws: int
    sessions: int
    session_tokens: int
    bootstrap: int
    shuffles: int
    pairs: int


SMALL = {
    "cpu": Extent(128, 0, 5, 16, 16, 128, 3, 1, 3, 1024, 200, 1, 0),
    "cuda": Extent(2048, 8192, 5, 64, 64, 2048, 5, 4, 80, 0, 1000, 3, 1),
}
FULL = {
    "cpu": Extent(1847, 8192, 5, 64, 64, 1847, 5, 4, 80, 0, 2000, 3, 1),
    "cuda": Extent(8192, 32_768, 5, 256, 64, 8192, 5, 8, 160, 0, 2000, 3, 1),
}
EXTENTS = {"small": SMALL, "full": FULL}


@dataclass(frozen=True)
class Job:
    """A piece of work; `reason` says why it cannot be done here."""

    kind: str  # forward, context, similarity, session, shifts or shift_difference
    arch: str  # "both" for similarity
    impl: str
    dtype: str
    seqlen: int
    seed: int
    weights: str
    groups: tuple[str, ...]
    part: str = ""
    reason: str = ""
    sides: tuple = ()  # of a comparison: two of (arch, impl, dtype, seed)

    def unit(self, group):
        """The key of the record that this job makes for `group`."""
        names = ("arch", "impl", "dtype", "seqlen", "seed", "weights", "part")
        fields = asdict(self)
        return {"group": group} | {name: fields[name] for name in names}

    def __str__(self):
        part = f", {self.part}" if self.part else ""
        return f"{self.kind} of {self.arch} under {self.impl}, {self.seqlen:,} tokens, seed {self.seed}{part}"


def fastest(arch, device):
    """The implementation under which initialisations are compared and sessions are read."""
    for impl in FASTEST[device]:
        if fate(_cell(arch, impl, 1), device)[0] == "measured":
            return impl
    raise ValueError(f"no implementation of {arch} runs on {device}")


def jobs(plan, extent, groups):
    """The jobs of a run in the order of their execution: first what compares implementations."""
    options = plan.options
    device, seed, dtype = options["device"], options["seed"], options["dtype"][0]
    found, readers = [], {}
    for arch in options["arch"]:
        weights = "checkpoint" if arch in options["checkpoint"] else "initial"
        best = fastest(arch, device)
        make = lambda kind, impl, seqlen, groups, seed=seed, reason="", dtype=dtype, arch=arch, w=weights: Job(
            kind, arch, impl, dtype, seqlen, seed, w, tuple(groups), reason=reason
        )  # fmt: skip
        if arch not in PAIR:
            found += _further(make, arch, best, options, extent, groups)
            continue
        of_forward = [g for g in OF_FORWARD if g in groups and (g, arch) != ("state", "llama")]
        for impl in ("reference", *dict.fromkeys([*options["impl"], "hf", best])):
            kind = "fp64" if impl == "reference" else dtype
            why = _why_not(arch, impl, dtype, device)
            found.append(make("forward", impl, extent.seqlen, of_forward, reason=why, dtype=kind))
            if "context" in groups and impl != "reference":
                why = why or _why_no_gradient(arch, impl, extent.context)
                found.append(make("context", impl, extent.context, ["context"], reason=why))
        others = range(seed + 1, seed + extent.seeds) if weights == "initial" else ()
        for other in others:
            found.append(make("forward", best, extent.seqlen, of_forward, seed=other))
            if "context" in groups:
                found.append(make("context", best, extent.context, ["context"], seed=other))
        if extent.long:
            found.append(make("forward", best, extent.long, of_forward))
        readers[arch] = best, weights
    if "similarity" in groups:
        found += _comparisons(options, extent)
    if "shifts" in groups:
        found += _shift_jobs(plan, extent, readers)
    return [job for job in found if job.groups]


def _further(make, arch, best, options, extent, groups):
    """The jobs of an architecture that is not of the pair: its hidden states, and a reason for the other groups."""
    wanted = [group for group in groups if group in EVERYWHERE]
    dtype = options["dtype"][0]
    for impl in ("reference", *dict.fromkeys([*options["impl"], "hf", best])):
        kind = "fp64" if impl == "reference" else dtype
        why = _why_not(arch, impl, dtype, options["device"])
        yield make("forward", impl, extent.seqlen, wanted, reason=why, dtype=kind)
    if arch not in options["checkpoint"]:
        for seed in range(options["seed"] + 1, options["seed"] + extent.seeds):
            yield make("forward", best, extent.seqlen, wanted, seed=seed)
    if extent.long:
        yield make("forward", best, extent.long, wanted)
    others = [group for group in groups if group not in EVERYWHERE]
    yield make("forward", best, extent.seqlen, others, reason=OF_THE_PAIR)


def _shift_jobs(plan, extent, readers):
    """Every session under both architectures, so that a session is made once; then what they say together."""
    seed, dtype = plan.options["seed"], plan.options["dtype"][0]
    of = lambda kind, arch, group, part="": Job(
        kind, arch, readers[arch][0], dtype, extent.session_tokens, seed, readers[arch][1], (group,), part
    )  # fmt: skip
    for index in range(extent.sessions):
        for arch in readers:
            yield of("session", arch, "shift_scores", f"session {index}")
    reason = "" if extent.sessions else NO_SESSIONS
    for arch in readers:
        yield replace(of("shifts", arch, "shifts"), reason=reason)
    if len(readers) == 2:
        weights = readers["llama"][1]
        yield Job(
            "shift_difference", "both", "", dtype, extent.session_tokens, seed, weights, ("shifts",),
            reason=reason,
        )  # fmt: skip


def _comparisons(options, extent):
    """Similarity of layers: between architectures, layers, implementations, initialisations and dtypes."""
    device, seed, dtype = options["device"], options["seed"], options["dtype"][0]
    archs = [arch for arch in options["arch"] if arch in PAIR]
    mine = {arch: (arch, fastest(arch, device), dtype, seed) for arch in archs}
    pairs = {}
    if len(mine) == 2:
        pairs["llama against mamba"] = mine["llama"], mine["mamba"]
    for arch, (_, best, _, _) in mine.items():
        pairs[f"{arch} against itself"] = mine[arch], mine[arch]
        for impl in options["impl"]:
            if impl != best and not _why_not(arch, impl, dtype, device):
                pairs[f"{arch}, {best} against {impl}"] = mine[arch], (arch, impl, dtype, seed)
        if not extent.pairs:
            continue
        if arch not in options["checkpoint"]:
            other = (arch, best, dtype, seed + 1)
            pairs[f"{arch}, seed {seed} against {seed + 1}"] = mine[arch], other
        half = "bf16" if dtype == "fp32" else "fp32"
        impl = "torch" if device == "cpu" else best
        pairs[f"{arch}, {dtype} against {half}"] = mine[arch], (arch, impl, half, seed)
    for part, sides in pairs.items():
        archs = {side[0] for side in sides}
        arch = archs.pop() if len(archs) == 1 else "both"
        impl = sides[0][1] if arch != "both" else ""
        weights = "checkpoint" if options["checkpoint"] else "initial"
        yield Job(
            "similarity",
            arch,
            impl,
            dtype,
            extent.seqlen,
            seed,
            weights,
            ("similarity",),
            part,
            "",
            sides,
        )


def statistics_impl(operator, device, dtype):
    """The implementation of a statistics operator: the fastest for the device that takes the dtype."""
    order = ("triton", "torch") if device.type == "cuda" else ("cpu", "torch")
    usable = (n for n in order if (n, dtype) != ("triton", "fp64"))
    return next(name for name in usable if not why_unavailable(name, operator, device))


def _why_not(arch, impl, dtype, device):
    if impl == "reference":
        return ""
    status, reason = fate(_cell(arch, impl, 1, dtype), device)
    if status == "interpreted":
        return "Triton compiles for GPUs, and its interpreter is too slow for whole models"
    return reason if status == "unavailable" else ""


def _why_no_gradient(arch, impl, seqlen):
    if (arch, impl) == ("mamba", "hf") and seqlen > QUADRATIC:
        return (
            "the backward of transformers' sequential scan costs the square of the length; "
            f"it is left out above {QUADRATIC} tokens"
        )
    return ""


def _cell(arch, impl, seqlen, dtype="fp32"):
    return Cell(arch, impl, "", seqlen, dtype=dtype)
