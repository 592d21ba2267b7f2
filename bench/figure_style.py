"""How pictures of the lab look: colours of the implementations, axes and grid."""

COLOURS = {  # Okabe and Ito's palette, told apart with any colour vision
    "triton": "#0072B2",
    "cuda": "#009E73",
    "torch": "#E69F00",
    "cpu": "#CC79A7",
    "hf": "#D55E00",
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
}
