"""The driver of the representation metrics: which jobs, what their records hold, and what happens when one fails."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis import metric_jobs, metric_load, metrics
from analysis.measured import NotFinite, check_finite, series
from analysis.metric_plan import EXTENTS, GROUPS, Extent, jobs, statistics_impl
from bench.options import given, make_parser, resolve
from bench.plan import PlanError, read_plan
from bench.planning import create, make_plan
from kernels.implementations import _slots, find

TINY = {
    "seqlen": 64, "long": 0, "seeds": 2, "rows": 8, "channels": 8, "context": 24, "probes": 2, "draws": 1,
    "sessions": 2, "session_tokens": 400, "bootstrap": 20, "shuffles": 1, "pairs": 1,
}  # fmt: skip
FORWARDS = ("hidden", "state", "attention")


def planned(*said):
    argv = ["--preset", "tiny", "--seqlens", "64", "--device", "cpu", *said]
    parser = make_parser("")
    return make_plan(resolve(parser.parse_args(argv), given(parser, argv)))


@pytest.fixture(scope="module")
def plan():
    return planned()[0]


@pytest.fixture
def run(tmp_path):
    """A run directory without a measurement."""
    made, tokens = planned("--impl", "torch,hf")
    create(tmp_path / "run", made, tokens)
    return tmp_path / "run"


def units(found, **wanted):
    return [job for job in found if all(getattr(job, name) == v for name, v in wanted.items())]


def test_every_implementation_is_compared_and_the_fastest_has_the_seeds(plan):
    found = jobs(plan, Extent(**TINY), GROUPS)
    for arch in ("mamba", "llama"):
        impls = [job.impl for job in units(found, kind="forward", arch=arch, seed=0)]
        assert impls == ["reference", "triton", "cuda", "torch", "cpu", "hf"]
        assert [job.impl for job in units(found, kind="forward", arch=arch, seed=1)] == ["cpu"]
        for impl in ("triton", "cuda"):
            assert all(job.reason for job in units(found, arch=arch, impl=impl))
    assert not any("state" in job.groups for job in units(found, arch="llama"))
    assert [job.kind for job in found[-3:]] == ["shifts", "shifts", "shift_difference"]


def test_what_cannot_be_differentiated_says_why(plan):
    extent = replace(Extent(**TINY), context=256)
    (job,) = units(jobs(plan, extent, GROUPS), kind="context", arch="mamba", impl="hf")
    assert "square of the length" in job.reason
    (job,) = units(jobs(plan, Extent(**TINY), GROUPS), kind="context", arch="mamba", impl="hf")
    assert job.reason == ""


def test_a_checkpoint_has_no_seeds(plan):
    options = plan.options | {"checkpoint": {"mamba": "somewhere"}}
    found = jobs(replace(plan, options=options), Extent(**TINY), GROUPS)
    assert {job.seed for job in units(found, arch="mamba")} == {0}
    assert {job.weights for job in units(found, arch="mamba", kind="forward")} == {"checkpoint"}
    assert {job.seed for job in units(found, arch="llama", kind="forward")} == {0, 1}


def test_comparisons_name_their_sides(plan):
    parts = [job.part for job in units(jobs(plan, Extent(**TINY), GROUPS), kind="similarity")]
    assert parts[0] == "llama against mamba"
    assert "mamba, cpu against hf" in parts
    assert "llama, seed 0 against 1" in parts
    assert "mamba, fp32 against bf16" in parts


def test_statistics_are_computed_by_the_fastest_that_takes_them():
    cpu = torch.device("cpu")
    assert statistics_impl("scan_statistics", cpu, "fp32") == "cpu"
    assert statistics_impl("attention_statistics", cpu, "fp32") == "torch"


def test_extents_grow():
    for device in ("cpu", "cuda"):
        small, full = EXTENTS["small"][device], EXTENTS["full"][device]
        assert small.seqlen <= full.seqlen
        assert full.sessions >= 80
        assert min(small.seeds, full.seeds) >= 5


def test_a_record_is_what_the_series_say():
    values = torch.arange(200, dtype=torch.float64)[None]
    made = [series("softmax", "entropy", values), series("softmax", "span", values, summary="max")]
    found = metric_jobs.described({"block 1": made})
    assert [row["value"] for row in found["values"]] == [99.5, 199]
    (profile,) = found["profiles"]
    assert len(profile["positions"]) == metric_jobs.POINTS
    assert sum(profile["values"]) / len(profile["values"]) == pytest.approx(99.5, rel=0.05)


def test_parity_is_the_rule_of_the_lab_and_leaves_thresholds_out():
    exact = {
        "block 1": [
            series("a", "m", torch.ones(1, 9)),
            series("a", "n", torch.ones(1, 9), exact=False),
        ]
    }
    near, far = (
        {"block 1": [series("a", m, torch.ones(1, 9) + off, exact=m == "m") for m in "mn"]}
        for off in (1e-6, 1e-3)
    )
    good = metric_jobs.parity(near, near, exact)
    assert good["passed"]
    assert list(good["metrics"]) == ["blocks/a/m"]
    bad = metric_jobs.parity(far, near, exact)
    assert not bad["passed"]
    error, bound = bad["metrics"]["blocks/a/m"]["rms"]
    assert error == pytest.approx(1e-3, rel=1e-3)
    assert bound < 1e-5


def test_where_a_nan_came_from():
    tensor = torch.zeros(1, 20, 4)
    tensor[0, 7:, 2] = float("nan")
    with pytest.raises(NotFinite, match=r"block 3 holds NaN from token 7 on \(13 of 20 tokens\)"):
        check_finite("block 3", tensor, 1)
    check_finite("block 3", torch.zeros(1, 20, 4), 1)


@pytest.mark.slow
def test_a_run_has_all_metrics_and_is_completed_not_repeated(run, capsys, monkeypatch):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    groups = [g for g in GROUPS if g != "shifts"]
    assert metrics.main([str(run), *options, f"--groups={','.join(groups)}"]) == 0
    out = capsys.readouterr().out
    assert "64 tokens" in out
    records = metric_load.read(run / metric_load.NAME)
    ok = [r for r in records if r["status"] == "ok"]
    assert {r["unit"]["group"] for r in ok} == set(groups)
    for record in ok:
        if record["unit"]["group"] != "similarity":
            assert record["values"]
        if record["unit"]["group"] in FORWARDS:
            assert record["kernels"]
    judged = [r["parity"] for r in ok if r["parity"]]
    assert judged
    assert all(p["passed"] for p in judged)
    gone = [r for r in records if r["status"] == "unavailable"]
    assert all(r["reason"] for r in gone)
    assert not [r for r in records if r["status"] == "error"]

    before = (run / metric_load.NAME).read_bytes()
    monkeypatch.setattr(metric_jobs.Metrics, "records", lambda *args: pytest.fail("computed again"))
    assert metrics.main([str(run), *options, f"--groups={','.join(groups)}", "--quiet"]) == 0
    assert (run / metric_load.NAME).read_bytes() == before


def compute(run, groups=FORWARDS, **changes):
    failed = metrics.compute(run, "small", groups, TINY | {"seeds": 1} | changes)
    return failed, metric_load.read(run / metric_load.NAME)


@pytest.mark.slow
def test_other_settings_are_made_again(run):
    compute(run, ("attention",))
    _, records = compute(run, ("attention",), rows=4)
    assert {r["settings"]["rows"] for r in records if r["status"] == "ok"} == {4}


@pytest.mark.slow
def test_a_kernel_whose_metrics_differ_fails_parity(run, monkeypatch):
    right = find("causal_attention", "torch", "cpu")
    slot = _slots["kernels.causal_attention.portable:causal_attention_torch"]

    def wrong(q, k, v, *rest):
        return right(q * 1.001, k, v, *rest)

    monkeypatch.setattr(slot, "function", wrong)
    failed, records = compute(run)
    assert failed == 0
    verdicts = {
        (r["unit"]["arch"], r["unit"]["group"]): r["parity"]["passed"]
        for r in records
        if r["parity"] and r["unit"]["impl"] == "torch"
    }
    assert verdicts["llama", "hidden"] is False
    assert verdicts["mamba", "hidden"] is True


@pytest.mark.slow
def test_nan_in_one_architecture_is_named_and_the_other_goes_on(run, monkeypatch):
    built = metric_jobs.build_planned

    def broken(arch, *rest):
        model = built(arch, *rest)
        if arch == "llama":
            with torch.no_grad():
                model.model.layers[1].mlp.down_proj.weight[3] = float("nan")
        return model

    monkeypatch.setattr(metric_jobs, "build_planned", broken)
    failed, records = compute(run)
    assert failed
    for record in records:
        if record["unit"]["arch"] == "llama" and record["unit"]["impl"] in ("torch", "hf"):
            assert "the hidden state of block 2 holds NaN from token 0 on" in record["reason"]
        elif record["unit"]["arch"] == "mamba" and record["unit"]["impl"] in ("torch", "hf"):
            assert record["status"] == "ok"


def test_another_dtype_is_cast_from_the_kept_model(monkeypatch):
    """The bits are those of a model that was built in that dtype, and none is built twice."""
    plan, tokens = planned("--impl", "hf", "--dtype", "bf16,fp32")
    built = []
    fresh = metric_jobs.build_planned
    monkeypatch.setattr(metric_jobs, "build_planned", lambda *args: built.append(args) or fresh(*args))  # fmt: skip
    lab = metric_jobs.Metrics(plan, Extent(**TINY), tokens.ids[:, :64], [])
    for arch in ("mamba", "llama"):
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            ours, theirs = lab._built(arch, name, 0), fresh(arch, plan.options, dtype)
            for (a, x), (b, y) in zip(
                [*ours.named_parameters(), *ours.named_buffers()],
                [*theirs.named_parameters(), *theirs.named_buffers()], strict=True,
            ):  # fmt: skip
                assert a == b
                assert x.dtype == y.dtype
                assert torch.equal(x, y)
    assert [args[0] for args in built] == ["mamba", "llama"]


def test_longer_metrics_read_the_same_sessions_on(run):
    plan = read_plan(run / "plan.json")
    kept = load_file(run / "references" / "tokens.safetensors")["ids"]
    longer = metrics.tokens(run, plan, 200)
    assert longer.shape == (1, 200)
    assert torch.equal(longer[:, :64], kept)
    save_file({"ids": kept.flip(1).contiguous()}, run / "references" / "tokens.safetensors")
    with pytest.raises(PlanError, match="sessions are not what they were"):
        metrics.tokens(run, plan, 200)


def test_bad_input_is_one_line(tmp_path, capsys):
    for argv in (
        ["nowhere"],
        [str(tmp_path), "--groups", "hiden"],
        [str(tmp_path), "--rows", "-1"],
    ):
        with pytest.raises(SystemExit) as stop:
            metrics.main(argv)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1


def test_help_shows_both_extents(capsys):
    with pytest.raises(SystemExit):
        metrics.main(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 128, full 1847; on a GPU 2048, full 8192)" in text
    assert json.dumps(list(GROUPS)).strip("[]").replace('"', "").replace(", ", ",") in text
