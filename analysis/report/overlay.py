"""The time over length of two runs in one figure: the same colours, the second run dotted and fainter."""

import itertools

from analysis.load import PAIR, further
from analysis.report import vega
from analysis.report.charts import MEASURES, PASSES, Chart, chart_id, ends, in_words, levels

DASHES = (
    [1, 0],
    [6, 4],
    [2, 2],
    [6, 2, 1, 2],
    [10, 3],
    [1, 4],
    [10, 3, 2, 3],
    [3, 6],
)  # mamba and llama of the first run, and of the second; then so for every other architecture
FAINT = 0.55


def times(a, b, setting, name_a, name_b):
    """Time over length of the runs `a` and `b` (Results) in one setting; None where one of them has no time."""
    title, unit = MEASURES["time"]
    title = title.format(PASSES.get(setting.mode, setting.mode)) + f", {unit}"
    rows = []
    for results, name in ((a, name_a), (b, name_b)):
        found = [row for row in levels(results, setting, "time") if row["value"] is not None]
        if not found:
            return None
        for row in found:
            curve = f"{row['arch']}, {name}"
            shown = in_words(row, unit)
            rows.append(
                row
                | {
                    "run": name,
                    "curve": curve,
                    "series": f"{row['series']}, {name}",
                    "shown": shown,
                }
            )
    curves = [f"{arch}, {name}" for name in (name_a, name_b) for arch in reversed(PAIR)]
    archs = further(row["arch"] for row in rows)
    curves += [f"{arch}, {name}" for arch in archs for name in (name_a, name_b)]
    dashes = list(itertools.islice(itertools.cycle(DASHES), len(curves)))
    dash = {"field": "curve", "type": "nominal", "scale": {"domain": curves, "range": dashes}}
    dash["legend"] = vega.LEGEND | {
        "symbolType": "stroke", "symbolStrokeColor": "#777777", "symbolSize": 300, "labelLimit": 300,
        "columns": {"expr": "width < 420 ? 1 : 2"},
    }  # fmt: skip
    faint = {"condition": {"test": {"field": "run", "equal": name_a}, "value": 1}, "value": FAINT}
    shape = vega.by_arch("shape", archs) | {"legend": None}
    tips = [("series", "series"), ("tokens", "tokens"), ("shown", unit)]
    layers = [
        vega.layer("line", "true", strokeWidth=2, enc={"strokeDash": dash, "opacity": faint}),
        vega.layer("point", "true", filled=True, size=50, enc={"shape": shape, "opacity": faint}),
        vega.hover(tips),
    ]
    encoding = vega.axes(rows, title, setting) | {
        "color": vega.by_impl({row["impl"] for row in rows}),
        "detail": {"field": "series"},
    }
    return Chart(
        chart_id("both", setting, "".join(c if c.isalnum() else "-" for c in name_b)),
        f"{title}, {name_a} and {name_b}: {setting}",
        ends(rows, unit),
        vega.spec(rows, layers, encoding),
    )
