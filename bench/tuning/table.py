"""What `bench.tune` found, as a table for the terminal."""

from collections import Counter

from rich.table import Table

COLUMNS = (
    "kernel", "problem", "dtype", "default ms", "best ms", "best / default", "instead of the default", "tried / failed",
)  # fmt: skip


def result_table(records):
    """A line a case; ratios below 1 are faster than the default."""
    table = Table(title="Configurations", title_justify="left")
    for column in COLUMNS:
        numeric = column.endswith("ms") or "/" in column
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for record in records:
        table.add_row(*cells(record), style="bold" if record["best"] else None)
    return table


def cells(record):
    """The texts of a line."""
    head = [record["kernel"], record["problem"], record["dtype"]]
    if record["default_ms"] is None:
        return [*head, "", "", "", record["reason"], tried(record)]
    ms = [f"{record[name]:.4g}" for name in ("default_ms", "best_ms")]
    ratio = record["ratio"]
    if ratio is None:
        return [*head, *ms, "1", "nothing: it is the fastest", tried(record)]
    text = f"{ratio['ratio']:.3f} ({ratio['low']:.3f}..{ratio['high']:.3f})"
    change = differences(record["default"], record["tried"])
    if not record["best"]:
        change = f"nothing: not faster by 1 % ({change})"
    return [*head, *ms, text, change, tried(record)]


def differences(default, configuration):
    """ "BLOCK_M 128 -> 64, num_warps 8 -> 4": what a configuration changes."""
    changes = (
        f"{name} {default[name]} -> {value}" if name in default else f"{name} {value}"
        for name, value in configuration.items()
        if name not in default or default[name] != value
    )
    return ", ".join(changes)


def tried(record):
    """ "24 / 3: 2 resources, 1 inaccurate": how many candidates, and what became of those that were not timed."""
    failed = Counter(row["status"] for row in record["rows"] if row["status"] != "ok")
    reasons = ", ".join(f"{n} {status}" for status, n in failed.most_common())
    return f"{len(record['rows'])} / {failed.total()}" + (f": {reasons}" if reasons else "")
