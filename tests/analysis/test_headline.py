import re

import pytest

from analysis.headline import headline
from analysis.summary import sentences
from tests.analysis.planted import PEAKS, factors, results, world
from tests.analysis.test_identity import FLOORS, SHARES, efficient

BOTH = factors(2.0, 5.0) | {("mamba", "hf"): 2.0}


def said(*simulations, **options):
    return " ".join(headline(results(*simulations, **options)))


def test_the_answer_comes_first():
    found = results(efficient(SHARES, between=0.002))
    first = headline(found)[0]
    pattern = (
        r"At 1,024 tokens LLaMA \(hf\) takes (\S+)x \[.*\] as long as Mamba \(cuda\)\. "
        r"Architecture explains (\S+)x, implementation (\S+)x\. "
        r"Best against best: LLaMA \(cuda\) takes (\S+)x \[.*\] as long as Mamba \(cuda\)\."
    )
    ratio, architecture, implementation, best = map(float, re.fullmatch(pattern, first).groups())
    assert architecture == pytest.approx(FLOORS["llama"] / FLOORS["mamba"], rel=0.01)
    assert implementation == pytest.approx(5, rel=0.02)
    assert ratio == pytest.approx(architecture * implementation, rel=0.01)
    assert best == pytest.approx(architecture * 0.5 / 0.4, rel=0.02)
    assert sentences(found)[0] == first


def test_mamba_slower_turns_every_factor_round():
    shares = {("llama", "hf"): 0.4, ("mamba", "hf"): 0.02}
    text = said(efficient(shares))
    slower = 20 * FLOORS["mamba"] / FLOORS["llama"]
    found = re.match(
        r"At 1,024 tokens Mamba \(hf\) takes (\S+)x \[(\S+), (\S+)\] as long as LLaMA \(hf\)\. "
        r"Implementation explains (\S+)x, architecture works against it \((\S+)x\)\. "
        r"This pairing is best against best\.",
        text,
    )
    ratio, low, high, implementation, architecture = map(float, found.groups())
    assert low < ratio < high
    assert ratio == pytest.approx(slower, rel=0.03)
    assert implementation == pytest.approx(20, rel=0.03)
    assert architecture == pytest.approx(FLOORS["mamba"] / FLOORS["llama"], rel=0.01)


def test_equals_are_no_difference():
    text = said(world(dict.fromkeys(factors(), 0.1), between=0.002))
    assert (
        "LLaMA (hf) and Mamba (cuda) take the same time, LLaMA / Mamba = 1.0" in text
        or "= 0.99" in text
    )
    assert "It would be by architecture alone 1.88, by implementation alone 0.53" in text
    noisy = said(world(dict.fromkeys(factors(), 0.1), between=0.2))
    assert "differ by no more than this run can tell" in noisy
    assert "explains" not in noisy


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [((512, 2048, 4096, 8192), "4,096"), ((512, 2048), "2,048"), ((5793, 16384), "5,793")],
)
def test_the_length_is_the_nearest_to_the_papers(lengths, chosen):
    assert headline(results(world(BOTH, seqlens=lengths)))[0].startswith(f"At {chosen} tokens")


def test_out_of_memory_moves_to_a_length_with_times():
    text = said(world(BOTH, seqlens=(1024, 2048, 4096), out_of_memory={("llama", "hf"): 2048}))
    assert text.startswith("At 1,024 tokens LLaMA (hf) takes 10")
    assert "From 2,048 tokens LLaMA (hf) runs out of memory and Mamba (cuda) does not." in text


@pytest.mark.parametrize(
    ("simulation", "expected"),
    [
        (world(BOTH, rounds=0), "This run holds no record yet."),
        (world({("llama", "hf"): 1.0}), "Only LLaMA was measured: nothing is compared."),
        (
            world(BOTH, out_of_memory=dict.fromkeys(BOTH, 1)),
            "No time was measured: nothing is compared (LLaMA and Mamba ran out of memory).",
        ),
        (
            world(BOTH, out_of_memory={cell: 1 for cell in BOTH if cell[0] == "llama"}),
            "Only Mamba has times: nothing is compared (LLaMA ran out of memory).",
        ),
        (world(BOTH, rounds=0, unavailable={"cuda": "no GPU"}), "No time was measured: nothing is compared."),
        (world(BOTH, rounds=1), "One round has no interval and so no verdict: these are single observations."),
        (world(BOTH, peaks=None), "How much of it is architecture cannot be concluded, because machine.json holds no"),
        (
            world(BOTH, unavailable={"triton": "no GPU"}, interpreted=("torch",)),
            "What would change with triton (LLaMA and Mamba), torch (LLaMA and Mamba) cannot be concluded: no times",
        ),
        (world({c: v for c, v in BOTH.items() if c != ("llama", "hf")}), "This pairing is best against best."),
        (
            world(BOTH, peaks={**PEAKS, "exp_per_s": None}),
            "implementation the rest: only bounds, because no peak was measured for the exponential work of LLaMA",
        ),
        (world(BOTH, modes=("decode",)), "For a token after 1,024 tokens LLaMA (cuda) takes"),
        (world(BOTH, modes=("train",)), "To train on 1,024 tokens LLaMA (cuda) takes"),
    ],
)  # fmt: skip
def test_what_cannot_be_concluded_is_said(simulation, expected):
    found = results(simulation)
    assert expected in " ".join(headline(found))
    assert all(sentence.endswith(".") and sentence[0].isupper() for sentence in headline(found))
    assert sentences(found)[: len(headline(found))] == headline(found)


def test_llama_and_mamba_at_different_lengths():
    llama = {c: v for c, v in BOTH.items() if c[0] == "llama"}
    mamba = {c: v for c, v in BOTH.items() if c[0] == "mamba"}
    text = said(world(llama, seqlens=(512,)), world(mamba, seqlens=(1024,)))
    assert text == "LLaMA and Mamba share no length at which both have a time in the same round."


def test_each_mode_has_a_sentence():
    text = said(
        world(BOTH, modes=("prefill", "decode")), (world({("mamba", "hf"): 1.0}), {"mode": "train"})
    )
    assert "At 1,024 tokens LLaMA (hf)" in text
    assert "For a token after 1,024 tokens LLaMA (cuda)" in text
    assert "Only Mamba was measured in train: nothing is compared." in text


def test_the_way_to_the_best_pairing():
    graph = {cell: cost / 2 for cell, cost in BOTH.items()}
    text = said(
        world(BOTH, between=0.002), (world(graph, seed=1, between=0.002), {"launch": "graph"})
    )
    assert re.match(
        r"At 1,024 tokens LLaMA \(hf\) takes (9\.9|10\.)", text
    )  # the setting of the paper: eager
    assert re.search(
        r"From the paper's pairing to the best one LLaMA / Mamba goes from (9\.9\d|10\.\d) to (1\.99|2\.0\d): "
        r"llama mixer \(hf to cuda\) 0\.(19|20)\dx and launch \(eager to graph\) (0\.99\d|1\.00)x\.",
        text,
    )
