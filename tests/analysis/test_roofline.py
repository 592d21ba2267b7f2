import math

import pytest

from analysis.report import overlay, roofline
from analysis.report.sections import settings_of
from tests.analysis.planted import results, world

COSTS = {("llama", "cpu"): 0.5, ("mamba", "cpu"): 0.25}
PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e12, "tf32": 6e12}, "exp_per_s": 1e9}


def drawn(peaks=PEAKS, **options):
    options.setdefault("seqlens", (256, 1024))
    found = results(world(COSTS, peaks=peaks, within=0.0, between=0.0, **options))
    chart = roofline.attained(found, settings_of(found)[0])
    return found, chart, chart and chart.spec["data"]["values"]


def test_points_are_the_counted_work_over_the_planted_time():
    found, chart, rows = drawn()
    floors = found.floors.set_index(["arch", "seqlen"])
    points = {(r["arch"], r["tokens"]): r for r in rows if "roof" not in r}
    assert len(points) == 4
    for (arch, seqlen), row in points.items():
        work = floors.loc[arch, seqlen]
        seconds = COSTS[arch, "cpu"] * seqlen / 1e3
        assert row["value"] == pytest.approx(work.flops / seconds / 1e9)
        assert row["intensity"] == pytest.approx(work.flops / work.bytes)
        assert row["shown"].endswith("FLOP/byte")
    assert "At 1,024 tokens: " in chart.alt
    assert "matrix peak 2,000 GFLOP/s" in chart.alt  # a third of tf32's


def test_roofs_are_the_measured_peaks():
    found, _, rows = drawn()
    roofs = {}
    for row in rows:
        if "roof" in row:
            roofs.setdefault(row["roof"], []).append((row["intensity"], row["value"]))
    slope = roofs["copy bandwidth"]
    assert all(y == pytest.approx(10 * x) for x, y in slope)  # GB/s
    assert [y for _, y in roofs["matrix peak"]] == pytest.approx([2000, 2000])
    assert slope[-1] == pytest.approx((200, 2000))
    assert roofs["matrix peak"][0] == pytest.approx((200, 2000))  # the ridge
    mamba = found.floors.set_index(["arch", "seqlen"]).loc["mamba", 1024]
    level = mamba.flops / mamba.exps  # a billion exponentials a second, in GFLOP/s
    assert [y for _, y in roofs["exponentials of mamba"]] == pytest.approx([level, level])
    assert sum(row.get("label", False) for row in rows) == 4


@pytest.mark.parametrize(
    ("peaks", "roofs"),
    [
        (PEAKS | {"exp_per_s": None}, {"copy bandwidth", "matrix peak"}),
        (PEAKS | {"matmul_flops": {}, "exp_per_s": None}, {"copy bandwidth"}),
        (PEAKS | {"copy_bytes_per_s": None, "exp_per_s": None}, {"matrix peak"}),
    ],
)
def test_a_peak_that_was_not_measured_is_no_roof(peaks, roofs):
    _, _, rows = drawn(peaks)
    assert {row["roof"] for row in rows if "roof" in row} == roofs
    assert all(math.isfinite(row["value"]) and math.isfinite(row["intensity"]) for row in rows)


@pytest.mark.parametrize("options", [{"peaks": None}, {"out_of_memory": dict.fromkeys(COSTS, 0)}])
def test_nothing_is_drawn_without_peaks_or_times(options):
    assert drawn(**options)[1] is None


def test_times_of_another_run_lie_over_those_of_the_first():
    a, b = (
        results(world({c: k * v for c, v in COSTS.items()}, within=0.0, between=0.0))
        for k in (1, 2)
    )
    chart = overlay.times(a, b, settings_of(a)[0], "old", "new")
    at = {row["series"]: row for row in chart.spec["data"]["values"]}
    assert set(at) == {"mamba cpu, old", "llama cpu, old", "mamba cpu, new", "llama cpu, new"}
    for arch in ("mamba", "llama"):
        first, second = at[f"{arch} cpu, old"], at[f"{arch} cpu, new"]
        assert second["value"] == pytest.approx(2 * first["value"])
        assert first["impl"] == second["impl"]  # one colour
        assert first["curve"] != second["curve"]  # other dashes
    assert chart.spec["layer"][0]["encoding"]["strokeDash"]["scale"]["domain"] == [
        "mamba, old", "llama, old", "mamba, new", "llama, new",
    ]  # fmt: skip
    other = settings_of(a)[0]._replace(dtype="bf16")
    assert overlay.times(a, b, other, "old", "new") is None
