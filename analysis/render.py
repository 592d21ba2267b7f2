"""Tables of strings for the terminal and as Markdown."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def console():
    """Where tables are printed: at least 120 columns wide when the output is piped, so that nothing is cut."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=max(out.width, 120))


def rich_table(title, table):
    """A table of strings for the terminal; long texts wrap and nothing is cut."""
    shown = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="bold",
        expand=False,
    )
    for name in table:
        longest = max([len(str(v)) for v in table[name]] + [0])
        numeric = all(str(v)[:1].isdigit() or v == "-" for v in table[name])
        shown.add_column(
            name, overflow="fold", no_wrap=longest <= 16, justify="right" if numeric else "left"
        )
    for row in table.itertuples(index=False):
        shown.add_row(*(Text(str(v)) for v in row))  # as Text: `[unbounded, 9]` is no markup
    return shown


def markdown(table):
    """A table of strings as Markdown."""
    escape = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    lines = [[*map(escape, table.columns)], ["---"] * len(table.columns)]
    lines += [[escape(v) for v in row] for row in table.itertuples(index=False)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def page(sections):
    """[(title, table of strings)] as one Markdown page."""
    return "\n".join(
        f"## {title}\n\n{markdown(table) if len(table) else 'Nothing to show.'}\n"
        for title, table in sections or [("Nothing to show", ())]
    )


def write_tables(folder, raw, pages):
    """Write tables for programs and for people to `folder`; returns the paths.

    Args:
        raw: {name: data frame}, written as CSV with full precision.
        pages: {name: [(title, table of strings)]}, written as Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in raw.items():
        paths.append(folder / f"{name}.csv")
        table.to_csv(paths[-1], index=False)
    for name, sections in pages.items():
        paths.append(folder / f"{name}.md")
        paths[-1].write_text(page(sections), encoding="utf-8")
    return paths
