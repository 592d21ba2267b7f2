"""The runs that findings are made of: folders and their sub-folders, and which of them answers what."""

import json
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from analysis import metric_load
from analysis.load import PAIR, of, versus
from analysis.metric_pages import Found
from analysis.metric_plan import GROUPS
from analysis.paper import LENGTH, PRESET, nearest_setting
from analysis.paper_metrics import LENGTH as SESSION
from analysis.readme import machine_name, revision
from analysis.summary import Results
from bench.blocks import apart
from bench.long_context import NAME as LONG
from bench.records import RecordError, read_run

PLAN = "plan.json"
CLOSE = 0.05  # relative difference of parameters that counts as equal
OPTIONS = {  # of analysis.metrics, by the group whose records hold the settings
    "attention": ("rows", "channels"),
    "context": ("probes", "draws"),
    "shifts": ("sessions", "session_tokens", "bootstrap"),
}


@dataclass(frozen=True)
class Source:
    """One folder: its times, its representation metrics, or both.

    Attributes:
        name: what the text calls the folder, relative to where the text lies.
        results: `analysis.summary.Results`, without a record where nothing was timed.
        metrics: the records of metrics.jsonl.
    """

    name: str
    results: Results
    metrics: list

    @property
    def run(self):
        return self.results.run

    @cached_property
    def found(self):
        """Everything that is made of the metrics."""
        return Found(self.metrics)

    def repeat(self):
        """The command that made its times, where they lie and the revision."""
        return f"`{self.run.plan.get('command')}` ({self._place()})"

    def repeat_metrics(self, *groups):
        """The commands that made its metrics of some groups."""
        command = (
            f"`{self.run.plan.get('command')}`, then `{metrics_command(self.metrics, groups)}`"
        )
        return f"{command} ({self._place('its sweep at ')})"

    def _place(self, what=""):
        return f"[`{self.name}`]({self.name}), {what}revision `{revision(self.run.machine)}`"


@dataclass(frozen=True)
class Given:
    """All runs that were given, in the order of their claims to be the main one."""

    sources: list
    long: list = field(default_factory=list)  # (name, rows) of bench.long_context

    @cached_property
    def main(self):
        """The prefills that tell most, of the paper's models if there are any; None without a ratio."""
        return max(self._prefills("lab"), key=Timed.worth, default=None)

    @property
    def curves(self):
        """{(arch, impl): `Timed`} of every prefill of the main run's models, where it has most lengths."""
        found = {}
        for timed in [self.main, *self._prefills("lab")]:
            if timed.setting == self.main.setting:
                for key in timed.sides():
                    if key not in found or timed.lengths > found[key].lengths:
                        found[key] = timed
        return found

    @cached_property
    def equal_size(self):
        """The prefills of a pair with as many parameters on both sides."""
        return next((t for t in self._prefills("lab") if t.is_equal_size), None)

    @cached_property
    def paper_protocol(self):
        return next(iter(self._prefills("paper")), None)

    def mode(self, name):
        """What decodes or trains."""
        return max(self._timed(name), key=Timed.worth, default=None)

    @property
    def timed(self):
        """The sources that hold times of the pair."""
        return [s for s in self.sources if len(s.results.records)]

    def measured(self, *groups):
        """The source that knows most of a group of metrics, compared at the length nearest to the paper's."""
        found = []
        for source in self.sources:
            units = [
                r for r in metric_load.measured(source.metrics) if r["unit"]["group"] in groups
            ]
            if units:
                found.append((_worth(units), source))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def _prefills(self, protocol):
        return [timed for timed in self._timed("prefill") if timed.protocol == protocol]

    def _timed(self, mode):
        for source in self.sources:
            timed = Timed(source, mode)
            if timed.seqlen is not None:
                yield timed


class Timed:
    """The ratios of one mode of a source, in the setting nearest to the paper's."""

    def __init__(self, source, mode):
        self.source, self.results = source, source.results
        self.protocol = source.run.plan.get("protocol")
        self.setting = nearest_setting(self.results, mode)

    @cached_property
    def seqlen(self):
        """The length nearest to the paper's 4,096 that has a ratio; None without any."""
        if self.setting is None:
            return None
        ratios = self.matrix("time")
        known = np.isfinite(ratios.ratio.astype(float)) & (ratios.ratio > 0)
        lengths = ratios[known].seqlen.unique()
        return min(map(int, lengths), key=lambda n: abs(math.log(n / LENGTH)), default=None)

    @cached_property
    def lengths(self):
        """How many lengths have a ratio."""
        return self.matrix("time").seqlen.nunique()

    def worth(self):
        """What makes one run tell more than another: the paper's models and pairing, then lengths, then rounds."""
        theirs = bool(self.matrix("time").paper.any())
        return self.setting.preset == PRESET, theirs, self.lengths, self.rounds

    def sides(self):
        """(arch, impl) of every curve."""
        return [(arch, impl) for arch in PAIR for impl in self.impls(arch)]

    @property
    def rounds(self):
        """How many rounds the ratios of times stand on, at most."""
        return int(self.at("time").rounds.max())

    @property
    def is_equal_size(self):
        """Whether both models have about as many parameters."""
        counts = self.source.run.plan.get("architectures") or {}
        totals = [counts[arch]["total"] for arch in PAIR if arch in counts]
        return len(totals) == len(PAIR) and max(totals) <= (1 + CLOSE) * min(totals)

    def matrix(self, measure):
        """The ratios LLaMA / Mamba, as `analysis.ratios.ratio_matrix` has them."""
        return versus(of(self.results.matrix[measure], self.setting), "mamba")

    def at(self, measure):
        """Those at `seqlen`."""
        rows = self.matrix(measure)
        return rows[(rows.seqlen == self.seqlen) & rows.ratio.notna()]

    def curve(self, measure, arch, impl):
        """Rounds x lengths."""
        return self.results.curves[measure][self.setting, arch, impl]

    def impls(self, arch):
        """The implementations that were tried, as tables list them."""
        rows = self.matrix("time")
        return list(dict.fromkeys(rows[f"{arch}_impl"]))


def read(paths, base):
    """`Given` of folders, each with its sub-folders that hold a run.

    Args:
        base: the folder that names in the text are relative to.

    Raises:
        RecordError: a folder holds no run, or times come from several machines.
    """
    folders = {}
    for path in map(Path, paths):
        below = sorted({p.parent for name in (PLAN, LONG) for p in path.glob(f"*/{name}")})
        here = [path] if (path / PLAN).exists() or (path / LONG).exists() else []
        if not here and not below:
            raise RecordError(
                f"{path}: neither it nor a folder in it holds a {PLAN}, so it is no run"
            )
        folders |= {f.resolve(): f for f in (*here, *below)}
    named = {relative(f, base): f for f in folders.values()}
    sources = [
        Source(name, Results(apart(read_run(f))), metric_load.read(f / metric_load.NAME))
        for name, f in named.items()
        if (f / PLAN).exists()
    ]
    given = Given(sources, [(n, _rows(f / LONG)) for n, f in named.items() if (f / LONG).exists()])
    machines = {}
    for source in given.timed:
        machines.setdefault(machine_name(source.run.machine), source.name)
    if len(machines) > 1:
        both = " and ".join(f"{machine} ({name})" for machine, name in machines.items())
        raise RecordError(f"times of several machines: {both}; give the runs of one of them")
    return given


def relative(path, base):
    """A path as seen from a folder, in the way of links."""
    return Path(os.path.relpath(path, base)).as_posix()


def metrics_command(records, wanted):
    """The call of analysis.metrics that makes the records of some groups of a metrics.jsonl, of a run RUN."""
    groups = {}
    for record in metric_load.measured(records):
        if record["unit"]["group"] in wanted and record["unit"]["impl"] != metric_load.GOLD:
            groups.setdefault(record["unit"]["group"], []).append(record)
    words = ["python -m analysis.metrics RUN --groups", ",".join(g for g in GROUPS if g in groups)]
    if streamed := [r for g in ("hidden", "attention", "state") for r in groups.get(g, ())]:
        words.append(f"--seqlen {streamed[0]['unit']['seqlen']}")
    if "context" in groups:
        words.append(f"--context {groups['context'][0]['unit']['seqlen']}")
    for group, names in OPTIONS.items():
        settings = groups[group][0]["settings"] if group in groups else {}
        words += [f"--{n.replace('_', '-')} {settings[n]}" for n in names if n in settings]
    return " ".join(words)


def _worth(units):
    """Most sessions, else nearest to the paper's length, else most initialisations."""
    sessions = max(r["extra"].get("sessions", 0) for r in units)
    far = min(abs(math.log((r["unit"]["seqlen"] or SESSION) / SESSION)) for r in units)
    return sessions, -far, len({r["unit"]["seed"] for r in units})


def _rows(file):
    """The rows of a long.jsonl.

    Raises:
        RecordError: a broken line.
    """
    try:
        rows = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
        return [row for row in rows if row["status"] == "ok" and row["arch"] in PAIR]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{file}: not what bench.long_context writes: {error}") from None
