"""Which cells a capture is made of: named one by one, or chosen from the measurements of a run."""

import difflib
import math
import statistics
from dataclasses import dataclass, fields

from bench.plan import DTYPES, LAUNCHES, MODES, Cell, PlanError
from bench.slices import layers_of
from bench.verdict import statistic
from kernels.implementations import IMPLEMENTATIONS
from models.presets import ARCHITECTURES

FORM = "arch/impl/mode/seqlen/dtype/launch/bN, such as mamba/triton/prefill/4096/bf16"
NEAREST = 3  # cells that the message about an unknown one offers


@dataclass(frozen=True)
class Spec:
    """A cell as it is written on the command line; None where the end was left out."""

    arch: str
    impl: str
    mode: str | None = None
    seqlen: int | None = None
    dtype: str | None = None
    launch: str | None = None
    batch: int | None = None

    def with_defaults(self, options):
        """The same with what was left out: the first of a plan's `options`, and the longest length."""
        defaults = {name: options[name][0] for name in ("mode", "dtype", "launch", "batch")}
        defaults["seqlen"] = max(options["seqlens"])
        said = vars(self).items()
        return Spec(**{name: defaults[name] if v is None else v for name, v in said})

    def cell(self, preset):
        """The `Cell` of a complete spec."""
        return Cell(preset=preset, **vars(self))

    @classmethod
    def of(cls, cell):
        """The complete spec of a cell."""
        return cls(**{f.name: getattr(cell, f.name) for f in fields(cls)})

    def names(self, cell):
        """Whether this complete spec is that of a cell."""
        return self == Spec.of(cell)

    def __str__(self):
        parts = [f"b{v}" if name == "batch" else str(v) for name, v in vars(self).items()]
        return "/".join(parts)


def parse(text):
    """The Spec of arch/impl[/mode[/seqlen[/dtype[/launch[/bN]]]]]; PlanError names the part that is wrong."""
    parts = text.split("/")
    if not 2 <= len(parts) <= len(fields(Spec)):
        raise PlanError(f"--cell {text}: write {FORM}; what is left out at the end has its default")
    takes = (ARCHITECTURES, IMPLEMENTATIONS, MODES, None, DTYPES, LAUNCHES, None)
    values = []
    for part, choices, field in zip(parts, takes, fields(Spec), strict=False):
        number = part.removeprefix("b") if field.name == "batch" else part
        if choices is None:
            if not number.isdecimal() or int(number) < 1:
                raise PlanError(f"--cell {text}: {part!r} is no {field.name}; write {FORM}")
            values.append(int(number))
        elif part in choices:
            values.append(part)
        else:
            known = ", ".join(choices)
            raise PlanError(f"--cell {text}: {part!r} is no {field.name}; choose from {known}")
    return Spec(*values)


def find(text, cells, options):
    """The cell of a run that a cell id or a spec names; PlanError with the nearest ones if it holds no such cell."""
    if "/" not in text:
        found, wanted = [cell for cell in cells if cell.id == text], text
    else:
        spec = parse(text).with_defaults(options)
        found, wanted = [cell for cell in cells if spec.names(cell)], str(spec)
    if len(found) == 1:
        return found[0]
    if found:
        raise PlanError(
            f"--cell {text}: names several, give an id: {', '.join(c.id for c in found)}"
        )
    by_name = {cell.id if "/" not in text else str(Spec.of(cell)): cell for cell in cells}
    near = difflib.get_close_matches(wanted, by_name, NEAREST, cutoff=0.0)
    raise PlanError(f"--cell {text}: the run holds no {wanted}; the nearest are {', '.join(near)}")


def times(records):
    """{cell: ms} of the measured cells: the median over rounds of the median wall time."""
    rounds = {}
    for record in records:
        ms = statistic(record, "time")
        if math.isfinite(ms):
            rounds.setdefault(Cell(**record["cell"]), []).append(ms)
    return {cell: statistics.median(found) for cell, found in rounds.items()}


def slowest(measured, n):
    """The `n` cells with the largest times, the slowest first."""
    return sorted(measured, key=measured.get, reverse=True)[:n]


def fastest(measured, options):
    """The fastest implementation of each architecture at the longest length that was measured.

    Of several modes prefill, or else the first; of dtypes, launches and batches the first of the run's `options`; of
    slices of a model the deepest.
    """
    mode = "prefill" if "prefill" in options["mode"] else options["mode"][0]
    setting = {name: options[name][0] for name in ("dtype", "launch", "batch")} | {"mode": mode}
    chosen = []
    for arch in options["arch"]:
        cells = [
            cell
            for cell in measured
            if cell.arch == arch and all(getattr(cell, k) == v for k, v in setting.items())
        ]
        if cells:
            last = max(map(_depth_and_length, cells))
            chosen.append(min((c for c in cells if _depth_and_length(c) == last), key=measured.get))
    return chosen


def _depth_and_length(cell):
    return layers_of(cell.preset) or math.inf, cell.seqlen
