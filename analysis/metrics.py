"""The representation metrics of a run: computed, or completed, for every implementation on the run's tokens.

    python -m analysis.metrics runs/NAME                      what `bench.sweep` computes by itself
    python -m analysis.metrics runs/NAME --extent full        the lengths, sessions and samples that claims need
    python -m analysis.metrics runs/NAME --groups shifts --sessions 120

Records are appended to metrics.jsonl in the run and synced as they are made; a second call makes only what is missing,
or was made with other settings. Groups: hidden (the residual stream), state (Mamba's recurrent state), attention
(softmax, Mamba's implicit attention, value-weighted contributions), context (effective context by gradient), shifts
(detection of labelled phase changes), similarity (CKA of layers). Exit status: 0 complete, 1 some could not be
computed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from analysis import metric_load
from analysis.metric_jobs import Metrics
from analysis.metric_plan import EXTENTS, GROUPS, OF_STREAM, jobs
from analysis.metric_progress import JobProgress
from analysis.shift_sessions import how_many
from bench.cli import Parser, at_least, some
from bench.plan import PlanError, read_plan
from bench.planning import read_tokens
from bench.records import Appender, RecordError, one_line
from models.checkpoint_tokenizer import tokenizer_of

NEEDS = (  # options of the run
    "device", "threads", "seed", "dtype", "arch", "impl", "sessions", "kind", "tokenizer", "checkpoint",
)  # fmt: skip


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        failed = compute(args.run, args.extent, args.groups, chosen(args), args.retry)
        shown = [] if args.quiet else write(args.run)
    except (PlanError, RecordError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command completes the metrics", file=sys.stderr)
        return 130
    if shown:
        from analysis import render

        out = render.console()
        for renderable in shown:
            out.print(renderable)
    return 1 if failed else 0


def make_parser():
    parser = Parser(
        prog="python -m analysis.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory, as bench.sweep writes it")
    add("--extent", choices=tuple(EXTENTS), default="small", help="how much (default: small)")
    add("--groups", type=some(GROUPS), default=GROUPS, metavar="LIST",
        help=f"what (default: {','.join(GROUPS)})")  # fmt: skip
    for name, text in HELP.items():
        small, full, gpu, gpu_full = (
            getattr(EXTENTS[e][d], name) for d in ("cpu", "cuda") for e in EXTENTS
        )
        add(f"--{name.replace('_', '-')}", type=at_least(0), metavar="N", dest=name,
            help=f"{text} (default: {small}, full {full}; on a GPU {gpu}, full {gpu_full})")  # fmt: skip
    add("--retry", action="store_true", help="make again what failed or was unavailable")
    add("--quiet", action="store_true", help="records only: no tables and figures")
    return parser


HELP = {
    "seqlen": "tokens at which implementations and initialisations are compared",
    "long": "tokens of one more forward of each architecture, 0 for none",
    "seeds": "initialisations",
    "rows": "sampled query rows of implicit attention per channel and of contributions",
    "channels": "sampled channels of implicit attention",
    "context": "tokens of the gradient's context",
    "probes": "positions that look back",
    "draws": "random vectors of the Hutchinson estimate",
    "sessions": "labelled sessions of the shift task",
    "session_tokens": "tokens of each, 0 for whole sessions",
    "bootstrap": "resamples of the shift task's intervals",
    "shuffles": "of the tokens, for the similarity that chance gives",
    "pairs": "1 to compare layers of initialisations and dtypes too, 0 for architectures and implementations",
}


def chosen(args):
    """{field: value} of what the command line says of the extent."""
    return {name: getattr(args, name) for name in HELP if getattr(args, name) is not None}


def compute(run, extent="small", groups=GROUPS, changes=None, retry=False):
    """Append the missing records of a run; returns how many of those that were made now are errors.

    Args:
        extent: a name of EXTENTS; `changes` replaces single fields of it.

    Raises:
        PlanError, RecordError, ValueError: the run cannot be read, or the extent not be had, in one line.
    """
    run = Path(run)
    plan = read_plan(run / "plan.json", needs=NEEDS)
    try:
        extent, planned, ids = _planned(run, plan, extent, groups, changes)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise PlanError(
            f"{run / 'plan.json'}: not what bench.sweep plans: {one_line(error)}"
        ) from None
    with JobProgress(Console(stderr=True), len(planned)) as progress:
        made = metric_load.read(run / metric_load.NAME)
        lab = Metrics(plan, extent, ids, made, progress.step)
        done = {_key(r["unit"]): r for r in made}
        failed = 0
        appender = Appender(run / metric_load.NAME)
        try:
            for job in planned:
                missing = [g for g in job.groups if not _is_done(done, job, g, lab, retry)]
                progress.step(str(job))
                for record in lab.records(job, missing) if missing else ():
                    appender.append(record)
                    made.append(record)
                    failed += record["status"] == "error"
                    if record["status"] == "error":
                        progress.say(f"{job}: {record['unit']['group']}: {record['reason']}")
                progress.finish()
        finally:
            appender.close()
    return failed


def _planned(run, plan, extent, groups, changes):
    """(Extent, jobs, tokens) of a plan."""
    extent = replace(EXTENTS[extent][plan.options["device"]], **(changes or {}))
    if plan.options["threads"]:
        torch.set_num_threads(plan.options["threads"])
    if "shifts" in groups and (there := how_many(plan.options)) is not None:
        extent = replace(extent, sessions=min(extent.sessions, there))
    planned = jobs(plan, extent, groups)
    lengths = (job.seqlen for job in planned if job.kind in OF_STREAM)
    return extent, planned, tokens(run, plan, max(lengths, default=2))


def tokens(run, plan, length):
    """(1, length) int64: the run's tokens, read on from the same sessions where the run was shorter.

    Raises:
        PlanError: the run kept no tokens; the sessions end before, or are not those of the run any more.
    """
    file = run / "references" / "tokens.safetensors"
    try:
        ids = load_file(file)["ids"][:1]
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise PlanError(
            f"{file}: not the tokens of a run: {one_line(error)}; start a new run"
        ) from None
    padded = max(plan.tokens["padded"].values(), default=0)
    if not 0 <= padded < ids.shape[1]:
        raise PlanError(
            f"{run / 'plan.json'}: pads {padded} of {ids.shape[1]} tokens; start a new run"
        )
    ids = ids[:, : ids.shape[1] - padded]
    if ids.shape[1] >= length:
        return ids[:, :length]
    options = plan.options | {"seqlens": [length], "batch": [1], "mode": ["prefill"]}
    longer = read_tokens(
        options | {"protocol": "lab"}, tokenizer_of(options["tokenizer"], options["checkpoint"])
    ).ids
    if not torch.equal(longer[:, : ids.shape[1]], ids):
        raise PlanError(f"{run}: its sessions are not what they were when it began; --seqlen and "
                        f"--context up to {ids.shape[1]:,} read the tokens that it kept")  # fmt: skip
    return longer


def write(run):
    """Write tables and figures of the records of a run; returns what a terminal shows."""
    from analysis import (  # seconds of imports that records do without
        metric_figures,
        metric_pages,
        metric_tables,
    )

    found = metric_pages.Found(metric_load.read(run / metric_load.NAME))
    metric_tables.write(found, run / "tables")
    metric_figures.write(found.records, run / "figures")
    return metric_tables.terminal(found)


def _is_done(done, job, group, lab, retry):
    """Whether a record holds what the job would make, with the same settings."""
    record = done.get(_key(job.unit(group)))
    if record is None or (retry and record["status"] != "ok"):
        return False
    return record["status"] != "ok" or record["settings"] == lab.settings(job)


def _key(unit):
    return json.dumps(unit, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
