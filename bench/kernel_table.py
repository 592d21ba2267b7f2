"""The rows of `bench.kernels` in words: a table for the terminal, and one in Markdown."""

import statistics

from rich.table import Table

from bench.verdict import ratio_interval

SAME = ("operator", "mode", "problem", "dtype")
LEFT = ("operator", "mode", "problem", "dtype", "implementation", "kernel")
AGAINST = "triton"


def block_medians(row):
    """One number a block, in ms."""
    return [statistics.median(block) for block in row["samples_ms"]]


def share_of_floor(row):
    """What part of a row's time the machine's peaks account for, and the term that bounds it.

    Empty without a time, and for a row of a file from before rows had floors.
    """
    if not row["samples_ms"] or "floor_ms" not in row:
        return ""
    share = row["floor_ms"] / statistics.median(block_medians(row))
    return f"{100 * share:.3g} % {row['bound']}"


def left_out(rows):
    """The terms that floors lack because their peak was not measured, in words; empty if none."""
    terms = dict.fromkeys(term for row in rows for term in row.get("floor_missing", ()))
    plural = "s" if len(terms) > 1 else ""
    names = " and ".join(terms)
    return f"floors leave out the {names} term{plural}, whose peak is unknown" if terms else ""


def absences(rows):
    """{why a contender did not run: the contenders that it concerns}."""
    found = {}
    for row in rows:
        if row["status"] == "unavailable":
            reason = row["reason"].removeprefix(f"{row['operator']}: ")
            reason = reason.removeprefix(
                f"impl {row['impl']!r} is unavailable, because "
            ).removeprefix("impl ")
            names = found.setdefault(reason, [])
            if row["impl"] not in names:
                names.append(row["impl"])
    return found


def rates(peaks):
    """Copy bandwidth and exponential rate in words."""
    found = [f"a copy moves {peaks['copy_bytes_per_s'] / 1e9:.0f} GB/s, read plus written"]
    if peaks.get("exp_per_s"):
        found.append(f"{peaks['exp_per_s'] / 1e12:.3g} T exponentials/s")
    return "; ".join(found)


def ratio_to(rows, row):
    """(its time over that of `triton`, or of the fastest of ours where that has no time; whose), paired by block."""
    same = [r for r in rows if r["samples_ms"] and all(r[key] == row[key] for key in SAME)]
    ours = [r for r in same if r["impl"] == AGAINST]
    ours = ours or [r for r in same if r["impl"] in ("torch", "cpu")]
    if not ours:
        return None, ""
    base = min(ours, key=lambda r: statistics.median(block_medians(r)))
    # who is slow has fewer blocks: the first ones
    paired = (dict(enumerate(block_medians(r))) for r in (row, base))
    return ratio_interval(*paired), base["impl"]


def _cells(rows, row):
    """The texts of one line; None for a contender that is not there, which `absences` says once."""
    head = [row["operator"], row["mode"], row["problem"], row["dtype"], row["impl"]]
    bound = "" if row["error_over_bound"] is None else f"{row['error_over_bound']:.2f}"
    if not row["samples_ms"]:
        if row["status"] == "unavailable":
            return None
        return [*head, *[""] * 5, bound, f"{row['status']}: {row['reason']}"]
    ms = statistics.median(block_medians(row))
    interval, base = ratio_to(rows, row)
    ratio = "" if interval is None else f"{interval.ratio:.2f}"
    if base == row["impl"]:
        ratio = "1"
    elif interval is not None and interval.n > 1:
        ratio += f" ({interval.low:.2f}..{interval.high:.2f})"
    flops = f"{row['flops'] / ms / 1e9:.3g}" if row["impl"] != "copy" else ""
    moved = f"{row['bytes'] / ms / 1e6:.3g}"
    return [*head, f"{ms:.4g}", flops, moved, share_of_floor(row), ratio, bound, row["kernel"]]


def columns(rows):
    """The names of the columns; ratios are to one implementation where it has all of them."""
    bases = {base for row in rows if row["samples_ms"] for base in [ratio_to(rows, row)[1]] if base}
    base = bases.pop() if len(bases) == 1 else "the best of ours"
    return [
        *LEFT[:5], "ms", "TFLOP/s", "GB/s", "share of floor", f"time / {base}", "error / bound", "kernel",
    ]  # fmt: skip


def result_table(rows):
    """The table of the command: ratios above 1 are slower than ours."""
    table = Table(title="Operators alone", title_justify="left")
    for column in columns(rows):
        table.add_column(column, justify="left" if column in LEFT else "right")
    for row in rows:
        cells = _cells(rows, row)
        if cells:
            style = None if row["samples_ms"] else "red"
            table.add_row(*cells, style=style)
    return table


def markdown(rows, peaks, title="Operators alone"):
    """The same in Markdown, with what is absent and what the machine can do."""
    head = columns(rows)
    lines = [f"# {title}", "", _line(head)]
    lines.append(_line(["---" if column in LEFT else "---:" for column in head]))
    lines += [_line(cells) for cells in (_cells(rows, row) for row in rows) if cells]
    lines += ["", *(f"- {', '.join(names)}: {why}" for why, names in absences(rows).items())]
    known = "; ".join(filter(None, (rates(peaks), left_out(rows))))
    return "\n".join([*lines, "", f"Measured here: {known}.", ""])


def _line(cells):
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
