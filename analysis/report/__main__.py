"""Write a run as one HTML page, report.html, that opens from disk; of several runs, the first compared with the others.

The page lies in the first run, or in --out, beside its figures (figures/report_*.png and .svg) and tables.
Exit status: 0 written, 2 bad input.
"""

import argparse
import sys
import webbrowser
from pathlib import Path

from analysis.report.page import build
from bench.cli import Parser
from bench.records import RecordError


def main(argv=None):
    parser = Parser(
        prog="python -m analysis.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="a directory, as bench.sweep writes it")
    add("--out", type=Path, help="where to write instead of the first run")
    add("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(argv)
    try:
        page = build(args.runs, args.out)
    except (RecordError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(page)
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
