"""Counters of Nsight Compute: its table is read, the limit is named, and the count stands beside the static one.

`data/counters.csv` was written by hand in the form of `ncu --csv --page raw`; its numbers are invented.
"""

import json
import subprocess
from pathlib import Path

import pytest

from bench.kernel_problems import MODES, problems
from profiles import counters

PLANTED = Path(__file__).parent / "data" / "counters.csv"


@pytest.fixture
def rows():
    return counters.read_csv(PLANTED.read_text())


def test_the_table_is_read_with_its_commas_and_gaps(rows):
    scan, carry = rows
    assert scan["kernel"] == "selective_scan_fwd_kernel"
    assert scan["counters"]["dram__bytes.sum"] == 134_217_728
    assert "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active" not in scan["counters"]
    assert carry["counters"]["smsp__inst_executed.sum"] == 1024


def test_the_limit_is_the_busiest_unit_or_what_warps_wait_for(rows):
    scan, carry = (counters.facts(row, 32 * 500_000) for row in rows)
    assert scan["limit"] == "exponential (81 %)"
    assert scan["instructions_per_32"] == pytest.approx(131.072)
    assert (scan["duration_ns"], scan["registers"], scan["bank_conflicts"]) == (100_000, 198, None)
    assert list(scan["stalls"]) == ["math_pipe_throttle", "long_scoreboard"]
    assert carry["limit"] == "waiting: long_scoreboard (issue 12 %)"
    assert counters.facts({"kernel": "k", "counters": {}})["limit"] == "unknown"


def test_the_count_stands_beside_that_of_machine_code(tmp_path):
    record = tmp_path / "static.json"
    made = lambda kernel, issue: {
        "kernel": kernel,
        "unit": "32 tokens x channels",
        "clocks": {"issue": issue},
    }
    record.write_text(json.dumps({"rows": [
        made("selective_scan_fwd-bf16-split", 126.0), made("selective_scan_fwd-bf16-short", 138.0),
        made("selective_scan_fwd-fp32", 120.0), made("selective_scan_adjoint-bf16-split", 110.0),
    ]}))  # fmt: skip
    count = lambda kernel, dtype: counters.static_counts(kernel, dtype, record)
    assert count("selective_scan_fwd_kernel", "bf16") == "126..138 per 32 tokens x channels"
    assert count("selective_scan_fwd_kernel", "fp32") == "120 per 32 tokens x channels"
    assert count("adjoint_kernel", "bf16") == "110 per 32 tokens x channels"
    assert count("elementwise_kernel", "bf16") == ""
    assert counters.static_counts("selective_scan_fwd_kernel", "bf16")  # of the committed record


def test_every_operator_has_units_of_work():
    for operator, modes in MODES.items():
        for mode in modes:
            problem = problems(operator, mode, "cuda")[0]
            assert counters.units_of(operator, problem) > 0
    (attention,) = problems("causal_attention", "decode", "cuda")[:1]
    assert counters.units_of("causal_attention", attention) == 32 * 2048


def test_unknown_metrics_are_left_out(monkeypatch):
    asked = []

    def ncu(command, **how):
        names = command[command.index("--metrics") + 1].split(",")
        asked.append(names)
        log = Path(command[command.index("--log-file") + 1])
        if counters.COUNTS["local_loads"] in names:
            log.write_text(f"==ERROR== Failed to find metric {counters.COUNTS['local_loads']}\n")
            return subprocess.CompletedProcess(command, 1, "", "")
        log.write_text(PLANTED.read_text())
        assert command[1:3] == ["--clock-control", "none"]
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(counters.subprocess, "run", ncu)
    assert len(counters.record(["child"])) == 2
    assert set(asked[0]) - set(asked[1]) == {counters.COUNTS["local_loads"]}
    assert len(asked) == 2


def test_an_ncu_that_records_nothing_is_told(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "==ERROR== LibraryNotLoaded")
    monkeypatch.setattr(counters.subprocess, "run", lambda *args, **how: failed)
    with pytest.raises(
        counters.CountersError, match=r"recorded nothing: ==ERROR== LibraryNotLoaded"
    ):
        counters.record(["child"])


def test_the_command_writes_its_tables(tmp_path, capsys):
    command = ["--operator", "selective_scan", "--csv", str(PLANTED), "--out", str(tmp_path)]
    assert counters.main(command) == 0
    assert "exponential (81 %)" in capsys.readouterr().out
    found = json.loads((tmp_path / "selective_scan-forward-bf16-triton.json").read_text())
    assert found["rows"][0]["limit"] == "exponential (81 %)"
    table = (tmp_path / "selective_scan-forward-bf16-triton.md").read_text().splitlines()
    assert table[0].startswith("# selective_scan forward bf16 triton, b1-l8192")
    assert len({line.count("|") for line in table[2:]}) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--operator", "selective_scan", "--mode", "decode"], "--mode decode: selective_scan has forward, backward"),
        (["--number", "99"], "--number 99"),
        (["--csv", "nowhere.csv"], "nowhere.csv"),
        ([], "unavailable, because"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(arguments, named, capsys, monkeypatch):
    monkeypatch.setattr(
        counters.profilers, "ncu", lambda: counters.profilers.Profiler("ncu", "", "it is not here")
    )
    with pytest.raises(SystemExit) as stop:
        counters.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
