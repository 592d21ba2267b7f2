"""A real Nsight Systems over a small sweep on the CPU: the client's own way of working, from nsys to the table."""

import json
import os
import subprocess
import sys

import pytest

from bench import profilers
from models.presets import PRESETS
from profiles import capture, nsight, nsight_file, timeline

NSYS = profilers.nsys()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NSYS.reason), reason=f"no real Nsight Systems: {NSYS.reason}"),
]
OPERATORS = {"mamba": ["op/causal_conv1d", "op/selective_scan"], "llama": ["op/causal_attention"]}
CELL = "mamba/cpu/train/32"
ID = "mamba-cpu-tiny-32-b1-fp32-train-eager"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A sweep under nsys, imported and exported: the SQLite, and the run."""
    folder = tmp_path_factory.mktemp("nsys")
    sweep = [
        sys.executable, "-m", "bench.sweep", "--quick", "--arch", "mamba,llama", "--impl", "cpu", "--seqlens", "32,64",
        "--rounds", "1", "--budget", "0.01", "--metrics", "none", "--profile", "none", "--threads", "1",
        "--device", "cpu", "--out", str(folder / "run"),
    ]  # fmt: skip
    command = nsight.nsys_command(folder, False, sweep)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / nsight.complete(folder)["trace"], folder / "run"


def layers(arch):
    return getattr(PRESETS["tiny"], arch)["num_hidden_layers"]


def inside(inner, outer):
    return (
        outer.start <= inner.start
        and inner.end <= outer.end
        and (inner.process, inner.thread) == (outer.process, outer.thread)
    )


def test_the_round_holds_every_cell_and_its_repetitions(profile):
    sqlite, run = profile
    ranges = list(nsight_file.read(sqlite).ranges.itertuples())
    (round_,) = [r for r in ranges if r.name == "round/0"]
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    cells = [r for r in ranges if r.name.startswith("cell/") and inside(r, round_)]
    assert len(cells) == len(records) == 4
    for record in records:
        name = "cell/{arch}-{impl}-{preset}-{seqlen}-b{batch}-{dtype}-{mode}-{launch}".format(
            **record["cell"]
        )
        (cell,) = [r for r in cells if r.name == name]
        reps = [r for r in ranges if r.name == "rep" and inside(r, cell)]
        assert len(reps) == 1 + len(record["time_ms"]["wall"])  # the parity forward is one as well


def test_layers_and_operators_are_all_there_and_sum_up(profile):
    found = timeline.read(profile[0])
    table = found.ranges.set_index("path")
    for arch, operators in OPERATORS.items():
        cells = [path for path in found.reps if path.startswith(f"cell/{arch}-")]
        assert len(cells) == 2
        for cell in cells:
            for i in range(layers(arch)):
                layer = f"{cell} > rep > layer/{i}"
                assert table.loc[layer, "count"] == 1
                for operator in operators:
                    assert table.loc[f"{layer} > {operator}", "count"] == 1
            assert f"{cell} > rep > layer/{layers(arch)}" not in table.index
    for path, row in table.iterrows():
        children = [p for p in table.index if p.rpartition(" > ")[0] == path]
        taken = table.loc[children, "host_ms"].sum()
        assert taken <= row.host_ms * (1 + 1e-9)
        assert row.host_self_ms == pytest.approx(row.host_ms - taken, abs=1e-6)


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """The same cell by both profilers: {profiler: folder}."""
    out = tmp_path_factory.mktemp("both")
    argv = [
        "--cell",
        CELL,
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--reps",
        "3",
        "--quiet",
    ]
    for profiler in ("nsys", "torch"):
        assert capture.main([*argv, "--profiler", profiler, "--out", str(out)]) == 0
    return {name: out / f"{ID}.{name}" for name in ("nsys", "torch")}


def test_both_profilers_agree_on_counts_and_nesting(captures):
    found = {name: timeline.read_csv(folder / "timeline.csv") for name, folder in captures.items()}
    counts = {name: dict(zip(t.path, t["count"], strict=True)) for name, t in found.items()}
    assert counts["nsys"] == pytest.approx(counts["torch"])
    assert list(counts["nsys"]) == list(counts["torch"])
    levels = {name: list(table.level) for name, table in found.items()}
    assert levels["nsys"] == levels["torch"]
    cell = f"cell/{ID}"
    assert counts["nsys"][f"{cell} > rep"] == 1
    assert counts["nsys"][f"{cell} > rep > op/selective_scan.backward"] == layers("mamba")


def test_an_nsys_capture_holds_its_report_and_manifest(captures):
    manifest = json.loads((captures["nsys"] / "manifest.json").read_text())
    assert manifest["status"] == "ok"
    assert manifest["reps"] == 3
    assert manifest["profiler_version"] == NSYS.version
    assert "nsys profile -t nvtx" in manifest["command"]
    assert manifest["files"]["report"] == "capture.nsys-rep"
    for name in manifest["files"].values():
        assert (captures["nsys"] / name).stat().st_size > 0
    assert not (captures["nsys"] / "capture.qdstrm").exists()
