"""What stands in each section of a report: text, figures, tables and pictures, as plain values for the template."""

import pandas as pd

from analysis import metric_figures, metric_load, metric_pages, metric_tables, summary
from analysis.effects import GROUP
from analysis.headline import headline
from analysis.load import CELL, Setting, alternatives, logits_of, of
from analysis.report import charts, overlay, roofline
from analysis.report.parts import Picture, Table, Text, data_uri, fold
from analysis.shapley import other_logits, shapley_table
from analysis.wording import number
from bench.compare import REGRESSED, compare, machine_differences, not_compared

MOST_PICTURES = 1 << 19  # bytes of all pictures of the representation
FAILED = ("unavailable", "oom", "timeout", "error", "interpreted")


def answer(results):
    """The headline, and what else the run says in sentences."""
    said = [Text(headline(results), "lead")]
    more = [line for line in summary.sentences(results) if line not in said[0].lines]
    return [*said, Text(more)]


def comparison(a, b, name_a, name_b, settings):
    """What run b is relative to run a: its headline, the machines, times and a verdict on every common cell."""
    found, missing = compare(a.run.records, b.run.records)
    different = machine_differences(a.run.machine, b.run.machine)
    counts = pd.Series([c.verdict for c in found], dtype=object).value_counts()
    lines = [f"Of {name_b}: {line}" for line in headline(b)]
    same = "The same machine and versions."
    lines.append(f"Machines or versions differ: {different}." if different else same)
    lines.append(
        f"{len(found)} comparisons of {name_b} relative to {name_a}, simultaneous 95 % intervals: "
        + (", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "no common cell")
        + "."
    )
    rows = [
        {
            "cell": c.cell.id, "measure": c.measure, f"{name_b} / {name_a}": number(c.interval.ratio, 4),
            "interval": f"[{number(c.interval.low, 4)}, {number(c.interval.high, 4)}]", "rounds": c.interval.n,
            "verdict": f"{c.verdict}: {c.reason}" if c.reason else c.verdict,
        }
        for c in sorted(found, key=lambda c: (c.verdict not in REGRESSED, c.measure != "time"))
    ]  # fmt: skip
    lost = pd.DataFrame({f"A is {name_a}, B is {name_b}": list(not_compared(missing))})
    return [
        Text(lines),
        *(overlay.times(a, b, setting, name_a, name_b) for setting in settings),
        Table("Cell by cell, regressions first", pd.DataFrame(rows)) if rows else None,
        fold("Cells that are not compared", [("Cells that are not compared", lost)]),
    ]


def matrix(results, pages):
    """The ratio matrices as figures and tables."""
    drawn = [
        charts.ratios(results, setting, measure, arch)
        for setting in settings_of(results)
        for measure in ("time", "memory")
        for arch in alternatives(of(results.matrix[measure], setting))
    ]
    return [
        *drawn,
        fold("The same implementation on both sides, and best against best", pages["winners"]),
        fold("Every pair at every length", pages["ratios"]),
    ]


def curves(results, pages):
    """Time, memory and energy over length, and what the figures show as tables."""
    measures = [(s, m) for s in settings_of(results) for m in charts.MEASURES]
    drawn = [c for s, m in measures if (c := charts.curves(results, s, m)) is not None]
    return [*drawn, fold("The values", [*map(_values, drawn), *pages.get("caches", ())])]


def _values(chart):
    """(title, what a figure shows as a table): a row for each length and a column for each line."""
    rows = pd.DataFrame(chart.spec["data"]["values"])
    table = rows.pivot(index="tokens", columns="series", values="shown").fillna("-")
    table.insert(0, "tokens", [f"{n:,}" for n in table.index])
    return chart.title, table


def with_logits(results, others):
    """Make the logits a switch of `results` where one of `others` differs in it; returns what to say of it.

    Args:
        others: [(name, Results)] of the runs that it is compared with.
    """
    if not (results.cells["mode"] == "prefill").any():
        return []
    mine, said = logits_of(results.run), []
    for name, other in others:
        if reason := other_logits(results.run, other.run):
            said.append(f"{name} does not make the logits a switch, because {reason}.")
            continue
        results.shapley = shapley_table(results, other)
        sides = [
            r.cells[(r.cells.status == "ok") & (r.cells["mode"] == "prefill")]
            for r in (results, other)
        ]
        common = len(sides[0].merge(sides[1], on=CELL))
        return [
            f"The switch logits stands on {common} cells that were measured in this run (logits {mine}) and in {name} "
            f"(logits {logits_of(other.run)})."
        ]
    missing = "all" if mine == "last" else "last"
    return said or [
        f"This run computed one setting of logits ({mine}), so what they contribute is not known; a second run with "
        f"--logits {missing}, named after this one on the command line of the report, adds it."
    ]


def effects(results, pages, logits):
    """How much is architecture and how much implementation, by length; `logits`: what `with_logits` says."""
    drawn = [charts.split(results, s) for s in settings_of(results)]
    groups = results.cells[GROUP].drop_duplicates().values
    drawn += [charts.effects(results, g, m) for g in groups for m in ("time", "memory")]
    names = {
        "identity": "Time as architecture times implementation",
        "effects": "Effects over all that was measured",
        "shapley": "From the paper's pairing to the best one",
    }
    folds = (fold(title, pages.get(name, ())) for name, title in names.items())
    return [*drawn, *folds, Text(logits) if logits else None]


def rooflines(results):
    """How near every cell comes to its floor and to the roofs of the machine, and why a floor is missing."""
    kinds = (roofline.share, roofline.attained)
    drawn = [draw(results, setting) for setting in settings_of(results) for draw in kinds]
    reasons = [f"No floor: {reason}." for reason in results.floors.reason.unique() if reason]
    return [*drawn, Text(reasons) if reasons else None]


def absent(results):
    """The cells without a time, equal reasons once."""
    gone = results.cells[results.cells.status.isin(FAILED)]
    rows = [
        {
            "arch": arch, "impl": impl, "mode": mode, "status": status,
            "tokens": ", ".join(f"{n:,}" for n in sorted(group.seqlen.unique())), "reason": reason or "none recorded",
        }
        for (arch, impl, mode, status, reason), group in gone.groupby(
            ["arch", "impl", "mode", "status", "reason"], sort=False
        )
    ]  # fmt: skip
    return Table("Cells without a time, and why", pd.DataFrame(rows)) if rows else None


def representation(path, figures):
    """The representation metrics of the run directory: sentences, pictures (written to `figures`) and tables."""
    if not (path / metric_load.NAME).exists():
        return [Text([f"Not measured in this run; `python -m analysis.metrics {path}` adds it."])]
    skipped = []
    found = metric_pages.Found(metric_load.read(path / metric_load.NAME, skipped))
    parts = [Text([*(f"Skipped: {line}" for line in skipped), *metric_tables.sentences(found)])]
    room = MOST_PICTURES
    for picture in metric_figures.write(found.records, figures):
        if (room := room - picture.stat().st_size) < 0:
            parts.append(Text(["More pictures than fit on a page lie in figures/."]))
            break
        title = picture.stem.replace("_", " ")
        parts.append(Picture(title, data_uri(picture.read_bytes(), "image/png")))
    pages = metric_tables.pages(found)
    return [*parts, *(fold(n.replace("_", " ").capitalize(), s) for n, s in pages.items())]


def machine(run):
    """How to repeat a run, and what it ran on."""
    machine, plan = run.machine, run.plan
    facts = {k: v for k, v in machine.items() if not isinstance(v, dict)}
    for name in ("gpu", "versions", "git", "peaks"):
        facts |= {f"{name}: {k}": v for k, v in (machine.get(name) or {}).items()}
    facts |= {k: plan.get(k) for k in ("created", "protocol", "preset", "rounds", "seed")}
    facts["sessions"] = ", ".join((plan.get("tokens") or {}).get("sessions") or [])
    rows = [(k, number(v, 4) if isinstance(v, float) else str(v)) for k, v in facts.items()]
    revision = (machine.get("git") or {}).get("revision")
    commands = [
        f"git checkout {revision}" if revision else "# the revision was not recorded",
        plan.get("command") or "# the command was not recorded",
    ]
    facts = Table("Machine, versions and plan", pd.DataFrame(rows, columns=["what", "value"]))
    return [Text(["To repeat it:", *commands], "command"), facts]


def settings_of(results):
    """The settings that were tried, in the order of the table of cells."""
    return [Setting(*key) for key in results.cells[list(Setting._fields)].drop_duplicates().values]
