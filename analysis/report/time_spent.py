"""The section "Where the time goes": the captures of a run as sentences, a figure and tables by named range."""

import math
import shlex
import statistics

import pandas as pd

from analysis import captures
from analysis.report import vega
from analysis.report.charts import PASSES, Chart
from analysis.report.parts import Table, Text, fold
from analysis.wording import TITLES, number
from bench.compare import machine_differences

WORDS = {
    "op/selective_scan": "the scan",
    "op/ssd_scan": "the scan",
    "op/selective_state_update": "the update of the state",
    "op/causal_conv1d": "the convolution",
    "op/causal_conv1d_update": "the update of the convolution",
    "op/causal_attention": "attention",
}
BACKWARD = ".backward"
COLOURS = {
    "op/selective_scan": "#3E7DB5", "op/selective_scan.backward": "#1F4E79",
    "op/ssd_scan": "#3E7DB5", "op/ssd_scan.backward": "#1F4E79",
    "op/selective_state_update": "#3E7DB5", "op/causal_conv1d": "#7CC4E8",
    "op/causal_conv1d.backward": "#2A9DA8", "op/causal_conv1d_update": "#7CC4E8",
    "op/causal_attention": "#E08214", "op/causal_attention.backward": "#A6540A",
    captures.REST: "#A3A3A3", captures.OUTSIDE: "#D9D9D9", captures.OUTSIDE_TRAIN: "#D9D9D9",
}  # fmt: skip
OTHERS = ("#8C6BB1", "#66A61E", "#E7298A", "#E6AB02")  # of operators that the lab does not know
MIB = 1 << 20
INDENT = "\u00a0" * 4  # no place for a new line


def section(results, warnings):
    """The parts of the section; captures that cannot be read are named in `warnings`."""
    path = results.run.path
    found = captures.read(path, warnings)
    if not found:
        command = shlex.join(["python", "-m", "profiles.capture", str(path), "--fastest"])
        return [
            Text(
                [
                    f"No profile of this run was kept; `{command}` makes some, and this section of them."
                ]
            )
        ]
    names = _names(found)
    pairs = list(zip(found, names, strict=True))
    return [
        Text([_sentence(*pair) for pair in pairs]),
        bars(pairs),
        Table("What was profiled", _overview(pairs)),
        *(part for pair in pairs for part in _details(*pair)),
        Text(_notes(pairs, results.run.machine)),
        Text(
            ["The exact commands:", *(str(c.manifest.get("command", "-")) for c in found)],
            "command",
        ),
    ]


def _details(capture, name):
    """The tables of one capture."""
    yield Table(f"Time by range, layers added up: {name}", _ranges(capture))
    yield fold(f"What took most of it: {name}", [(name, _work(capture))])
    if capture.memory is not None:
        yield fold(f"Memory by range: {name}", [(name, _memory(capture))])


def bars(pairs):
    """A bar for each capture, divided among the operators."""
    data, alt = [], []
    for capture, name in pairs:
        rows = captures.by_operator(capture)
        alt.append(
            f"{name}: " + ", ".join(f"{r.part} {_percent(r.share)}" for r in rows.itertuples())
        )
        data += [
            {
                "cell": name, "part": r.part, "share": 100 * r.share, "at": i,
                "shown": f"{_percent(r.share)}, {number(r.ms)} ms ({capture.clock} time)",
            }
            for i, r in enumerate(rows.itertuples())
        ]  # fmt: skip
    parts = sorted({d["part"] for d in data}, key=lambda part: [*COLOURS, part].index(part))
    unknown = [part for part in parts if part not in COLOURS]
    colours = COLOURS | {p: OTHERS[i % len(OTHERS)] for i, p in enumerate(unknown)}
    legend = vega.LEGEND | {"labelLimit": 300, "symbolType": "square"}
    legend["columns"] = {"expr": "width < 420 ? 1 : 2"}
    encoding = {
        "y": {"field": "cell", "type": "nominal", "sort": [name for _, name in pairs], "title": None,
              "axis": {"labelLimit": 190}},
        "x": {"field": "share", "type": "quantitative", "stack": "zero", "title": "share of a repetition, %",
              "scale": {"domain": [0, 100]}, "axis": {"tickCount": 5}},
        "order": {"field": "at"},
        "color": {"field": "part", "type": "nominal", "legend": legend,
                  "scale": {"domain": parts, "range": [colours[part] for part in parts]}},
        "tooltip": vega.tooltips([("cell", "cell"), ("part", "range"), ("shown", "takes")]),
    }  # fmt: skip
    layers = [{"mark": {"type": "bar", "stroke": "white", "strokeWidth": 0.5}}]
    spec = vega.spec(data, layers, encoding, height=34 * len(pairs) + 10)
    return Chart(
        "spent-time", "Where the time of a repetition goes", ". ".join(alt), spec, linear=False
    )


def _names(found):
    """What tells the captures apart: architecture, implementation and length, and whatever else differs."""
    sides = [
        lambda c: c.cell.preset,
        lambda c: f"batch {c.cell.batch}",
        lambda c: c.cell.dtype,
        lambda c: c.cell.mode,
        lambda c: c.cell.launch,
        lambda c: str(c.manifest.get("profiler")),
    ]
    varying = [text for text in sides if len({text(c) for c in found}) > 1]
    return [
        ", ".join(
            [f"{c.cell.arch} {c.cell.impl} {c.cell.seqlen:,}", *(text(c) for text in varying)]
        )
        for c in found
    ]


def _sentence(capture, name):
    """`Under cpu at 2,048 tokens 37 % of a Mamba forward is the scan, 63 % projections, norms and the rest.`"""
    cell, rows = capture.cell, captures.by_operator(capture)
    operators = rows[rows.part.str.startswith("op/")].sort_values("share", ascending=False)
    shares = [(r.share, _words(r.part)) for r in operators.itertuples()]
    shares.append((1 - operators.share.sum(), "projections, norms and the rest"))
    task = PASSES.get(cell.mode, cell.mode).removeprefix("a ")
    whole = f"a {TITLES.get(cell.arch, cell.arch).removeprefix('the ')} {task}"
    whole = f"the device time of {whole}" if capture.clock == "device" else whole
    (first, words), others = shares[0], shares[1:]
    text = f"Under {cell.impl} at {cell.seqlen:,} tokens {_percent(first)} of {whole} is {words}"
    text += "".join(f", {_percent(share)} {words}" for share, words in others)
    extra = name.split(", ", 1)[1:]
    return text + (f" ({extra[0]})." if extra else ".")


def _words(part):
    name = part.removesuffix(BACKWARD)
    words = WORDS.get(name, name.removeprefix("op/"))
    return f"the backward of {words}" if part.endswith(BACKWARD) else words


def _notes(pairs, machine):
    """What captures say about themselves, and which were made elsewhere than the run; what all say once."""
    said = {}
    for capture, name in pairs:
        notes = list(capture.manifest.get("notes") or [])
        theirs = capture.manifest.get("machine")
        if isinstance(theirs, dict) and (other := machine_differences(machine, theirs)):
            notes.append(f"its machine is not that of the run: {other}.")
        for note in dict.fromkeys(notes):
            said.setdefault(note, []).append(name)
    return [
        note if len(names) == len(pairs) > 1 else f"{'; '.join(names)}: {note}"
        for note, names in said.items()
    ]


def _overview(pairs):
    rows = []
    for capture, name in pairs:
        said = capture.manifest
        wall = said.get("wall_ms") or []
        rows.append(
            {
                "cell": name,
                "profiler": f"{said.get('profiler')} {said.get('profiler_version') or ''}".strip(),
                "clock": capture.clock,
                "repetitions": said.get("reps", "-"),
                "ms, profiled": number(statistics.median(wall)) if wall else "-",
            }
        )
    return pd.DataFrame(rows)


def _ranges(capture):
    """The folded timeline; what the device does is left out where nothing ran on one."""
    table = captures.folded(capture)
    shown = {"range": [INDENT * (len(path) - 1) + path[-1] for path in table.path]}
    for name in captures.OF_DEVICE if capture.clock == "device" else captures.OF_HOST:
        title = name.replace("_ms", ", ms").replace("_", " ")
        shown[title] = table[name].map(number if "ms" in name else _count)
    shown["share"] = table.share.map(_percent)
    if capture.clock == "device":
        bound = zip(table.launch_bound, table.ranges, strict=True)
        shown["launch-bound"] = [_bound(*pair) for pair in bound]
    return pd.DataFrame(shown)


def _bound(count, ranges):
    """How many of the ranges wait for the host, in words; count is nan where nothing ran on a device."""
    if math.isnan(count):
        return "-"
    return f"{count:.0f} of {ranges}" if ranges > 1 else ("yes" if count else "no")


def _work(capture):
    rows = captures.most_work(capture).to_dict("records")
    shown = [
        {
            "range": " › ".join(r["path"]),
            "kind": r["kind"],
            "what": r["name"],
            "count": _count(r["count"]),
            "ms": number(r["ms"]),
        }
        for r in rows
    ]
    return pd.DataFrame(shown)


def _memory(capture):
    """memory_by_range.csv as it is, with bytes as MiB."""
    found = {}
    for name in capture.memory:
        values, title = capture.memory[name], name.replace("_", " ")
        numbers = pd.to_numeric(values, errors="coerce")
        if "bytes" in name:
            values, title = (numbers / MIB).map(number), f"{title.replace(' bytes', '')}, MiB"
        elif numbers.notna().all():
            values = numbers.map(number)
        found[title] = values
    return pd.DataFrame(found)


def _count(value):
    """A count, which is a whole number unless repetitions differ; `-` for none."""
    return "-" if math.isnan(value) else f"{value:,.6g}"


def _percent(share):
    if math.isnan(share):
        return "-"
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.1f} %"
