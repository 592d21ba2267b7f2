"""What pictures over length share: the axis of lengths and names at the ends of lines."""

import math

from matplotlib.ticker import NullFormatter, NullLocator

LENGTH = {"decode": "context L, tokens"}  # in other modes: tokens


def label_ends(figure, ends):
    """Name each line at its right end; names that would touch are moved apart about their middle.

    Args:
        ends: {axes: [(x, y, name, colour)]}; called last, because shared axes settle with the last panel.
    """
    figure.draw_without_rendering()
    for ax, lines in ends.items():
        gap = 11 * figure.dpi / 72 / ax.get_window_extent().height
        to_axes = ax.transData + ax.transAxes.inverted()
        columns = {}
        for x, y, name, colour in lines:
            right, wanted = to_axes.transform((x, y))
            columns.setdefault(round(right, 3), []).append((wanted, name, colour))
        for right, names in columns.items():
            names.sort()
            for height, (_, name, colour) in zip(
                apart([w for w, *_ in names], gap), names, strict=True
            ):
                ax.annotate(
                    name, (right, height), xycoords="axes fraction", xytext=(6, 0),
                    textcoords="offset points", color=colour, va="center", fontsize=8,
                    fontweight="bold", annotation_clip=False,
                )  # fmt: skip


def apart(wanted, gap):
    """Ascending heights at least `gap` apart and as near to the ascending `wanted` as that permits."""
    groups = []  # of neighbours that touch: the heights wanted, and the mean that the group is centred on
    for height in wanted:
        groups.append([height])
        while (
            len(groups) > 1
            and _middle(groups[-1]) - _middle(groups[-2])
            < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_middle(g) + gap * (i - (len(g) - 1) / 2) for g in groups for i in range(len(g))]


def _middle(group):
    return sum(group) / len(group)


def length_axis(ax, lengths):
    """Ticks at the octaves of `lengths`, ascending tokens."""
    octaves = [n for n in lengths if math.log2(n / lengths[0]) % 1 < 0.02] or lengths
    ax.set_xticks(octaves, [f"{n:,}" for n in octaves])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(lengths[0] * 0.85, lengths[-1] * 1.15 if len(lengths) > 1 else lengths[0] * 1.2)
