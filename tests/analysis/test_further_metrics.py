"""Representation metrics of architectures beside the pair: hidden states alone, and no word about the pair changes."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from analysis import metric_figures, metric_pages, metric_tables
from analysis.attribution import attribution
from analysis.metric_jobs import Metrics
from analysis.metric_plan import GROUPS, OF_THE_PAIR, Extent, jobs
from tests.analysis.metric_simulate import MetricSimulation
from tests.analysis.test_metrics import FORWARDS, TINY, planned

EXTENT = Extent(**TINY)
PAIR = MetricSimulation(seeds=3, layers=2)
OTHERS = replace(PAIR, archs=("mamba2", "hybrid"), groups=("hidden",))


@pytest.fixture(scope="module")
def found():
    return metric_pages.Found(PAIR.records() + OTHERS.records())


def test_the_comparison_of_the_two_is_as_without_them(found):
    alone = metric_pages.Found(PAIR.records())
    pd.testing.assert_frame_equal(found.attribution, alone.attribution)
    said = metric_tables.sentences(found)
    for sentence in metric_tables.sentences(alone):
        assert sentence in said or "metrics that were compared" in sentence  # a count of all
    beyond = [s for s in said if "not part of the comparison of the two" in s]
    assert beyond == [
        "Of mamba2 and hybrid there are metrics too (hidden); they are not part of the comparison of the two."
    ]
    assert not any("not part of" in s for s in metric_tables.sentences(alone))


def test_their_layers_have_tables(found):
    titles = [title for title, _ in metric_pages.by_layer(found)]
    assert any(title.startswith("mamba2, residual stream") for title in titles)
    assert {"mamba2", "hybrid"} < set(metric_pages.implementations(found).arch)


def test_pictures_show_the_pair(found, tmp_path):
    alone = metric_figures.write(PAIR.records(), tmp_path / "alone")
    drawn = metric_figures.write(found.records, tmp_path / "more")
    assert [p.name for p in drawn] == [p.name for p in alone]
    assert drawn


def test_they_alone_are_no_comparison(tmp_path):
    records = OTHERS.records()
    assert attribution(records).empty
    assert metric_figures.write(records, tmp_path) == []
    said = metric_tables.sentences(metric_pages.Found(records))
    assert any("not part of the comparison" in s for s in said)
    assert not any("Verdicts" in s for s in said)


def test_llama_without_mamba_is_said():
    records = replace(PAIR, archs=("llama",)).records() + OTHERS.records()
    said = metric_tables.sentences(metric_pages.Found(records))
    assert any("only llama of llama and mamba was measured" in s for s in said)


@pytest.fixture(scope="module")
def plan():
    return planned("--arch", "mamba,llama,mamba2,hybrid", "--impl", "torch,hf")[0]


def test_jobs_are_hidden_states_and_a_reason(plan):
    made = jobs(plan, EXTENT, GROUPS)
    pair = [job for job in made if job.arch not in ("mamba2", "hybrid")]
    assert pair == jobs(planned("--impl", "torch,hf")[0], EXTENT, GROUPS)
    for arch in ("mamba2", "hybrid"):
        mine = [job for job in made if job.arch == arch]
        usable = [job for job in mine if not job.reason]
        assert {job.groups for job in usable} == {("hidden",)}
        assert {(job.impl, job.seed) for job in usable} >= {("reference", 0), ("torch", 0), ("hf", 0)}  # fmt: skip
        assert {job.seed for job in usable} == {0, 1}
        (lacking,) = [job for job in mine if job.reason]
        assert lacking.reason == OF_THE_PAIR == "defined for Mamba and LLaMA"
        assert set(lacking.groups) == set(GROUPS) - {"hidden"}
    assert {j.arch for j in jobs(plan, EXTENT, ("state",)) if j.reason == OF_THE_PAIR} == {
        "mamba2", "hybrid",
    }  # fmt: skip


def test_a_plan_without_mamba_has_no_jobs_of_both():
    plan = planned("--arch", "llama,mamba2", "--impl", "torch,hf")[0]
    kinds = {(job.kind, job.arch) for job in jobs(plan, EXTENT, GROUPS)}
    assert ("shift_difference", "both") not in kinds
    assert ("similarity", "both") not in kinds
    assert ("shifts", "llama") in kinds


def test_hidden_states_of_their_models_pass_parity(plan):
    torch.manual_seed(0)
    metrics = Metrics(plan, EXTENT, torch.randint(0, 256, (1, EXTENT.seqlen)), [])
    wanted = [j for j in jobs(plan, EXTENT, FORWARDS) if (j.arch, j.impl) == ("mamba2", "torch")]
    (record,) = metrics.records(wanted[0], wanted[0].groups)
    assert record["status"] == "ok"
    assert record["unit"]["group"] == "hidden"
    assert record["parity"]["passed"]
    assert {v["layer"] for v in record["values"]} == {"embedding", "block 1", "block 2", "final norm"}  # fmt: skip
