"""Write synthetic therapy sessions, one JSON file each, with their phases and shifts.

A session of a seed is the same however many are written:

    python -m bench.sessions --count 4 --seed 0 --out sessions
    python -m bench.sessions --show 0
"""

import argparse
import itertools
import sys

from rich.console import Console
from rich.table import Table

from bench.cli import Parser
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
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    if options.show is None and options.out is None:
        parser.error("say where to write with --out DIR, or look at one session with --show N")
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
        summarise(sessions)
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
    """A row per session."""
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
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
