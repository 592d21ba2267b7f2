"""Write the results of a run into README.md, between its markers, and copy what they stand on into a record.

    python -m analysis.readme runs/NAME --record profiles/records/MACHINE
    python -m analysis.readme --check              whether README.md says what its record says

Everything between the markers is computed from the run; what a person wrote belongs outside of them. Exit status: 0
written or equal, 1 different (--check), 2 bad input.
"""

import argparse
import difflib
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pandas as pd

from analysis.headline import central, headline
from analysis.load import MODES, Setting, impl_order, of
from analysis.paper import LENGTH, MEMORY_RATIO, TIME_RATIO
from analysis.render import markdown
from analysis.summary import Results
from analysis.wording import TITLES, between, number
from bench.blocks import apart
from bench.cli import Parser
from bench.records import RecordError, read_run

BEGIN, END = "<!-- results: begin {} -->", "<!-- results: end -->"
BLOCK = re.compile(r"<!-- results: begin (\S+) -->\n(.*?)<!-- results: end -->", re.DOTALL)
FILES = ("plan.json", "machine.json", "records.jsonl")
REPORT, MOST_REPORT = "report.html", 2 << 20  # bytes of a page that a repository should hold
TIME = "figures/time.png"
SHOT, MOST_SHOT = "figures/report.png", 300 << 10
WIDTH, HEIGHT = 1280, 1240  # as far as the ratio matrix
WIDTH_OF_TEXT = 138
DTYPES = {"fp32": "float32", "tf32": "float32 in tf32", "bf16": "bfloat16", "fp16": "float16"}
FUSED = ("cuda", "triton", "cpu")


class ReadmeError(ValueError):
    """What cannot be written or read, in one line."""


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        text = args.readme.read_text(encoding="utf-8")
        named, old = block_of(text, args.readme)
        record = args.record or args.readme.parent / named
        name = os.path.relpath(record, args.readme.parent)
        if args.check:
            return compare(
                args.readme, old, block(Results(apart(read_run(args.run or record))), record, name)
            )
        if args.run is None:
            raise ReadmeError("RUN: which one? --check alone reads the record that the file names")
        results = Results(apart(read_run(args.run)))
        if args.screenshot:
            screenshot(args.run / REPORT, args.run / SHOT)
        copied = keep(args.run, record, wanted(text, name))
        new = block(results, record, name)
        args.readme.write_text(replaced(text, name, new), encoding="utf-8")
    except (ReadmeError, RecordError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"{args.readme}: {len(new.splitlines())} lines")
    print(f"{record}: {', '.join(copied) or 'is the run itself'}")
    return 0


def make_parser():
    parser = Parser(
        prog="python -m analysis.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "run", metavar="RUN", nargs="?", type=Path, help="a run directory, as bench.sweep writes it"
    )
    add("--readme", type=Path, default=Path("README.md"), help="the file (default: README.md)")
    add(
        "--record",
        type=Path,
        help="where its files are kept (default: the record that the file names)",
    )
    add(
        "--check",
        action="store_true",
        help="write nothing; exit status 1 if the file says something else",
    )
    add(
        "--screenshot",
        action="store_true",
        help="a picture of the top of the report, taken with Chromium",
    )
    return parser


def block_of(text, path):
    """(record, results) between the markers of a file.

    Raises:
        ReadmeError: the file has no markers, or several.
    """
    found = BLOCK.findall(text)
    if len(found) != 1:
        markers = f"{BEGIN.format('RECORD')} and {END}"
        raise ReadmeError(f"{path}: needs one pair of lines {markers}, has {len(found)}")
    return found[0]


def replaced(text, name, new):
    """The file with other results."""
    return BLOCK.sub(lambda match: f"{BEGIN.format(name)}\n{new}{END}", text)


def block(results, record, name):
    """The results in Markdown, made from a run alone.

    Args:
        record: the folder that the pictures are read from; `name`: what the text calls it.

    Raises:
        ReadmeError: the run compares nothing.
    """
    row = central(results)
    if row is None:
        raise ReadmeError(f"{results.run.path}: holds no prefill of both architectures to compare")
    setting = Setting(*(row[field] for field in Setting._fields))
    run = results.run
    first, *others = headline(results)
    texts = [
        " ".join([f"**{first}**", *others]),
        _conditions(run, setting, row.seqlen),
        _table(results, setting, row.seqlen),
        _spread(results, setting, row.seqlen),
        f"The paper published {TIME_RATIO} for time and {MEMORY_RATIO} for memory at {LENGTH:,} tokens. The run with "
        f"all its samples: [`{name}`]({name}/tables/winners.md), made by `{run.plan.get('command')}` at revision "
        f"`{revision(run.machine)}`.",
    ]
    parts = [text if text.startswith("|") else wrapped(text) for text in texts]
    shown = [(TIME, "Time of one forward over length"), (SHOT, "The top of the report of this run")]
    above, below = (
        [f"![{alt}]({name}/{file})"] * (Path(record) / file).exists() for file, alt in shown
    )
    return "\n\n".join([*above, *parts, *below]) + "\n"


def wrapped(text, width=WIDTH_OF_TEXT):
    """A paragraph in lines of a file."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _conditions(run, setting, seqlen):
    """What was measured, where, and how to read the ratios."""
    options = run.plan.get("options") or {}
    where = machine_name(run.machine)
    weights = "trained weights" if options.get("checkpoint") else "random weights"
    mode = "" if setting.mode == "prefill" else f", {MODES[setting.mode]}"
    launch = "" if setting.launch == "eager" else f", launch {setting.launch}"
    return (
        f"The same two models (`{setting.preset}`, {weights}, {DTYPES.get(setting.dtype, setting.dtype)}, batch "
        f"{setting.batch}{mode}{launch}) on {where}, {seqlen:,} tokens, {run.plan.get('rounds')} rounds. Ratios are "
        "llama / mamba, so above 1 Mamba is better; every cell passed its parity gate first."
    )


def _table(results, setting, seqlen):
    """The paper's pairing, both sides under the same implementation, and best against best at one length."""
    time, memory = (_at(results.matrix[m], setting, seqlen) for m in ("time", "memory"))
    memory = {(r.llama_impl, r.mamba_impl): between(r) for r in memory.itertuples()}
    rows = time[time.paper | time.diagonal | time.best].copy()
    slowest_first = sorted(rows.llama_impl.unique(), key=impl_order, reverse=True)
    rows["at"] = rows.llama_impl.map(slowest_first.index)
    rows = rows.sort_values(["paper", "best", "at"], ascending=[False, True, True])
    shown = [
        {
            "LLaMA under": f"`{r.llama_impl}`" + " (eager)" * r.paper,
            "Mamba under": f"`{r.mamba_impl}`" + " (fused scan)" * (r.paper and r.mamba_impl in FUSED)
            + ", the paper's kind of pairing" * r.paper + ", best against best" * r.best,
            "time": between(r),
            "memory beyond the weights": memory.get((r.llama_impl, r.mamba_impl), "-"),
            "who is faster": TITLES.get(r.winner, r.winner),
        }
        for r in rows.itertuples()
    ]  # fmt: skip
    return markdown(pd.DataFrame(shown)).rstrip()


def _spread(results, setting, seqlen):
    """How far the choice of implementation moves the answer, and what is left at the best of both."""
    row = _at(results.spread["time"], setting, seqlen).iloc[0]
    matrix = _at(results.matrix["time"], setting, seqlen)
    text = (
        f"So on this machine the choice of implementation alone moves the answer from {number(row.lowest)} to "
        f"{number(row.highest)}, a factor of {number(row.factor)}{', and decides who wins' if row.flips else ''}"
    )
    for best in matrix[matrix.best].itertuples():
        if best.winner in TITLES:
            times = best.ratio if best.winner == "mamba" else 1 / best.ratio
            text += f": at the best of both {TITLES[best.winner]} is {number(times)} times faster"
        else:
            text += f": at the best of both the two are {best.winner}"
    return text + "."


def _at(table, setting, seqlen):
    table = of(table, setting)
    return table[table.seqlen == seqlen]


def machine_name(machine):
    """The GPU of a machine.json, or its cores."""
    gpu = (machine.get("gpu") or {}).get("name")
    return gpu or f"{machine.get('cores')} cores of {machine.get('cpu')}"


def revision(machine):
    """The revision of the code that a machine.json names, in seven characters."""
    git = machine.get("git") or {}
    return (git.get("revision") or "unknown")[:7] + " with uncommitted changes" * bool(
        git.get("dirty")
    )


def wanted(text, name):
    """The figures of a record that a file shows."""
    return sorted(set(re.findall(rf"\]\({re.escape(name)}/(figures/[^)]+)\)", text)) | {TIME, SHOT})


def keep(run, record, figures):
    """Copy what the results of a run stand on into a record; returns what was copied, nothing from a record to itself.

    A page that is too large for a repository, and figures that the run does not have, are left out; tables that lay
    there before are not kept.
    """
    run, record = Path(run), Path(record)
    if run.resolve() == record.resolve():
        return []
    (record / "figures").mkdir(parents=True, exist_ok=True)
    names = [*FILES, *figures]
    if (run / REPORT).exists() and (run / REPORT).stat().st_size <= MOST_REPORT:
        names.append(REPORT)
    names = [name for name in names if (run / name).exists()]
    for name in names:
        shutil.copyfile(run / name, record / name)
    if (run / "tables").is_dir():
        for old in (*record.glob("tables/*.md"), *record.glob("tables/*.csv")):
            old.unlink()
        shutil.copytree(run / "tables", record / "tables", dirs_exist_ok=True)
        names.append("tables")
    return names


def screenshot(page, path):
    """A picture of the top of a page, as a desktop shows it.

    Raises:
        ReadmeError: there is no page, no playwright or no Chromium, or the picture is too large.
    """
    if not page.exists():
        raise ReadmeError(
            f"--screenshot: there is no {page}; `python -m analysis.report {page.parent}` makes it"
        )
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise ReadmeError("--screenshot: needs playwright; pip install playwright") from None
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise ReadmeError("--screenshot: needs Chromium; apt-get install chromium")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as engine:
            browser = engine.chromium.launch(executable_path=chromium)
            tab = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light"
            )
            tab.goto(page.resolve().as_uri())
            tab.locator(".chart svg").first.wait_for()
            tab.screenshot(path=path)
            browser.close()
    except Error as error:
        raise ReadmeError(f"--screenshot: {error}") from None
    if (size := path.stat().st_size) > MOST_SHOT:
        path.unlink()
        raise ReadmeError(
            f"--screenshot: {path} would have {size:,} bytes, more than {MOST_SHOT:,}"
        )


def compare(path, old, new):
    """0 if a file says what its record says; what differs goes to standard error."""
    if old == new:
        return 0
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), str(path), "computed", lineterm="", n=0
    )
    print("\n".join(lines), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
