"""A run as one HTML page that needs no network: what it says, its figures and tables, and how to repeat it."""

import base64
import hashlib
import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pandas as pd
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis import summary, tables
from analysis.report import parts, sections, time_spent
from analysis.report.reading import cut, read
from bench.records import one_line

HERE = Path(__file__).parent
VEGA_LITE = "6.4"  # of vl-convert's, for the pictures and for the page
MOST_BYTES = 1 << 19  # of a file that can be downloaded


def build(runs, out=None):
    """Write the report of the first of `runs`, compared with the others, and its figures and tables.

    Args:
        runs: run directories.
        out: where to write; None is the first run.

    Returns:
        path of the page: report.html, or comparison.html for several runs.

    Raises:
        RecordError: one of `runs` is no run.
    """
    everything = [read(Path(run)) for run in runs]
    out = Path(out or runs[0])
    (whole, warnings), others = everything[0], everything[1:]
    results, left_out = cut(whole)
    warnings = [*warnings, *_doubts(whole)]
    if left_out:
        warnings.append(
            f"{len(left_out)} settings are not on this page; `python -m analysis.summary` writes their tables: "
            + "; ".join(map(str, left_out))
        )
    names = _names(runs)
    logits = sections.with_logits(
        results, zip(names[1:], (other for other, _ in others), strict=True)
    )
    shown = [_guarded("Headline", lambda: sections.answer(results), warnings)]
    for (other, said), name in zip(others, names[1:], strict=True):
        warnings += [f"{name}: {line}" for line in [*said, *_doubts(other)]]
        make = lambda b=other, name=name: sections.comparison(
            whole, b, names[0], name, sections.settings_of(results)
        )
        shown.append(_guarded(f"Compared with {name}", make, warnings))
    pages = _tables(results, out / "tables", warnings, whole.cells if left_out else None)
    made = {
        "Ratio matrix": lambda: sections.matrix(results, pages),
        "Over length": lambda: sections.curves(results, pages),
        "Architecture and implementation": lambda: sections.effects(results, pages, logits),
        "Crossovers": lambda: [parts.Table(*s) for s in pages["crossovers"]],
        "Roofline": lambda: sections.rooflines(results),
        "Parity": lambda: [parts.Table("What ran, and how well it is proven", tables.implementations(results))],
        "Where the time goes": lambda: time_spent.section(results, warnings),
        "Representation": lambda: sections.representation(results.run.path, out / "figures"),
        "Paper": lambda: [parts.Table(*s) for s in pages["paper"] if len(s[1])],
        "Not measured": lambda: [sections.absent(results)],
        "All tables": lambda: [parts.fold(n, pages[n.lower()]) for n in ("Cells", "Fits", "Slopes")],
        "Machine and method": lambda: sections.machine(whole.run),
    }  # fmt: skip
    shown += [_guarded(title, make, warnings) for title, make in made.items()]
    figures = [one for s in shown for one in s.parts if one.kind == "chart"]
    pictures = _draw(figures, out / "figures")
    path = out / ("comparison.html" if others else "report.html")
    page = _render(
        title=" and ".join(names), sections=shown, warnings=warnings, figures=figures, pictures=pictures,
        downloads=_downloads(whole, results), machine=_machine_name(whole.run.machine), created=_day(whole.run.plan),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
    return path


def _guarded(title, make, warnings):
    """A section; one that cannot be made says why, and the page says it at its top."""
    try:
        found = [p for p in make() if p is not None]
    except Exception as error:
        said = f"{title} is unavailable, because of {one_line(error)}"
        warnings.append(said)
        found = [parts.Text([said])]
    return parts.Section(
        title, found or [parts.Text(["Nothing to show: this run has no data for it."])]
    )


def _doubts(results):
    """What a reader must know before believing anything."""
    plan, machine = results.run.plan, results.run.machine
    if (machine.get("git") or {}).get("dirty"):
        yield "The working tree had uncommitted changes: the revision below does not say everything that ran."
    if not plan.get("cells"):
        yield "plan.json holds no cells, so whether the run is complete is unknown."
    else:
        yield from summary.incomplete(results)


def _names(runs):
    """The runs by their folders, or by their paths where folders have the same name."""
    names = [Path(run).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else list(map(str, runs))


def _tables(results, folder, warnings, cells=None):
    """The tables of strings by page; all tables are written as well, or only `cells` of a run that was cut."""
    try:
        if cells is None:
            tables.write(results, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            cells.to_csv(folder / "cells.csv", index=False)
        return tables.pages(results)
    except Exception as error:
        warnings.append(f"Tables are unavailable, because of {one_line(error)}")
        return defaultdict(list)


def _machine_name(machine):
    return (machine.get("gpu") or {}).get("name") or machine.get("cpu") or "an unknown machine"


def _day(plan):
    """When the run began, to the minute."""
    return str(plan.get("created") or "")[:16].replace("T", " ")


def _downloads(whole, results):
    """[(file name, data URI or None where it is too large, size)]."""
    found = {"cells.csv": whole.cells.to_csv(index=False)}
    found["ratios.csv"] = pd.concat(results.matrix.values()).to_csv(index=False)
    found["plan.json"] = json.dumps(whole.run.plan)
    found["machine.json"] = json.dumps(whole.run.machine)
    kinds = {".csv": "text/csv", ".json": "application/json"}
    for name, text in found.items():
        data = text.encode()
        small = len(data) <= MOST_BYTES
        yield name, parts.data_uri(data, kinds[Path(name).suffix]) if small else None, len(data)


def _draw(figures, folder):
    """{id: SVG as a data URI}; the same pictures as SVG and PNG in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("report_*"):
        old.unlink()
    found = {}
    for figure in figures:
        spec = figure.spec | {"width": 720, "background": "white", "title": _title(figure)}
        spec["config"] = spec["config"] | {"legend": {"columns": 5}}
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
        clips = {}  # numbered anew: vl-convert counts on from picture to picture
        svg = re.sub(r"\bclip\d+", lambda m, c=clips: c.setdefault(m[0], f"clip{len(c)}"), svg)
        name = f"report_{figure.id}"
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
        found[figure.id] = parts.data_uri(svg.encode(), "image/svg+xml")
    return found


def _title(figure):
    text, _, below = figure.title.partition(": ")
    return {"text": f"{text} {figure.still}".strip(), "subtitle": below, "anchor": "start"}


@cache
def _library():
    """Vega, Vega-Lite and their embedding as one script, which is `vegaEmbed`."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)


def _code(text):
    """A sentence with what stands in backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _render(figures, **values):
    scripts = [_library() if figures else "", (HERE / "page.js").read_text(encoding="utf-8")]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    env = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    env.filters["code"] = _code
    return env.get_template("template.html").render(
        scripts=[Markup(s) for s in scripts], hashes=hashes, most_rows=parts.MOST_ROWS,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        specs={f.id: {"spec": f.spec, "linear": f.linear} for f in figures}, **values,
    )  # fmt: skip
