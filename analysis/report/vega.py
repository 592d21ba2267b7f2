"""Pieces of Vega-Lite specifications: axes over length, layers, what the pointer shows, what the reader chooses."""

import itertools

from analysis.load import PAIR, arch_order, impl_order
from bench.figure_style import COLOURS

OTHER = "#56B4E9"
DASHES = [[1, 0], [6, 4], [2, 2], [10, 3, 2, 3]]  # of mamba, llama and what comes after them
SHAPES = ["circle", "triangle-up", "square", "diamond"]
WIDEST = 100  # high / low; the band of a wider interval, as two noisy rounds have it, would hide all others
LEGEND = {"title": None, "orient": "top", "symbolOpacity": 1, "symbolStrokeColor": "transparent"}


def choice(field, value, options):
    """What the reader chooses of a figure's rows."""
    param = f"chosen_{field}"
    bind = {"input": "select", "options": options, "name": f"{field} "}
    return {
        "params": [{"name": param, "value": value, "bind": bind}],
        "transform": [{"filter": f"datum.{field} == {param}"}],
    }


def layer(mark, where, enc=None, **style):
    """One layer of the rows for which the expression `where` holds."""
    return {
        "transform": [{"filter": where}],
        "mark": {"type": mark, **style},
        "encoding": enc or {},
    }


def rule(at):
    """A grey line across the figure."""
    enc = {"y": {"datum": at}, "x": {"value": 0}, "x2": {"value": "width"}}
    return layer("rule", "true", enc=enc | {"color": {"value": "#888888"}})


def band(where):
    """Intervals, cut off at the limits of the axis."""
    enc = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    said = f"{where} && datum.high < {WIDEST} * datum.low"
    return layer("area", said, opacity=0.18, clip=True, enc=enc)


def hover(tips):
    """Large unseen points, which are easier to hit than those that are seen."""
    mark = {"type": "point", "filled": True, "size": 350, "opacity": 0}
    return {"mark": mark, "encoding": {"tooltip": tooltips(tips)}}


def tooltips(tips):
    """What the pointer shows, of (field, title) pairs."""
    kinds = {"tokens": {"type": "quantitative", "format": ",d"}}
    return [{"field": f, "title": t, **kinds.get(f, {"type": "nominal"})} for f, t in tips]


def axes(rows, title, setting):
    """The axes of a figure, with a tick at every length that was measured."""
    values = [row["value"] for row in rows if row["value"] is not None]
    ticks = sorted({row["tokens"] for row in rows if "tokens" in row})
    length = "context L, tokens" if setting.mode == "decode" else "tokens"
    x = {"type": "log", "base": 2, "nice": False, "padding": 12}
    y = {"type": "log", "nice": False, "domain": [min(values) / 1.5, max(values) * 1.5]}
    kind = {"type": "quantitative"}
    axis = {"values": ticks, "format": ",d", "labelOverlap": True}
    return {
        "x": {**kind, "field": "tokens", "scale": x, "title": length, "axis": axis},
        "y": {**kind, "field": "value", "scale": y, "title": title},
    }  # fmt: skip


def by_impl(names):
    """Implementations by colour, in the order of every table."""
    names = sorted(names, key=impl_order)
    legend = LEGEND | {"symbolType": "square"}
    scale = {"domain": names, "range": [COLOURS.get(n, OTHER) for n in names]}
    return {"field": "impl", "type": "nominal", "scale": scale, "legend": legend}


def by_arch(channel, names=PAIR):
    """Architectures by the dashes of lines or the shape of points: the pair, then the others among `names`."""
    names = sorted({*PAIR, *names}, key=lambda name: (name != "mamba", arch_order(name)))
    ranges = {"strokeDash": DASHES, "shape": SHAPES}
    scale = {"domain": names, "range": [v for _, v in zip(names, itertools.cycle(ranges[channel]))]}
    legend = LEGEND | {"symbolFillColor": "#777777"}
    return {"field": "arch", "type": "nominal", "scale": scale, "legend": legend}


def spec(data, layers, encoding, height=340):
    """A figure as wide as its place."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": data}, "encoding": encoding, "layer": layers, "config": {"aria": False},
    }  # fmt: skip
