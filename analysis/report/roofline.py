"""Rooflines: what each cell reaches of its floor over length, and FLOP/s over arithmetic intensity below the roofs."""

import math

from analysis.load import of
from analysis.report import vega
from analysis.report.charts import Chart, chart_id, ends, point
from analysis.wording import number
from kernels.roofline import LinearProblem, floor

GIGA = 1e9
ROOFS = {"memory": "copy bandwidth", "matrix": "matrix peak", "exponential": "exponentials of {}"}


def share(results, setting):
    """The share of the floor that each cell reaches; None without floors or times."""
    floors = of(results.floors, setting)
    floors = {(r.arch, r.seqlen): r for r in floors.itertuples() if not math.isnan(r.floor_ms)}
    cells = of(results.cells, setting)
    cells = cells[(cells.status == "ok") & (cells.time_ms > 0)]
    data = []
    for r in cells.itertuples():
        if floor := floors.get((r.arch, r.seqlen)):
            value = 100 * floor.floor_ms / r.time_ms
            note = f", without {floor.missing}" if floor.missing else ""
            times = f"{number(floor.floor_ms)} of {number(r.time_ms)} ms"
            shown = f"{number(value)} % of the floor, {times} ({floor.bound}{note})"
            data.append(point(r, value) | {"shown": shown})
    if not data:
        return None
    archs = {row["arch"] for row in data}
    layers = [
        vega.rule(100),
        vega.layer(
            "line", "true", strokeWidth=2, enc={"strokeDash": vega.by_arch("strokeDash", archs)}
        ),
        vega.layer(
            "point", "true", filled=True, size=55, enc={"shape": vega.by_arch("shape", archs)}
        ),
        vega.hover([("series", "series"), ("tokens", "tokens"), ("shown", "reaches")]),
    ]
    encoding = vega.axes([*data, {"value": 100}], "share of the floor, %", setting) | {
        "color": vega.by_impl({row["impl"] for row in data}),
        "detail": {"field": "series"},
    }
    return Chart(
        chart_id("roofline", setting),
        f"Share of the floor on the measured peaks: {setting}",
        ends(data, "%"),
        vega.spec(data, layers, encoding),
    )


def attained(results, setting):
    """FLOP/s over FLOP per byte below the measured roofs of the machine; None without peaks or times.

    A cell's FLOPs and least bytes are those of its floor. The roof of exponentials lies where an architecture would be
    if they alone took time: the rate of exponentials times its FLOPs per exponential.
    """
    peaks = results.run.machine.get("peaks") or {}
    work = {(r.arch, r.seqlen): r for r in of(results.floors, setting).itertuples() if r.bytes > 0}
    cells = of(results.cells, setting)
    cells = cells[(cells.status == "ok") & (cells.time_ms > 0)]
    data = []
    for cell in cells.itertuples():
        if least := work.get((cell.arch, cell.seqlen)):
            speed, intensity = 1e3 * least.flops / cell.time_ms / GIGA, least.flops / least.bytes
            shown = f"{number(speed)} GFLOP/s at {number(intensity)} FLOP/byte"
            data.append(point(cell, speed) | {"intensity": intensity, "shown": shown})
    roofs = _roofs(peaks, setting.dtype, data, work)
    if not data or not roofs:
        return None
    grey = {"color": {"value": "#888888"}, "detail": {"field": "roof"}}
    dashed = {
        "condition": {"test": "datum.bound == 'exponential'", "value": [2, 3]},
        "value": [1, 0],
    }
    named = {"text": {"field": "roof"}, "color": {"value": "#888888"}}
    archs = {row["arch"] for row in data}
    layers = [
        vega.layer("line", "datum.roof", strokeWidth=1.5, enc=grey | {"strokeDash": dashed}),
        vega.layer("text", "datum.label", align="right", dy=-6, fontSize=11, enc=named),
        vega.layer(
            "line",
            "!datum.roof",
            strokeWidth=1,
            opacity=0.5,
            enc={"strokeDash": vega.by_arch("strokeDash", archs)},
        ),
        vega.layer(
            "point",
            "!datum.roof",
            filled=True,
            size=55,
            enc={"shape": vega.by_arch("shape", archs)},
        ),
        vega.hover([("series", "series"), ("tokens", "tokens"), ("shown", "reaches")]),
    ]
    layers[-1]["transform"] = [{"filter": "!datum.roof"}]
    speeds = [row["value"] for row in (*data, *roofs)]
    log = {"type": "log", "nice": False}
    encoding = {
        "x": {"field": "intensity", "type": "quantitative", "scale": log, "title": "FLOP per byte of least traffic"},
        "y": {"field": "value", "type": "quantitative", "title": "GFLOP/s",
              "scale": log | {"domain": [min(speeds) / 1.5, max(speeds) * 2]}},
        "color": vega.by_impl({row["impl"] for row in data}),
        "detail": {"field": "series"}, "order": {"field": "tokens"},
    }  # fmt: skip
    return Chart(
        chart_id("attained", setting),
        f"Speed over arithmetic intensity, below the measured roofs: {setting}",
        _ends_below(data, roofs),
        vega.spec([*data, *roofs], layers, encoding),
    )


def _roofs(peaks, dtype, data, work):
    """Rows of lines: the slope of the bandwidth up to the matrix peak, and a level of exponentials for each side."""
    if not data:
        return []
    left, right = (side(row["intensity"] for row in data) for side in (min, max))
    bandwidth, matrix = peaks.get("copy_bytes_per_s"), _matrix_peak(peaks, dtype)
    rows = []
    if bandwidth:
        ridge = (
            matrix / bandwidth if matrix else right
        )  # else the slope goes on as far as the points
        left, right = min(left, ridge / 4), max(right, ridge)
        rows += [_end("memory", x, bandwidth * x) for x in (left, ridge)]
    if matrix:
        rows += [_end("matrix", x, matrix) for x in (ridge if bandwidth else left, right * 1.5)]
    if rate := peaks.get("exp_per_s"):
        for arch in dict.fromkeys(row["arch"] for row in data):
            longest = work[arch, max(row["tokens"] for row in data if row["arch"] == arch)]
            if longest.exps:
                level = rate * longest.flops / longest.exps
                rows += [_end("exponential", x, level, arch) for x in (left, right * 1.5)]
    last = {row["roof"]: i for i, row in enumerate(rows)}
    return [row | {"label": last[row["roof"]] == i} for i, row in enumerate(rows)]


def _end(bound, intensity, flops, arch=""):
    name = ROOFS[bound].format(arch)
    return {
        "roof": name,
        "bound": bound,
        "intensity": intensity,
        "value": flops / GIGA,
        "series": name,
    }


def _matrix_peak(peaks, dtype):
    """FLOP/s of products in `dtype`, as floors count them; None if it was not measured."""
    product = LinearProblem(1, 1, 1)
    try:
        return (
            product.flops()
            / floor(product, dtype, {"matmul_flops": peaks.get("matmul_flops")}).seconds
        )
    except ValueError:
        return None


def _ends_below(data, roofs):
    last = max(row["tokens"] for row in data)
    reached = "; ".join(f"{row['series']} {row['shown']}" for row in data if row["tokens"] == last)
    levels = {row["roof"]: row["value"] for row in roofs if row["bound"] != "memory"}
    above = "".join(f", {name} {number(value)} GFLOP/s" for name, value in levels.items())
    return f"Points below roofs. At {last:,} tokens: {reached}. Roofs: copy bandwidth{above}."
