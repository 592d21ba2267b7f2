"""Write FINDINGS.md: what the paper's claims (arXiv 2601.01237) become when the implementation is held equal.

    python -m analysis.findings RUN [RUN …] [--out FINDINGS.md]
    python -m analysis.findings --check            whether FINDINGS.md says what its records say

A RUN is a run directory or a committed record; folders in it that hold a run are read as well. Which run answers which
claim follows from what it measured: prefill of paper-50m, another preset of equal size, decode, train, --protocol
paper, representation metrics, long contexts. Every number of the page is computed from the runs. Exit status: 0 written
or equal, 1 different (--check), 2 bad input.
"""

import argparse
import re
import sys
from pathlib import Path

from analysis.findings import figure
from analysis.findings.page import page
from analysis.findings.runs import read, relative
from analysis.readme import compare
from bench.cli import Parser
from bench.records import RecordError

BEGIN = "<!-- findings of {}: written by python -m analysis.findings, not by hand -->"
MARK = re.compile(r"<!-- findings of (.+): written by python -m analysis.findings")


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if not args.check:
            if not args.runs:
                parser.error("RUN: which one? --check alone reads the records that the file names")
            given = readable(args.runs, args.out.parent)
            picture = figure.write(given.main)
            text = findings(given, args.runs, args.out.parent)
            args.out.write_text(text, encoding="utf-8")
            print(f"{args.out}: {len(text.splitlines())} lines\n{picture}")
            return 0
        old = args.out.read_text(encoding="utf-8")
        runs, base = args.runs or named(old, args.out), args.out.parent
        return compare(args.out, old, findings(readable(runs, base), runs, base))
    except (RecordError, OSError) as error:
        parser.error(" ".join(str(error).split()))


def make_parser():
    parser = Parser(
        prog="python -m analysis.findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="*", type=Path, help="a run directory or a record")
    add("--out", type=Path, default=Path("FINDINGS.md"), help="the file (default: FINDINGS.md)")
    add(
        "--check",
        action="store_true",
        help="write nothing; exit status 1 if the file says something else",
    )
    return parser


def readable(runs, base):
    """`analysis.findings.runs.Given` of folders; names in the text are relative to `base`.

    Raises:
        RecordError: a run cannot be read, or none compares LLaMA and Mamba.
    """
    given = read(runs, base)
    if given.main is None:
        names = ", ".join(str(run) for run in runs)
        raise RecordError(
            f"{names}: no prefill of both llama and mamba under --protocol lab to compare"
        )
    return given


def findings(given, runs, base):
    """The text of the file, which names the runs that it was made of."""
    folders = " ".join(relative(run, base) for run in runs)
    return f"{BEGIN.format(folders)}\n\n{page(given, base)}"


def named(text, path):
    """The runs that a file says it was made of.

    Raises:
        RecordError: it does not say so.
    """
    found = MARK.search(text)
    if found is None:
        raise RecordError(f"{path}: names no runs; write it with python -m analysis.findings RUN")
    return [path.parent / name for name in found[1].split(" ")]


if __name__ == "__main__":
    sys.exit(main())
