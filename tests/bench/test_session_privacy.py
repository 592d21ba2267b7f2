"""A run over what people said keeps none of it, but for the ids of its tokens."""

import csv
import json

import pytest

from analysis import metrics
from bench import sweep
from models import tokenizer

MARKER = "Zyzzyva"
CASE = (
    "--quick",
    "--impl",
    "torch",
    "--seqlens",
    "48",
    "--rounds",
    "1",
    "--metrics",
    "none",
    "--profile",
    "none",
)
IDS = "references/tokens.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over an AnnoMI file in which every name, id and sentence holds the marker."""
    folder = tmp_path_factory.mktemp("private")
    transcript, out = folder / "data.csv", folder / "run"
    with transcript.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["transcript_id", "utterance_id", "interlocutor", "utterance_text", "topic"])
        for i in range(40):
            table.writerow(
                [f"{MARKER}-{i // 20}", i, f"{MARKER} {i % 2}", f"I met {MARKER}", MARKER]
            )
    arguments = [*CASE, "--sessions", str(transcript), "--tokenizer", "bytes", "--out", str(out)]
    assert sweep.main(arguments) == 0
    assert metrics.main([str(out), "--groups", "shifts"]) == 0
    return out


def test_no_file_of_a_run_holds_a_word(run):
    files = [f for f in run.rglob("*") if f.is_file()]
    assert {"plan.json", "report.html", "log.txt", "records.jsonl", "metrics.jsonl"} <= {
        f.name for f in files
    }
    with_marker = [
        str(f.relative_to(run)) for f in files if MARKER.lower().encode() in f.read_bytes().lower()
    ]
    assert with_marker == []


def test_token_ids_are_the_text(run):
    """What the documentation warns of: whoever has this file has the text."""
    from safetensors.torch import load_file

    ids = load_file(run / IDS)["ids"][0].tolist()
    assert MARKER in tokenizer.load("bytes").decode(ids)


def test_sessions_are_hashes_in_the_plan(run):
    plan = json.loads((run / "plan.json").read_text())
    assert plan["tokens"]["sessions"]
    assert all(name.startswith("session-") for name in plan["tokens"]["sessions"])
    assert plan["options"]["vocabulary"] == 256


def test_shift_metrics_say_that_there_are_no_labels(run):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = {(r["status"], r["reason"]) for r in records if r["unit"]["group"] == "shifts"}
    ((status, reason),) = found
    assert status == "unavailable"
    assert "no session has labels of phases or shifts" in reason


@pytest.mark.parametrize(
    ("name", "content"),
    [("genome.fa", ">x\n" + "ACGTN" * 40), ("book.txt", "It was a dark and stormy night.\n" * 20)],
)
def test_other_domains_are_planned(tmp_path, capsys, name, content):
    path = tmp_path / name
    path.write_text(content)
    arguments = [
        *CASE,
        "--sessions",
        str(path),
        "--tokenizer",
        "bytes",
        "--preset",
        "paper-50m",
        "--dry-run",
    ]
    assert sweep.main(arguments) == 0
