"""Write synthetic therapy sessions, one JSON file each, with their phases and shifts, or count what transcripts hold.

A session of a seed is the same however many are written:

    python -m bench.sessions --count 4 --seed 0 --out sessions
    python -m bench.sessions --show 0
    python -m bench.sessions --describe TRANSCRIPTS
"""

import argparse
import itertools
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.cli import Parser
from bench.sessions.describe import describe
from bench.sessions.generator import stream
from bench.sessions.session import KINDS, Session, SessionError, text
from bench.sessions.writer import check_free, write
from models import tokenizer

SHOWN_TURNS = 24


def main(argv=None):
    parser = Parser(
        prog="python -m bench.sessions",
        description=__doc__,
        formatter_class=type(
            "Help",
            (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter),
            {},
        ),
    )
    parser.add_argument("--count", type=int, default=4, help="how many sessions")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same sessions")
    parser.add_argument("--kind", choices=KINDS, default="dyadic", help="one client, or a couple")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder to write to, new or empty; without it nothing is written",
    )
    parser.add_argument(
        "--show", metavar="N", type=int, help=f"print the first {SHOWN_TURNS} turns of session N"
    )
    parser.add_argument(
        "--describe", metavar="PATH", type=Path,
        help="count the sessions, turns, tokens and labels of a file or folder; shows no text of it",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer",
        choices=tuple(tokenizer.VOCAB_SIZES),
        default="gpt2-32k",
        help="of --describe",
    )
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.describe is not None:
        if options.out is not None or options.show is not None:
            parser.error(
                "--describe reads transcripts; leave out --out and --show, which are of generated sessions"
            )
        try:
            parts = describe(options.describe, tokenizer.load(options.tokenizer))
        except (SessionError, tokenizer.TokenizerError) as error:
            parser.error(str(error))
        for part in parts:
            console.print(part, highlight=False, markup=False)
        return 0
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    if options.show is None and options.out is None:
        parser.error(
            "say where to write with --out DIR, look at one session with --show N, or count with --describe PATH"
        )
    if options.show is not None and not 0 <= options.show < options.count:
        parser.error(
            f"--show must be between 0 and {options.count - 1} (--count {options.count}), got {options.show}"
        )
    try:
        if options.out is not None:
            check_free(options.out)
        sessions = list(itertools.islice(stream(options.seed, options.kind), options.count))
        if options.out is not None:
            write(sessions, options.out)
    except (SessionError, tokenizer.TokenizerError) as error:
        parser.error(str(error))
    if options.show is not None:
        show(sessions[options.show])
    if options.out is not None:
        console.print(summarise(sessions))
        print(f"{len(sessions)} sessions in {options.out}")
    return 0


def show(session: Session):
    """The beginning of a session, with its phases."""
    phase = None
    for turn in session.turns[:SHOWN_TURNS]:
        if turn.phase != phase:
            print(f"[{turn.phase}]")
            phase = turn.phase
        print(f"{turn.speaker}: {turn.text}")
    print(f"... {len(session.turns)} turns in all")


def summarise(sessions):
    """A table with a row per session."""
    encode = tokenizer.load("gpt2-32k").encode
    table = Table("session", "turns", "tokens", "shifts", "phases")
    for column in table.columns[1:4]:
        column.justify = "right"
    for session in sessions:
        phases = [session.turns[i].phase for i in (0, *session.shifts)]
        counts = (
            str(len(session.turns)),
            str(len(encode(text(session)))),
            str(len(session.shifts)),
        )
        table.add_row(session.id, *counts, ", ".join(phases))
    return table


if __name__ == "__main__":
    sys.exit(main())
