"""What `analysis.trained` shows: a metric by block, trained beside random and uniform; a picture; one sentence."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.metric_load import values_frame
from analysis.render import markdown, rich_table
from analysis.wording import interval, number
from bench.figure_style import STYLE

TOP_K, THRESHOLD = 5, 0.01  # of the top mass and the span
METRICS = {  # (instrument, metric): heading
    ("softmax", "entropy"): "entropy, nats",
    ("softmax", "distance"): "distance, tokens",
    ("softmax", "top_mass"): f"top-{TOP_K} mass",
    ("softmax", "span"): "span, tokens",
    ("residual stream", "velocity_relative"): "relative velocity",
    ("residual stream", "stability"): "stability",
    ("residual stream", "norm_mean"): "norm",
}
DRAWN = list(METRICS)[:4]
TRAINED, RANDOM, UNIFORM = "#D55E00", "#0072B2", "#555555"


class Comparison:
    """The values of trained and random weights by block.

    Attributes:
        seqlen, seeds, blocks: tokens, random initialisations, number of blocks.
        trained: {(instrument, metric): (blocks,) array}; random: the same with (seeds, blocks).
        uniform: {(instrument, metric): the value of attention that is spread evenly}, without the hidden states.
    """

    def __init__(self, records):
        values = values_frame(records)
        values = values[values.layer.str.match(r"block \d+$")]
        self.seqlen = int(values.seqlen.iloc[0])
        self.trained, self.random = {}, {}
        for key in METRICS:
            found = values[(values.instrument == key[0]) & (values.metric == key[1])]
            by_seed = found.pivot_table(
                index=["weights", "seed"], columns="layer_index", values="value"
            )
            self.trained[key] = by_seed.loc["trained"].to_numpy()[0]
            self.random[key] = by_seed.loc["initial"].to_numpy()
        self.seeds, self.blocks = self.random[DRAWN[0]].shape
        self.uniform = {("softmax", name): value for name, value in uniform(self.seqlen).items()}

    def table(self):
        """One row per block and two for the model: the mean over the blocks, and uniform attention."""
        rows = [self._row(f"block {i + 1}", i) for i in range(self.blocks)]
        rows.append(self._row("mean of blocks", slice(None)))
        even = {f"{METRICS[key]}": number(value) for key, value in self.uniform.items()}
        rows.append({"layer": "uniform"} | even)
        return pd.DataFrame(rows).fillna("-")

    def _row(self, name, part):
        row = {"layer": name}
        for key, heading in METRICS.items():
            random = self.random[key][:, part].reshape(self.seeds, -1).mean(1)
            row[heading] = number(float(np.mean(self.trained[key][part])))
            row[f"{heading}, random"] = interval(random.mean(), random.min(), random.max())
        return row

    def sentence(self):
        """What the numbers say."""
        entropy = "softmax", "entropy"
        compared = [
            f"{METRICS[key]} {number(self.trained[key].mean())} (random weights {number(self.random[key].mean())}, "
            f"uniform attention {number(self.uniform[key])})"
            for key in DRAWN
        ]
        below = int((self.trained[entropy] < self.random[entropy].min(0)).sum())
        share = self.random[entropy].mean() / self.uniform[entropy]
        return (
            f"Attention of the trained model on {self.seqlen:,} tokens, mean over blocks and heads: "
            f"{'; '.join(compared)}. "
            f"Its entropy is below that of every random initialisation in {below} of {self.blocks} blocks; random "
            f"weights have {share:.1%} of the entropy of uniform attention."
        )


def uniform(seqlen):
    """Means over the tokens of attention that is spread evenly over all tokens so far: {metric: value}."""
    seen = np.arange(1, seqlen + 1)
    return {
        "entropy": math.lgamma(seqlen + 1) / seqlen,
        "distance": (seqlen - 1) / 4,
        "top_mass": float(np.minimum(1, TOP_K / seen).mean()),
        "span": float(np.where(1 / seen > THRESHOLD, seen - 1, 0).mean()),
    }


def figure(found):
    """Entropy, distance, top mass and span by block."""
    with plt.rc_context(STYLE | {"axes.titlesize": 10, "axes.titleweight": "bold"}):
        drawing, axes = plt.subplots(2, 2, figsize=(8.6, 5.6), sharex=True, layout="constrained")
        blocks = np.arange(1, found.blocks + 1)
        for axis, key in zip(axes.flat, DRAWN, strict=True):
            random = found.random[key]
            axis.fill_between(blocks, random.min(0), random.max(0), color=RANDOM, alpha=0.25, lw=0)
            axis.plot(blocks, random.mean(0), color=RANDOM, label=f"random, {found.seeds} seeds")
            axis.plot(blocks, found.trained[key], "o-", ms=3, color=TRAINED, label="trained")
            axis.axhline(found.uniform[key], color=UNIFORM, ls="--", lw=1, label="uniform")
            axis.set_title(METRICS[key])
            axis.set_ylim(bottom=0)
        for axis in axes[1]:
            axis.set_xlabel("block")
        axes[0, 0].legend(frameon=False)
        title = f"SmolLM2-135M on {found.seqlen:,} tokens, means over heads and tokens"
        drawing.suptitle(title, fontsize=10)
    return drawing


def write(found, folder):
    """trained.md and trained.png in `folder`."""
    note = f"Random: the mean over {found.seeds} initialisations [least, most]. Means over heads and tokens."
    text = f"{found.sentence()}\n\n{note}\n\n{markdown(found.table())}"
    (folder / "trained.md").write_text(text, encoding="utf-8")
    drawing = figure(found)
    drawing.savefig(folder / "trained.png", dpi=160, bbox_inches="tight", pad_inches=0.08)
    plt.close(drawing)


def show(found, console):
    """Three tables on the terminal, narrow enough for it, and the sentence."""
    table = found.table()
    titles = ("attention: how even, how far", "attention: how much on how few", "hidden states")
    for title, keys in zip(titles, (DRAWN[:2], DRAWN[2:], list(METRICS)[4:]), strict=True):
        columns = [c for key in keys for c in (METRICS[key], f"{METRICS[key]}, random")]
        shown = table[["layer", *columns]]
        shown = shown[(shown[columns] != "-").any(axis=1)]
        title = f"{title} (random: the mean of {found.seeds} seeds, and least and most)"
        console.print(rich_table(title, shown))
    console.print(found.sentence(), soft_wrap=True)
