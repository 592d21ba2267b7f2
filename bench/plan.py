"""What a run measures: factors -> cells -> rounds, and the file `plan.json` that a resumed run starts from."""

import itertools
import json
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_origin

VERSION = 1
DTYPES = ("fp32", "tf32", "bf16", "fp16")
MODES = ("prefill", "decode", "train")
LAUNCHES = ("eager", "graph")
PROTOCOLS = ("lab", "paper")
PAPER_LENGTHS = (512, 1024, 2048, 4096, 8192)


class PlanError(ValueError):
    """A plan that cannot be made, read or resumed; the message is one line."""


@dataclass(frozen=True)
class Cell:
    """One point of the plan.

    `dtype` is one of DTYPES: fp32 is true float32, tf32 is float32 on tensor cores. `seqlen` is the prompt of a
    prefill, the context of a decoded token (bench.decode) or the sequence that is trained on (bench.train).
    """

    arch: str
    impl: str
    preset: str
    seqlen: int
    batch: int = 1
    dtype: str = "fp32"
    mode: str = "prefill"
    launch: str = "eager"

    @property
    def id(self):
        """The name in ranges and messages, such as `mamba-triton-paper-50m-2048-b1-fp32-prefill-eager`."""
        return (
            f"{self.arch}-{self.impl}-{self.preset}-{self.seqlen}-b{self.batch}-"
            f"{self.dtype}-{self.mode}-{self.launch}"
        )

    @property
    def tokens(self):
        """How many tokens of a row the cell reads: its context and the decoded one, or its prompt."""
        return self.seqlen + (self.mode == "decode")


@dataclass
class Plan:
    """Everything that decides what is measured: the content of `plan.json`.

    Attributes:
        options: the resolved options of the command line, those that a resumed run must repeat.
        architectures: {arch: parameter counts and sizes}.
        tokens: {"sha256", "sessions", "padded": {seqlen: zeros appended}}.
    """

    cells: list[Cell]
    rounds: int
    seed: int
    protocol: str
    preset: str
    options: dict = field(default_factory=dict)
    architectures: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)
    created: str = ""
    command: str = ""

    def to_json(self):
        return {"version": VERSION, **asdict(self)}

    def write(self, path):
        """Write the file so that it is whole, old or new."""
        part = Path(path).with_suffix(".part")
        part.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def read_plan(path, needs=()):
    """The `Plan` of a `plan.json`, whose options hold all of `needs`.

    Raises:
        PlanError: the file and what is wrong with it.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path.parent} holds no plan.json, so it is no run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{path}: not readable as JSON: {error}") from None
    try:
        if data.pop("version") != VERSION:
            raise PlanError(f"{path}: written by another version of the lab; start a new run")
        cells = [Cell(**cell) for cell in data.pop("cells")]
        plan = Plan(cells=cells, **data)
        for part in (plan, *cells):
            _check_types(part)
        if not cells or plan.rounds < 1:
            raise PlanError(f"{path}: it plans nothing")
    except (AttributeError, KeyError, TypeError) as error:
        raise PlanError(f"{path}: not a plan: {error}") from None
    if lacking := [name for name in needs if name not in plan.options]:
        raise PlanError(f"{path}: its options lack {', '.join(lacking)}; start a new run")
    if "device" in needs and plan.options["device"] not in ("cpu", "cuda"):
        raise PlanError(f"{path}: device is {plan.options['device']!r}, not cpu or cuda"[:300])
    return plan


def _check_types(part):
    """TypeError if a field of a Plan or a Cell holds something else than is declared."""
    for each in fields(part):
        value = getattr(part, each.name)
        if not isinstance(value, get_origin(each.type) or each.type):
            raise TypeError(f"{each.name} is {value!r}"[:200])


def make_cells(archs, impls, preset, seqlens, batches, dtypes, launches, modes=("prefill",)):
    """The cross product of the factors; seqlens change fastest, then batches, launches, dtypes, modes."""
    product = itertools.product(archs, impls, modes, dtypes, launches, batches, seqlens)
    return [
        Cell(arch, impl, preset, seqlen, batch, dtype, mode, launch)
        for arch, impl, mode, dtype, launch, batch, seqlen in product
    ]


def half_octaves(low, high):
    """Lengths from `low` to `high`, each sqrt(2) times the one before, rounded to a whole token."""
    count = 0
    lengths = []
    while (length := round(low * 2 ** (count / 2))) <= high:
        lengths.append(length)
        count += 1
    return tuple(lengths)


def default_lengths(device_type, protocol):
    """The paper's five lengths, or half-octaves that suit the device."""
    if protocol == "paper":
        return PAPER_LENGTHS
    return half_octaves(512, 8192) if device_type == "cuda" else half_octaves(128, 2048)


def round_order(cells, seed, round_):
    """The cells of one round in an order of their own, the same for the same seed and round."""
    order = list(cells)
    random.Random(f"{seed}/{round_}").shuffle(order)
    return order


def references(cells):
    """{(arch, dtype): (tokens, largest batch)} of the outputs that prefill and decode are compared with."""
    found = {}
    for cell in cells:
        if cell.mode != "train":
            length, batch = found.get((cell.arch, cell.dtype), (0, 0))
            found[cell.arch, cell.dtype] = max(length, cell.tokens), max(batch, cell.batch)
    return found


def reference_path(run, arch, dtype):
    """Where a run keeps a reference of outputs."""
    return Path(run) / "references" / f"{arch}-{dtype}.safetensors"


def gradient_path(run, arch, dtype, seqlen, batch):
    """Where a run keeps a reference of gradients; they are no prefix of longer ones, so each length has its own."""
    name = f"{arch}-{dtype}-train-{seqlen}-b{batch}.safetensors"
    return Path(run) / "references" / name


def changed_options(planned, asked):
    """Why a run cannot be resumed with the options `asked`: [(option, planned value, asked value)].

    `rounds` may grow: the cells stay the same. Options that the plan does not hold decide no cell.
    """
    changed = []
    for name, value in asked.items():
        if name not in planned or value == planned[name]:
            continue
        if name == "rounds" and value > planned[name]:
            continue
        changed.append((name, planned[name], value))
    return changed
