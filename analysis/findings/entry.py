"""One claim and what becomes of it: the cells of a table, the sentences below, and the words of a verdict."""

import math
from dataclasses import dataclass

import pandas as pd

from analysis.load import PAIR
from analysis.wording import TITLES, between, interval, listed

STANDS, REVERSED, DEPENDS = "stands", "reversed", "depends on the implementation"
UNDECIDED, CANNOT, MISSING = "no difference shown", "cannot be tested here", "not measured"
CLOSE = 0.05  # relative difference that counts as agreement
NOTHING = "-"


@dataclass(frozen=True)
class Entry:
    """A claim.

    Attributes:
        title: what it is about.
        rows: [(what, published, the paper's kind of pairing, held equal, best against best)], cells of the table.
        verdict: one of the words above, or as short.
        text: sentences, or a table in Markdown that ends them.
        repeat: the command that repeats it, with its record.
    """

    title: str
    rows: list
    verdict: str
    text: list
    repeat: str


def missing(title, what, published, command):
    """The entry of a claim that no run speaks of; `command` would measure it."""
    row = (what, published, *[NOTHING] * 3)
    return Entry(title, [row], MISSING, [f"Needs `{command}`."], "")


def verdict(claimed, *rows):
    """What becomes of "Mamba is better by a factor of `claimed`" in rows of a ratio matrix."""
    rows = pd.concat(rows)
    who = set(rows.winner)
    if not who:
        return CANNOT
    if who == {"mamba"}:
        if any(agrees(claimed, row) for row in rows.itertuples()):
            return STANDS
        sizes = {"smaller" if ratio < claimed else "larger" for ratio in rows.ratio}
        return f"direction stands, {sizes.pop()}" if len(sizes) == 1 else "direction stands"
    return REVERSED if who == {"llama"} else winner(rows)


def winner(*rows):
    """Who is better in rows of a ratio matrix, where nothing was published."""
    who = set(pd.concat(rows).winner)
    if not who:
        return CANNOT
    if who <= {"equivalent", "undecided"}:
        return UNDECIDED
    if who in ({"mamba"}, {"llama"}):
        return f"{'Mamba' if who == {'mamba'} else 'LLaMA'}, under every implementation"
    return DEPENDS


def agrees(claimed, row):
    """Whether the interval of a ratio holds a number, or the ratio is near to it."""
    return row.low <= claimed <= row.high or abs(row.ratio / claimed - 1) <= CLOSE


def sides(row):
    """`hf` / `cpu`, the implementations of LLaMA and of Mamba."""
    return f"`{row.llama_impl}` / `{row.mamba_impl}`"


def paired(rows):
    """The first of rows of a ratio matrix with its implementations."""
    return next((f"{between(row)} ({sides(row)})" for row in rows.itertuples()), NOTHING)


def same(rows, separator="<br>"):
    """Rows with one implementation on both sides."""
    return (
        separator.join(f"`{row.llama_impl}` {between(row)}" for row in rows.itertuples()) or NOTHING
    )


def in_words(rows, better):
    """`LLaMA is faster under hf (1.23x [1.16, 1.31]); Mamba is faster under cpu (1.83x)`, of rows of a ratio matrix."""
    said = {}
    for row in rows.itertuples():
        said.setdefault(row.winner, []).append(f"`{row.llama_impl}`{_times(row)}")
    texts = [f"{TITLES[arch]} {better} under {listed(said[arch])}" for arch in PAIR if arch in said]
    open_ = [name for who, names in said.items() if who not in PAIR for name in names]
    if open_:
        texts.append(f"no difference shown under {listed(open_)}")
    return "; ".join(texts)


def capital(text):
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def _times(row):
    """How many times better the winner is."""
    if row.winner not in PAIR or row.ratio in (0, math.inf):
        return ""
    values = row.ratio, row.low, row.high
    if row.winner == "llama":
        values = 1 / row.ratio, 1 / row.high, 1 / row.low
    value, _, limits = interval(*values).partition(" ")
    return f" ({f'{value}x {limits}'.rstrip()})"
