"""What a file or folder of transcripts holds, in counts: never a word of it, and no name of a session or speaker."""

from statistics import median

from rich.table import Table

from bench.sessions.readers import read
from bench.sessions.session import is_labelled, text

# what the labels of a format are that has some, but none of phases
OTHER_LABELS = {
    "AnnoMI": "its labels are behaviours and talk types of single utterances",
    "ESConv": "its labels are strategies of single turns",
}
COUNTS = ("sessions", "turns", "tokens", "tokens of a session", "labelled", "shifts")


def describe(path, tokenizer):
    """What a terminal shows of the sessions in `path`: a table with a row for each format, and sentences.

    Args:
        tokenizer: with `encode(text) -> list[int]` and `name`; tokens of a session are smallest–median–largest.

    Raises:
        bench.sessions.SessionError: as `bench.sessions.read`.
    """
    formats = {}
    for session in read(path):
        formats.setdefault(session.source, []).append(session)
    table = Table("format", *COUNTS, title=f"Tokens by {tokenizer.name}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    sentences = []
    for source, sessions in formats.items():
        tokens = sorted(len(tokenizer.encode(text(s) + "\n")) for s in sessions)
        labelled = sum(map(is_labelled, sessions))
        table.add_row(
            source,
            f"{len(sessions):,}",
            f"{sum(len(s.turns) for s in sessions):,}",
            f"{sum(tokens):,}",
            f"{tokens[0]:,}–{median(tokens):,.0f}–{tokens[-1]:,}",
            f"{labelled:,}",
            f"{sum(len(s.shifts) for s in sessions):,}",
        )
        if not labelled:
            why = OTHER_LABELS.get(source, "it has no labels")
            sentences.append(
                f"{source}: no phases or shifts are labelled ({why}), so shift metrics are unavailable."
            )
    return table, *sentences
