"""Numbers, ratios and crossovers in words, the same in every table, figure and sentence."""

import math

from analysis.load import named
from models.architectures import REGISTRY

TITLES = {name: found.title for name, found in REGISTRY.items()}
LETTERS = {"mamba": "M", "llama": "L", "equivalent": "=", "undecided": "?"}


def number(value, digits=3):
    """`value` with so many significant digits and thousands separators; `-` for nan."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value) or value == 0:
        return str(value) if value else "0"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def interval(value, low, high):
    """`12.3 [12.1, 12.6]`, or only the value where there is no interval."""
    if math.isnan(value) or math.isnan(low) or low == high:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def between(row):
    """A ratio with its interval in words: `1.42 [1.40, 1.45]`, `llama out of memory`, `-`."""
    if math.isnan(row.ratio):
        return row.reason or "-"
    if row.ratio in (0, math.inf):
        return ("llama" if row.ratio else named(row.mamba_impl)[0]) + " out of memory"
    return interval(row.ratio, row.low, row.high)


def brief(row):
    """A ratio in few characters: `1.42 ±1.7% M`, the half-width of the interval in percent and the winner.

    M and L are the pair; a further architecture wins by its name.
    """
    if math.isnan(row.ratio):
        return row.reason or "-"
    winner = LETTERS.get(row.winner, row.winner)
    if row.ratio in (0, math.inf):
        return f"{between(row).replace('out of memory', 'OOM')} {winner}"
    if math.isnan(row.low) or row.low == row.high:
        return f"{number(row.ratio)} {winner}"
    half = 100 * (math.sqrt(row.high / row.low) - 1)
    return f"{number(row.ratio)} ±{f'{half:.2g}' if half < 100 else '>100'}% {winner}"


def listed(names):
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def pairing(row):
    """The two sides of a row in words: `llama hf / mamba cpu`."""
    return f"llama {row.llama_impl} / {' '.join(named(row.mamba_impl))}"


def crossing(row):
    """A row of the crossover table in words: `1,048 [1,020, 1,080]`, `none: llama`, `undecided: equal throughout`.

    Mamba, or what stands in its place, is the better one above a crossover unless it says otherwise; after `none`
    stands the better one.
    """
    if row.answer == "none in range":
        return f"none: {row.better_above}"
    if row.answer not in ("crossover", "several"):
        return f"{row.answer}: {row.note}"
    low = "unbounded" if row.low == 0 else f"{row.low:,.0f}"
    high = "unbounded" if math.isinf(row.high) else f"{row.high:,.0f}"
    if math.isnan(row.seqlen):
        text = f"between {low} and {high}"
    elif math.isnan(row.low) or f"{row.seqlen:,.0f}" == low == high:
        text = f"{row.seqlen:,.0f}"
    else:
        text = f"{row.seqlen:,.0f} [{low}, {high}]"
    text = f"extrapolated: {text}" if row.extrapolated else text
    return f"{text}, llama above" if row.better_above == "llama" else text
