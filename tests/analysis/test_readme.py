import re
import shutil
from pathlib import Path

import pytest

from analysis import readme
from analysis.report.page import build
from tests.analysis.simulate import MACHINE, Simulation

ROOT = Path(__file__).parents[2]
PEAKS = {"copy_bytes_per_s": 1e18, "exp_per_s": 1e18, "matmul_flops": {"fp32": 1e12}}
# without noise: llama hf 4 ms a token, cpu 1; mamba cpu 0.8, hf 8
COSTS = {
    ("llama", "hf"): (0.0, 4.0, 0.0), ("llama", "cpu"): (0.0, 1.0, 0.0),
    ("mamba", "hf"): (0.0, 8.0, 0.0), ("mamba", "cpu"): (0.0, 0.8, 0.0),
}  # fmt: skip
MEMORY = {cell: (0.0, 100.0 * cost[1], 0.0) for cell, cost in COSTS.items()}
WORLD = Simulation(
    costs=COSTS, memory=MEMORY, seqlens=(2048, 4096), rounds=3, within=0.0, between=0.0,
    machine=MACHINE | {"peaks": PEAKS, "git": {"revision": "abcdef1234", "dirty": False}},
)  # fmt: skip
TEXT = (
    "# Title\n\nbefore\n<!-- results: begin records/old -->\nstale\n<!-- results: end -->\nafter\n"
)


@pytest.fixture
def place(tmp_path):
    """(run, README.md, record) with a run of planted times and a file with markers."""
    run = WORLD.write(tmp_path / "run")
    (run / "tables").mkdir()
    (run / "figures").mkdir()
    (run / "tables" / "winners.md").write_text("winners")
    (run / "figures" / "time.png").write_bytes(b"png")
    (run / "figures" / "other.png").write_bytes(b"png")
    (tmp_path / "README.md").write_text(TEXT)
    return run, tmp_path / "README.md", tmp_path / "records" / "new"


def command(*argv):
    return readme.main(list(map(str, argv)))


def test_planted_results_are_written_between_the_markers(place):
    run, path, record = place
    assert command(run, "--readme", path, "--record", record) == 0
    text = path.read_text()
    assert text.startswith(
        "# Title\n\nbefore\n<!-- results: begin records/new -->\n![Time of one forward"
    )
    assert text.endswith("revision `abcdef1`.\n<!-- results: end -->\nafter\n")
    assert "stale" not in text
    words = " ".join(text.split())
    assert "**At 4,096 tokens LLaMA (hf) takes 5.00x as long as Mamba (cpu)." in words
    assert "on 2 cores of simulated, 4,096 tokens, 3 rounds" in words
    assert "moves the answer from 0.125 to 5.00, a factor of 40.0, and decides who wins" in words
    assert "at the best of both Mamba is 1.25 times faster." in words
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    assert rows[2:] == [
        [
            "`hf` (eager)",
            "`cpu` (fused scan), the paper's kind of pairing",
            "5.00",
            "5.00",
            "Mamba",
        ],
        ["`hf`", "`hf`", "0.500", "0.500", "LLaMA"],
        ["`cpu`", "`cpu`, best against best", "1.25", "1.25", "Mamba"],
    ]
    assert max(map(len, re.sub(r"[|!].*\n", "", text).splitlines())) <= readme.WIDTH_OF_TEXT


def test_what_it_stands_on_is_kept(place):
    run, path, record = place
    (record / "tables").mkdir(parents=True)
    (record / "tables" / "old.md").write_text("of another run")
    (record / "kernels").mkdir()
    (run / "report.html").write_text("page")
    command(run, "--readme", path, "--record", record)
    kept = sorted(str(p.relative_to(record)) for p in record.rglob("*"))
    assert kept == [
        "figures", "figures/time.png", "kernels", "machine.json", "plan.json", "records.jsonl", "report.html", "tables",
        "tables/winners.md",
    ]  # fmt: skip
    assert (record / "records.jsonl").read_bytes() == (run / "records.jsonl").read_bytes()


def test_a_large_page_is_not_kept(place, monkeypatch):
    run, path, record = place
    monkeypatch.setattr(readme, "MOST_REPORT", 3)
    (run / "report.html").write_text("page")
    command(run, "--readme", path, "--record", record)
    assert not (record / "report.html").exists()


def test_check_compares_with_the_record_that_the_file_names(place, capsys):
    run, path, record = place
    command(run, "--readme", path, "--record", record)
    capsys.readouterr()
    assert command("--check", "--readme", path) == 0
    path.write_text(path.read_text().replace("5.00", "6.00", 1))
    before = path.read_text()
    assert command("--check", "--readme", path) == 1
    assert "6.00" in capsys.readouterr().err
    assert path.read_text() == before


def test_the_readme_of_the_lab_says_what_its_record_says(capsys):
    assert command("--check", "--readme", ROOT / "README.md") == 0, capsys.readouterr().err


def test_its_pictures_are_there():
    text = (ROOT / "README.md").read_text()
    assert all((ROOT / link).exists() for link in re.findall(r"\]\((profiles/[^)#]+)\)", text))


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        ("no markers", ["RUN"], "needs one pair of lines"),
        (TEXT + TEXT, ["RUN"], "has 2"),
        (TEXT, [], "RUN: which one?"),
        (TEXT, ["nowhere"], "is no run"),
        (TEXT, ["--check"], "is no run"),
        (TEXT, ["RUN", "--screenshot"], "there is no"),
    ],
)
def test_bad_input_is_one_line(place, capsys, text, argv, said):
    run, path, record = place
    path.write_text(text)
    argv = [run if word == "RUN" else word for word in argv]
    with pytest.raises(SystemExit, match="2"):
        command(*argv, "--readme", path, *(["--record", record] if "RUN" in argv else []))
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert path.read_text() == text


def test_a_run_of_one_architecture_is_refused(tmp_path, capsys):
    costs = {("mamba", "cpu"): (0.0, 1.0, 0.0)}
    run = Simulation(costs=costs, seqlens=(128,), rounds=1).write(tmp_path / "run")
    (tmp_path / "README.md").write_text(TEXT)
    with pytest.raises(SystemExit, match="2"):
        command(run, "--readme", tmp_path / "README.md", "--record", run)
    assert "holds no prefill of both architectures" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium: apt-get install chromium")
def test_a_screenshot_is_taken_and_shown(place):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    run, path, record = place
    build([run])
    assert command(run, "--readme", path, "--record", record, "--screenshot") == 0
    picture = record / "figures" / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < picture.stat().st_size <= readme.MOST_SHOT
    assert "(records/new/figures/report.png)" in path.read_text()
