"""What a section of a report is made of, as plain values for the template."""

import base64
from dataclasses import dataclass

import pandas as pd

MOST_ROWS = 300  # of a table on the page


@dataclass(frozen=True)
class Text:
    lines: list
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    title: str
    frame: pd.DataFrame
    kind: str = "table"

    @property
    def rows(self):
        return self.frame.head(MOST_ROWS).astype(str).values.tolist()


@dataclass(frozen=True)
class Fold:
    title: str
    tables: list
    kind: str = "fold"


@dataclass(frozen=True)
class Picture:
    title: str
    data: str
    kind: str = "picture"


@dataclass(frozen=True)
class Section:
    title: str
    parts: list

    @property
    def id(self):
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def fold(title, sections):
    """Tables that are read when they are asked for; None without any."""
    found = [Table(*section) for section in sections if len(section[1])]
    return Fold(title, found) if found else None


def data_uri(content, kind):
    """Bytes as an address that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
