"""The picture of a training: loss, and accuracy, over steps, a line per architecture."""

import pandas as pd

COLOURS = {"llama": "#E08214", "mamba": "#3E7DB5"}
LABELS = {"loss": "loss, nats per token that counts", "accuracy": "share predicted right"}
SMOOTH = (
    20  # a line is a moving mean over 1 / SMOOTH of the steps; the points are the steps themselves
)


def draw(records, title, path):
    """Write a PNG of the records of `loss.jsonl`: dicts with arch, step, loss, accuracy; held_out at the last step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
             "grid.color": "#DDDDDD", "axes.axisbelow": True}  # fmt: skip
    steps = pd.DataFrame([record for record in records if "held_out" not in record])
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), layout="constrained")
        for axis, (column, label) in zip(axes, LABELS.items(), strict=True):
            for arch, of_arch in steps.groupby("arch", sort=False):
                colour = COLOURS.get(arch, "#777777")
                window = max(1, len(of_arch) // SMOOTH)
                smooth = of_arch[column].rolling(window, min_periods=1, center=True).mean()
                axis.plot(of_arch["step"], of_arch[column], ".", color=colour, ms=2, alpha=0.3)
                axis.plot(of_arch["step"], smooth, color=colour, lw=1.6, label=arch)
                for record in records:
                    if record["arch"] == arch and "held_out" in record:
                        value = record["held_out"][column]
                        axis.plot(record["step"], value, "D", color=colour, mec="black", ms=5)
            axis.set(xlabel="step", ylabel=label)
        axes[0].set_ylim(bottom=0)
        axes[1].set_ylim(0, 1.02)
        axes[0].legend(frameon=False)
        figure.suptitle(f"{title} (diamonds: held out)", fontsize=10)
        figure.savefig(path, dpi=160)
        plt.close(figure)
