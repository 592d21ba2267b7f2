"""Runs as a report reads them: what is broken is left out and named, what is too much is cut and named."""

from dataclasses import asdict, replace

from analysis import load
from analysis.load import Setting, of
from analysis.paper import nearest_setting
from analysis.summary import Results
from bench.blocks import apart
from bench.plan import Cell
from bench.records import make_record, read_run

SETTING = list(Setting._fields)
NEWEST = "device"  # runs without this field had one device, which their machine.json names
MOST_SETTINGS, MOST_CELLS = 6, 400  # what a page shows; the rest is in the tables


def read(path):
    """(Results of a run directory, warnings: sentences about what is broken or old).

    Raises:
        RecordError: the directory is no run.
    """
    warnings = []
    run = apart(read_run(path, warnings))
    known = make_record(Cell("", "", "", 0), 0, 0, "ok").keys() - {NEWEST}
    lacking = dict.fromkeys(n for r in run.records for n in known - r.keys())
    lacking |= dict.fromkeys(n for r in run.records for n in load.CELL if n not in r["cell"])
    if lacking:
        warnings.append(f"Records of an older schema, without {', '.join(sorted(lacking))}.")
        records = [r | {"cell": asdict(Cell(**r["cell"]))} for r in run.records]
        run = replace(run, records=records)
    try:
        frame = load.frame(run)
    except Exception:  # one record at a time, to name those that are broken
        run = replace(run, records=[r for r in run.records if _readable(run, r, warnings)])
        frame = load.frame(run)
    results = Results(run)
    results.records = frame  # computed once: it takes longest
    return results, warnings


def _readable(run, record, warnings):
    try:
        load.frame(replace(run, records=[record]))
    except Exception as error:
        where = f"{Cell(**record['cell']).id}, round {record['round']}"
        warnings.append(f"The record of {where} is skipped: {type(error).__name__}: {error}")
        return False
    return True


def cut(results):
    """(Results of as many settings as a page shows, the settings that are left out), the paper's first."""
    settings = [Setting(*k) for k in results.cells[SETTING].drop_duplicates().values.tolist()]
    first = [nearest_setting(results, mode) for mode in results.cells["mode"].unique()]
    kept, count = [], 0
    for setting in dict.fromkeys([*(s for s in first if s is not None), *settings]):
        size = len(of(results.cells, setting))
        if not kept or (len(kept) < MOST_SETTINGS and count + size <= MOST_CELLS):
            kept.append(setting)
            count += size
    if len(kept) == len(settings):
        return results, []
    within = lambda cell: tuple(cell[name] for name in SETTING) in set(kept)
    run, plan = results.run, results.run.plan
    plan = plan | {"cells": [cell for cell in plan.get("cells") or [] if within(cell)]}
    records = [record for record in run.records if within(record["cell"])]
    shown = Results(replace(run, plan=plan, records=records))
    for name in ("records", "cells"):
        table = getattr(results, name)
        setattr(shown, name, table[[within(cell) for cell in table[SETTING].to_dict("records")]])
    return shown, [s for s in settings if s not in kept]
