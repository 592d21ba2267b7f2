"""What jobs of a cluster wrote into the run directory, on its way to records.jsonl."""

import json
from pathlib import Path

from bench.plan import Cell
from bench.records import NAME, Appender, stream_records

PARTS = "parts"


def read_events(path, offset=0):
    """(events of the whole lines of a file after `offset` bytes, where they end); none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def harvest(run):
    """Append the records that jobs wrote after their parent had died, and end the jobs that are still running."""
    parts = sorted(Path(run, PARTS).glob("*.json*"))
    if not parts:
        return
    name = lambda record: (Cell(**record["cell"]), record["round"], record.get("started"))
    have = {name(record) for record in stream_records(Path(run) / NAME)}
    appender = Appender(Path(run) / NAME)
    for part in parts:
        events = read_events(part)[0] if part.suffix == ".jsonl" else []
        for record in (event["record"] for event in events if event["event"] == "record"):
            if name(record) not in have:
                appender.append(record)
        part.unlink()
    appender.close()
