import math

import numpy as np
import pytest

from analysis import ratios
from bench.verdict import ratio_interval
from tests.analysis.simulate import Simulation


def test_matrix_has_every_pair_at_every_length(results):
    found = results(Simulation())
    matrix = found.matrix["time"]
    assert len(matrix) == 2 * 2 * 9
    row = matrix[
        (matrix.llama_impl == "hf") & (matrix.mamba_impl == "cpu") & (matrix.seqlen == 512)
    ].iloc[0]
    mine = {}
    for arch, impl in (("llama", "hf"), ("mamba", "cpu")):
        r = found.records
        r = r[(r.arch == arch) & (r.impl == impl) & (r.seqlen == 512)]
        mine[arch] = dict(zip(r["round"], r.time, strict=True))
    expected = ratio_interval(mine["llama"], mine["mamba"])
    assert (row.ratio, row.low, row.high, row.rounds) == (
        expected.ratio,
        expected.low,
        expected.high,
        5,
    )


def test_intervals_cover_the_true_ratios(results):
    hits = []
    for seed in range(8):
        simulation = Simulation(seed=seed, drift=0.05)
        for row in results(simulation).matrix["time"].itertuples():
            truth = simulation.time("llama", row.llama_impl, row.seqlen) / simulation.time(
                "mamba", row.mamba_impl, row.seqlen
            )
            hits.append(row.low <= truth <= row.high)
    assert 0.92 <= np.mean(hits) <= 0.98


def test_winner_diagonal_best_and_paper(results):
    matrix = results(Simulation()).matrix["time"]
    at = matrix[matrix.seqlen == 2048].set_index(["llama_impl", "mamba_impl"])
    assert at.winner["hf", "cpu"] == "mamba"
    assert at.winner["cpu", "hf"] == "llama"
    assert at.diagonal.to_dict() == {(a, b): a == b for a in ("cpu", "hf") for b in ("cpu", "hf")}
    assert at.index[at.best].tolist() == [("cpu", "cpu")]
    assert at.index[at.paper].tolist() == [("hf", "cpu")]


@pytest.mark.parametrize(
    ("mamba", "expected"),
    [(["cuda", "triton", "hf"], "cuda"), (["torch", "triton", "hf"], "triton"), (["hf"], "hf")],
)
def test_paper_pairing_takes_the_nearest_fused_scan(mamba, expected):
    assert ratios.paper_pairing({"llama": ["hf", "torch"], "mamba": mamba}) == ("hf", expected)
    assert ratios.paper_pairing({"llama": ["torch"], "mamba": mamba}) is None


def test_out_of_memory_in_the_matrix(results):
    simulation = Simulation(out_of_memory={("llama", "hf"): 1024, ("mamba", "hf"): 2048})
    matrix = results(simulation).matrix["memory"]
    at = matrix[matrix.seqlen == 2048].set_index(["llama_impl", "mamba_impl"])
    assert at.ratio["hf", "cpu"] == math.inf
    assert at.winner["hf", "cpu"] == "mamba"
    assert at.ratio["cpu", "hf"] == 0
    assert at.winner["cpu", "hf"] == "llama"
    assert math.isnan(at.ratio["hf", "hf"])
    assert at.reason["hf", "hf"] == "both out of memory"
    assert at.index[at.best].tolist() == [("cpu", "cpu")]


def test_spread_of_the_implementations(results):
    found = results(Simulation(out_of_memory={("llama", "hf"): 2048}))
    table = found.spread["time"].set_index("seqlen")
    matrix = found.matrix["time"]
    here = matrix[matrix.seqlen == 1448]
    row = table.loc[1448]
    assert (row.lowest, row.highest) == (here.ratio.min(), here.ratio.max())
    assert row.factor == here.ratio.max() / here.ratio.min()
    assert (row.diagonal_lowest, row.diagonal_highest) == (
        here[here.diagonal].ratio.min(),
        here[here.diagonal].ratio.max(),
    )
    assert row.flips
    assert not table.loc[128].flips
    assert table.loc[2048].out_of_memory == 2
