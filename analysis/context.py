"""Effective context by gradient: how far back the tokens lie that a position depends on, for any architecture.

For a probe t the model runs on the prefix 0..t, from its input embeddings e_j. Instruments, each a gradient profile
g_j, j <= t:

    log-probability     g_j = ||d log p(token t+1) / d e_j||
    gradient x input    g_j = |<d log p(token t+1) / d e_j, e_j>|
    max logit           g_j = ||d (largest logit) / d e_j||
    hutchinson          g_j = sqrt(mean_r ||d <v_r, h_t> / d e_j||^2), v_r random unit vectors and h_t the output of the
                        final norm: an estimate of ||d h_t / d e_j||_F / sqrt(width), which needs no choice of a scalar

and of each profile, with q_j = g_j / sum g:

    count       tokens with g_j > 0.1 max g
    range       distance of the earliest of them
    share       count / (t + 1), the prefix that the probe could have used
    mass_50, mass_90    smallest distance within which half, or nine tenths, of sum g lie
    exp_entropy exp(-sum q ln q), an effective number of tokens
    distance    sum q_j (t - j)

The paper (arXiv 2601.01237) put a gradient (count above a tenth of the largest) for Mamba beside attention weights
above 0.01 for the Transformer, and divided by different lengths. `asymmetric` keeps that pair, with t + 1 below both.
"""

import itertools
import math

import torch

from analysis.measured import check_finite, series
from models.observe import observing

SHARE_OF_MAX = 0.1  # the paper's threshold
SPAN_THRESHOLD = 0.01  # of an attention weight, likewise
THRESHOLDED = ("count", "range", "share")


def probes(seqlen, count=5):
    """(count,) positions from a quarter of the sequence to its last token with a next one; fewer in short sequences."""
    if seqlen < 2:
        raise ValueError(f"effective context needs at least 2 tokens, got {seqlen}")
    last = seqlen - 2
    return torch.linspace(min(0.25 * seqlen, last), last, count).round().long().unique()


def gradient_profiles(model, ids, probe, draws=4, seed=0):
    """{instrument: (probe + 1,) gradient profile g_j} of one probe, float64 on the CPU.

    Args:
        model: a causal language model, bound to an implementation with a backward. Its parameters need no gradient.
        ids: (1, seqlen) with seqlen > probe + 1.
        draws: random vectors of the Hutchinson estimate.
    """
    embeddings = model.get_input_embeddings()(ids[:, : probe + 1]).detach().requires_grad_()
    with torch.enable_grad():
        hidden = model.base_model(inputs_embeds=embeddings, use_cache=False)[0][0, -1]
        head = model.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype)).double()
        check_finite(f"logits of token {probe}", logits[None], 0)
        probability = logits.log_softmax(-1)[ids[0, probe + 1]]
        gradient = lambda scalar: torch.autograd.grad(scalar, embeddings, retain_graph=True)[0][0]
        first = gradient(probability).double()
        found = {
            "log-probability": first.norm(dim=-1),
            "gradient x input": (first * embeddings[0].detach().double()).sum(-1).abs(),
            "max logit": gradient(logits.max()).double().norm(dim=-1),
        }
        generator = torch.Generator().manual_seed(seed)
        squares = 0.0
        for _ in range(draws):
            v = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
            scalar = (hidden.double() * (v / v.norm()).to(hidden.device)).sum()
            squares = squares + gradient(scalar).double().square().sum(-1)
        found["hutchinson"] = (squares / draws).sqrt()
    for name, profile in found.items():
        check_finite(f"gradient profile ({name}) of token {probe}", profile, 0)
    return {name: profile.cpu() for name, profile in found.items()}


def statistics(profile):
    """{metric: number} of a gradient profile (t + 1,); nan throughout where the gradient vanishes everywhere."""
    t = len(profile) - 1
    total = profile.sum()
    names = ("count", "range", "share", "mass_50", "mass_90", "exp_entropy", "distance")
    if total == 0:
        return dict.fromkeys(names, math.nan)
    q = profile / total
    above = (profile > SHARE_OF_MAX * profile.max()).nonzero()[:, 0]
    by_distance = q.flip(0).cumsum(0)
    within = lambda mass: int((by_distance < mass * by_distance[-1]).sum())
    distance = torch.arange(t, -1, -1, dtype=q.dtype)
    values = (
        len(above),
        t - int(above[0]),
        len(above) / (t + 1),
        within(0.5),
        within(0.9),
        math.exp(torch.special.entr(q).sum().item()),
        (q * distance).sum().item(),
    )
    return dict(zip(names, map(float, values), strict=True))


def context_series(model, ids, count=5, draws=4, seed=0, progress=lambda: None):
    """(list of Series over the probes, {instrument: (distances, share of the gradient)}), for row 0 of `ids`.

    The profiles over distance are means over the probes in bins that double, each divided by its width: the share of
    the gradient per token at that distance.
    """
    positions = probes(ids.shape[1], count)
    profiles = {}
    for probe in positions.tolist():
        for name, profile in gradient_profiles(model, ids, probe, draws, seed).items():
            profiles.setdefault(name, []).append(profile)
        progress()
    found = []
    for name, by_probe in profiles.items():
        rows = [statistics(profile) for profile in by_probe]
        for metric in rows[0]:
            values = torch.tensor([[row[metric] for row in rows]])
            exact = metric not in (*THRESHOLDED, "mass_50", "mass_90")  # those jump by whole tokens
            found.append(series(name, metric, values, positions, exact=exact))
    return found, {name: over_distance(by_probe) for name, by_probe in profiles.items()}


def over_distance(profiles):
    """(distances, shares): the mean share of the gradient per token in the bins [0, 1), [1, 2), [2, 4), [4, 8), …"""
    longest = max(len(profile) for profile in profiles)
    edges = [0, *(1 << n for n in range(longest.bit_length() + 1))]
    distances, shares = [], []
    for low, high in itertools.pairwise(edges):
        inside = [
            (profile.flip(0)[low:high].sum() / profile.sum() / (min(high, len(profile)) - low))
            for profile in profiles
            if len(profile) > low and profile.sum() > 0
        ]
        if inside:
            distances.append(low)
            shares.append(float(torch.stack(inside).mean()))
    return distances, shares


def asymmetric(model, ids, spans, max_logit):
    """The paper's own pair of instruments as Series `asymmetric (paper)`: count, share and their variation.

    Args:
        spans: function (operands) -> (nheads, seqlen) attention spans above SPAN_THRESHOLD, for a model with
            attention; a model without one is measured by its gradient.
        max_logit: the Series `count` and `share` of the instrument `max logit`.
    """
    found = []

    def visit(mixing):
        if mixing.operator == "causal_attention":
            found.append(spans(mixing.operands)[0].double().cpu())

    with torch.no_grad(), observing(model, mixing=visit):
        model.base_model(ids, use_cache=False)
    if found:
        span = torch.cat(found)  # (layers * nheads, seqlen)
        share = span / torch.arange(1, span.shape[-1] + 1)
        measured = {"count": (span, None), "share": (share, None)}
    else:
        measured = {s.metric: (s.values, s.positions) for s in max_logit}
    name = "asymmetric (paper)"
    made = [series(name, metric, *pair, exact=False) for metric, pair in measured.items()]
    values, positions = measured["count"]
    return [*made, series(name, "cov", values, positions, summary="cov", exact=False)]
