"""The rows of `bench.long_context` in words."""

from rich.table import Table

from bench.progress import duration

SETTING = ("preset", "dtype", "batch", "chunk", "processes", "device")
LEFT = ("arch", "impl")
MIB = 2**20


def outcome(row):
    """How a case ended, on one line."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    peak = row["memory_bytes"]["peak"]
    held = "" if peak is None else f", {peak / MIB:,.0f} MiB beyond the weights"
    return f"{duration(row['seconds'])}, {row['tokens_per_s']:,.0f} tokens/s{held}"


def _timed(rows):
    """(the part of the setting that all rows share, in words; a dictionary of texts for every row with a time)."""
    timed = [row for row in rows if row["chunk_ms"]]
    varied = [name for name in SETTING if len({row[name] for row in timed}) > 1]
    shared = timed[0] if timed else {}
    words = [
        f"{name} {shared[name]}" for name in SETTING if shared.get(name) and name not in varied
    ]
    lines = [_texts(row, varied) for row in timed]
    filled = [column for column in (lines[0] if lines else ()) if any(l[column] for l in lines)]
    return ", ".join(words), [{column: line[column] for column in filled} for line in lines]


def _texts(row, varied):
    """{column: text} of one line."""
    memory, ms = row["memory_bytes"], [ms for _, ms in whole_chunks(row)]
    mib = lambda n: "" if n is None else f"{n / MIB:,.1f}" if n > MIB else f"{n / MIB:.2g}"
    cache = memory.get("cache")
    return {
        "arch": row["arch"],
        "impl": row["impl"],
        **{name: str(row[name] or "") for name in varied},
        "tokens": f"{row['seqlen']:,}",
        "time": _time(row["seconds"]) if row["seconds"] else row["status"],
        "tokens/s": f"{row['tokens_per_s']:,.0f}" if row["tokens_per_s"] else "",
        "first chunk": _time(ms[0] / 1e3) if len(ms) > 1 else "",
        "last chunk": _time(ms[-1] / 1e3) if len(ms) > 1 else "",
        "peak MiB": mib(memory.get("peak")),
        "predicted MiB": mib(sum(memory["predicted"].values())),
        "cache MiB": mib(cache),
        "bytes a token": "" if cache is None else f"{cache / row['batch'] / row['seqlen']:,.2f}",
        "proven on": f"{row['parity']['seqlen']:,}",
    }


def _time(seconds):
    if seconds >= 60:
        return duration(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def whole_chunks(row):
    """[(tokens before it, ms)] of the chunks that are not ragged, or of the only one."""
    size = row["chunk"] or row["seqlen"]
    starts = range(0, row["seqlen"], size)
    return [
        (start, ms)
        for start, ms in zip(starts, row["chunk_ms"], strict=False)
        if start == 0 or start + size <= row["seqlen"]
    ]


def table(rows):
    """The table of the command; cases without a time are among `notes`."""
    setting, lines = _timed(rows)
    shown = Table(title=f"Long contexts: {setting}", title_justify="left")
    for column in lines[0] if lines else ():
        shown.add_column(column, justify="left" if column in LEFT else "right")
    for line in lines:
        shown.add_row(*line.values())
    return shown


def notes(rows):
    """What the table leaves out: why a case has no time, and what its numbers are."""
    found = [
        f"{row['arch']} {row['impl']}, {row['seqlen']:,} tokens: {row['status']}, {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
    devices = {row["device"] for row in rows}
    kinds = {"cuda": "torch's allocator", "cpu": "the growth of the resident size"}
    peak = " and ".join(f"{kinds[d]} on {d}" for d in sorted(devices))
    return [
        *found,
        f"Peak: bytes beyond the weights by {peak}; of several processes the largest. One run a case: no interval.",
        "Proven on: the prefix whose hidden states and logits passed the accuracy rule against float64.",
    ]


def markdown(rows):
    """The same in Markdown."""
    setting, lines = _timed(rows)
    join = lambda texts: "| " + " | ".join(texts) + " |"
    head = list(lines[0]) if lines else []
    found = [join(head), join("---" if c in LEFT else "---:" for c in head)] if head else []
    found += [join(line.values()) for line in lines]
    said = [f"- {note}" for note in notes(rows)]
    return "\n".join([f"# Long contexts: {setting}", "", *found, "", *said, ""])
