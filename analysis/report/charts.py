"""The interactive figures of a report as Vega-Lite specifications, each with its words for those who cannot see it."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.effects import GROUP
from analysis.load import Setting, alternatives, impl_order, named, of
from analysis.ratios import against
from analysis.report import vega
from analysis.wording import TITLES, between, interval, number, pairing
from bench.figure_style import COLOURS
from bench.verdict import t_interval

MEASURES = {
    "time": ("Time of {}", "ms"),
    "memory": ("Peak memory beyond the weights", "MiB"),
    "energy": ("Energy of {}", "J"),
}
PASSES = {"prefill": "a forward", "decode": "a token", "train": "a training step"}
PARTS = {"measured": "#7F7F7F", "architecture": "#3E7DB5", "implementation": "#E08214"}
DIVERGING = ["#E08214", "#F7F7F7", "#3E7DB5"]  # as the pictures have it: blue where Mamba is better


@dataclass(frozen=True)
class Chart:
    """A figure: `spec` is Vega-Lite, `alt` says what it shows, and its values stand in a table of the same section."""

    id: str
    title: str
    alt: str
    spec: dict
    kind: str = "chart"
    linear: bool = True  # its axes may be switched to linear ones
    still: str = ""  # what its picture shows of what the reader may choose


def curves(results, setting, measure):
    """Time, memory or energy over length, with intervals, floors and what ran out of memory; None without values."""
    rows = list(levels(results, setting, measure))
    measured = [row for row in rows if row["value"] is not None]
    if not measured:
        return None
    title, unit = MEASURES[measure]
    title = title.format(PASSES.get(setting.mode, setting.mode)) + f", {unit}"
    data = [{**row, "shown": in_words(row, unit)} for row in rows]
    tips = [("series", "series"), ("tokens", "tokens"), ("shown", unit)]
    if measure == "time":
        data += _floors(results, setting)
    archs = {row["arch"] for row in data}
    dashes, shapes = (vega.by_arch(channel, archs) for channel in ("strokeDash", "shape"))
    layers = [
        vega.layer("line", "!datum.floor", strokeWidth=2, enc={"strokeDash": dashes}),
        vega.layer("point", "!datum.floor && datum.value", filled=True, size=55, enc={"shape": shapes}),
    ]  # fmt: skip
    if any(row.get("low") and row["high"] < vega.WIDEST * row["low"] for row in data):
        layers.insert(0, vega.band("!datum.floor && datum.low"))
    if any(row.get("floor") for row in data):
        grey = {"color": {"value": "#888888"}, "strokeDash": dashes}
        layers.append(vega.layer("line", "datum.floor", strokeWidth=1.3, enc=grey))
    if any(row.get("status") == "oom" for row in data):
        style = {"shape": "cross", "angle": 45, "size": 110, "filled": True}
        layers.append(
            vega.layer("point", "datum.status == 'oom'", **style, enc={"y": {"value": 6}})
        )
        layers[-1]["encoding"]["tooltip"] = vega.tooltips(tips)
    layers.append(vega.hover(tips))
    layers[0]["params"] = [
        {"name": "pick", "select": {"type": "point", "fields": ["impl"]}, "bind": "legend"}
    ]
    for layer in layers:
        if layer["mark"]["type"] in ("line", "area") and "color" not in layer["encoding"]:
            picked = {"param": "pick", "value": layer["mark"].get("opacity", 1)}
            layer["encoding"]["opacity"] = {"condition": picked, "value": 0.08}
    encoding = vega.axes(data, title, setting) | {
        "color": vega.by_impl({row["impl"] for row in rows}),
        "detail": {"field": "series"},
    }
    return Chart(
        chart_id(measure, setting),
        f"{title}: {setting}",
        ends(measured, unit),
        vega.spec(data, layers, encoding),
    )


def ratios(results, setting, measure, arch="mamba"):
    """The ratio matrix of llama and `arch` at a length that the reader chooses; None without ratios."""
    matrix = against(of(results.matrix[measure], setting), results.curves[measure], arch)
    matrix = matrix[matrix.ratio.notna()]
    if matrix.empty:
        return None
    lengths = sorted(matrix.seqlen.unique().tolist())
    logs = np.log(matrix.ratio[np.isfinite(matrix.ratio) & (matrix.ratio > 0)])
    most = max(float(logs.abs().max()) if len(logs) else 0, 0.1)
    data = [
        {
            "tokens": r.seqlen, "llama": r.llama_impl, arch: named(r.mamba_impl)[1], "best": bool(r.best),
            "level": float(np.clip(np.log(r.ratio) if r.ratio > 0 else -most, -most, most)),
            "brief": between(r).split(" [")[0], "shown": between(r), "winner": r.winner,
        }
        for r in matrix.itertuples()
    ]  # fmt: skip
    tips = [
        ("llama", "llama"),
        (arch, arch),
        ("shown", f"llama / {arch}"),
        ("winner", "winner"),
    ]
    level = {"field": "level", "type": "quantitative", "legend": None}
    level["scale"] = {"domain": [-most, 0, most], "range": DIVERGING}
    layers = [
        vega.layer("rect", "true", stroke="white", enc={"color": level}),
        vega.layer("rect", "datum.best", filled=False, stroke="black", strokeWidth=2),
        vega.layer("text", "true", fontSize=13, color="black", enc={"text": {"field": "brief"}}),
    ]
    impls = {name: sorted({row[name] for row in data}, key=impl_order) for name in (arch, "llama")}
    side = lambda name, orient: {
        "field": name, "type": "nominal", "sort": impls[name], "title": f"{name} under",
        "axis": {"labelAngle": 0, "orient": orient},
    }  # fmt: skip
    encoding = {
        "x": side(arch, "top"),
        "y": side("llama", "left"),
        "tooltip": vega.tooltips(tips),
    }
    spec = vega.spec(data, layers, encoding, height=46 * len(impls["llama"]))
    spec |= vega.choice("tokens", lengths[-1], lengths)
    said = [
        f"llama {d['llama']} / {arch} {d[arch]} {d['shown']}"
        for d in data
        if d["tokens"] == lengths[-1]
    ]
    return Chart(
        chart_id("ratio", setting, measure, "" if arch == "mamba" else arch),
        f"{measure.capitalize()} of llama / {arch}: {setting}. Above 1, in blue, {TITLES[arch]} is better; framed: "
        "best against best.",
        f"Ratio matrix at {lengths[-1]:,} tokens: {'; '.join(said)}.",
        spec,
        linear=False,
        still=f"at {lengths[-1]:,} tokens",
    )


def split(results, setting):
    """The measured ratio and the two factors that it is made of, over length, for a chosen pairing; None without."""
    table = of(results.identity, setting)
    table = table[np.isfinite(table.ratio) & (table.ratio > 0) & table.architecture.notna()]
    if table.empty:
        return None
    ends = {
        "measured": ("ratio", "low", "high"),
        "architecture": ("architecture", "architecture_least", "architecture_most"),
        "implementation": ("implementation", "implementation_low", "implementation_high"),
    }
    data = [
        {
            "tokens": r.seqlen, "pairing": pairing(r), "part": part,
            **_numbers(*(getattr(r, name) for name in names)), "shown": interval(*(getattr(r, name) for name in names)),
        }
        for r in table.itertuples()
        for part, names in ends.items()
    ]  # fmt: skip
    top = table[table.seqlen == table.seqlen.max()]
    row = next(rows for rows in (top[top.paper], top[top.best], top) if len(rows)).iloc[0]
    start = pairing(row)
    spec = _factors(data, "part", list(PARTS.items()), setting)
    pairings = list(dict.fromkeys(d["pairing"] for d in data))
    spec |= vega.choice("pairing", start, pairings)
    at = [
        f"{d['part']} {d['shown']}"
        for d in data
        if (d["pairing"], d["tokens"]) == (start, row.seqlen)
    ]
    return Chart(
        chart_id("split", setting), f"{_named_sides(table)} in time = architecture x implementation: {setting}",
        f"{start} at {row.seqlen:,} tokens: {', '.join(at)}. Above 1 it favours {TITLES[named(row.mamba_impl)[0]]}.",
        spec,
        still=f"({start})",
    )  # fmt: skip


def _named_sides(table):
    return " or ".join(f"llama / {arch}" for arch in alternatives(table))


def effects(results, group, measure):
    """The main effects of the factorial over length; None without any."""
    table = results.effects
    here = (table[GROUP] == list(group)).all(axis=1) & (table.measure == measure)
    table = table[here & np.isfinite(table.factor) & ~table.term.str.contains(" x ", regex=False)]
    if table.empty:
        return None
    data = [
        {
            "tokens": r.seqlen, "part": f"{r.term}: {r.contrast}", **_numbers(r.factor, r.low, r.high),
            "shown": f"{interval(r.factor, r.low, r.high)} ({r.verdict})",
        }
        for r in table.itertuples()
    ]  # fmt: skip
    names = dict.fromkeys(d["part"] for d in data)
    colour = lambda part: next(
        (c for i, c in COLOURS.items() if f": {i} / mean" in part), "#7F7F7F"
    )
    setting = Setting(group[0], group[1], "", group[2], "")
    title = f"Effects on {measure}: {group[0]}, batch {group[1]}, {group[2]}"
    alt = f"At {data[-1]['tokens']:,} tokens: " + "; ".join(
        f"{d['part']} {d['shown']}" for d in data if d["tokens"] == data[-1]["tokens"]
    )
    spec = _factors(data, "part", [(name, colour(name)) for name in names], setting)
    return Chart(chart_id("effects", setting, measure), title, alt, spec)


def levels(results, setting, measure):
    """One row per cell that was tried: value, low, high (None where there is none)."""
    cells = of(results.cells, setting)
    cells = cells[cells.status.isin(["ok", "oom"])]
    for r in cells.itertuples():
        values = {
            "time": lambda r=r: (r.time_ms, r.time_low, r.time_high),
            "memory": lambda r=r: (r.memory_bytes / 2**20, math.nan, math.nan),
            "energy": lambda r=r: _energy(results, setting, r),
        }[measure]()
        yield point(r, *(values if r.status == "ok" else [math.nan])) | {"status": r.status}


def _energy(results, setting, cell):
    table = of(results.records, setting)
    here = (table.arch == cell.arch) & (table.impl == cell.impl) & (table.seqlen == cell.seqlen)
    values = table[here].energy_j.astype(float).dropna()
    return tuple(np.exp(t_interval(np.log(values[values > 0]))))


def _floors(results, setting):
    for r in of(results.floors, setting).itertuples():
        if not math.isnan(r.floor_ms):
            lacks = f", without {r.missing}" if r.missing else ""
            yield {
                "tokens": r.seqlen, "arch": r.arch, "series": f"floor of {r.arch}", "floor": True, "value": r.floor_ms,
                "shown": f"{number(r.floor_ms)} ({r.bound}{lacks})",
            }  # fmt: skip


def point(cell, value, low=math.nan, high=math.nan):
    """A row of a figure of cells over length."""
    names = {"arch": cell.arch, "impl": cell.impl, "series": f"{cell.arch} {cell.impl}"}
    return {"tokens": cell.seqlen, **names, **_numbers(value, low, high)}


def _numbers(value, low, high):
    """The three as JSON has them: None for what is not finite, and where a logarithm has no place for it."""
    found = {"value": value, "low": low, "high": high}
    found = {n: float(v) if math.isfinite(v) and v > 0 else None for n, v in found.items()}
    return found if found["low"] and found["high"] else {**found, "low": None, "high": None}


def in_words(row, unit):
    """A row of `levels` as the pointer shows it."""
    if row["status"] == "oom":
        return "out of memory"
    low, high = (math.nan if row[n] is None else row[n] for n in ("low", "high"))
    return interval(math.nan if row["value"] is None else row["value"], low, high)


def ends(rows, unit):
    """What lines over length end in, in words."""
    last = max(row["tokens"] for row in rows)
    here = sorted((row["value"], row["series"]) for row in rows if row["tokens"] == last)
    values = ", ".join(f"{series} {number(value)} {unit}" for value, series in here)
    return f"Lines over length. At {last:,} tokens: {values}."


def _factors(data, field, colours, setting):
    """Lines of factors over length with their bands and a rule at 1."""
    names, range_ = zip(*colours, strict=True)
    title = "factor"
    layers = [
        vega.rule(1),
        vega.layer("line", "true", strokeWidth=2),
        vega.layer("point", "true", filled=True, size=45),
        vega.hover([("part", "of"), ("tokens", "tokens"), ("shown", "factor")]),
    ]
    if any(row["low"] and row["high"] < vega.WIDEST * row["low"] for row in data):
        layers.insert(1, vega.band("datum.low"))
    colour = {"field": field, "type": "nominal", "scale": {"domain": names, "range": range_}}
    colour["legend"] = vega.LEGEND | {"labelLimit": 260}
    return vega.spec(
        data, layers, vega.axes([*data, {"value": 1}], title, setting) | {"color": colour}
    )


def chart_id(name, setting, *more):
    """The name of a figure on the page and on the disk."""
    return "-".join(str(part).replace(" ", "-") for part in (name, *more, *setting) if part != "")
