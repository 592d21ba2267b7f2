"""Shift detection: do the hidden states of a model change where a new phase of a session begins?

Candidates are the turns of a session that have `window` tokens on both sides; the positives are the labelled phase
changes among them. Every score says how likely a new phase begins with the turn:

    window cosine   1 - cos of the mean hidden states of the window before the turn and of the window from it on
    ssm state       the same of Mamba's recurrent states, 1 - cos of two means over (dim, dstate)
    step size       the largest step size, a mean over channels, among the first tokens of the turn
    velocity        the mean of |h_t - h_(t-1)| over the first tokens of the turn

The window cosine of the embedding is a baseline, `input embeddings`: layers of random weights are near to bags of
words, and a model earns credit only above that (`analysis.shift_baselines` has the others).

Scores of a session are a plain dict: session, turns, tokens, window, candidates (turn indexes), labels (0 or 1 for each
candidate, or None for an unlabelled session) and scores ({"instrument/layer": [...]}), all numbers and no text.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch

from analysis.measured import check_finite
from analysis.shift_instruments import state_change, step_size, velocity, window_change
from bench.sessions import line, text
from models.observe import observing

INSTRUMENTS = ("window cosine", "ssm state", "step size", "velocity")
INPUTS = "input embeddings/"
# phases of generated sessions have about 200 to 1,500 tokens, so that a window lies within one phase mostly, and turns
# about 25, so that it holds several of either speaker
WINDOW = 128  # tokens
SHORTEST = 16  # tokens of a window; one turn is hardly shorter
FIRST = 8  # tokens of a turn: who speaks, and the first words


@dataclass(frozen=True)
class Encoded:
    """A session as tokens: `ids` (tokens,) int64, `starts` the first token of each turn, `shifts` turns or None."""

    session: str
    ids: torch.Tensor
    starts: tuple
    shifts: tuple | None


def encode(session, tokenizer, max_tokens=None):
    """The `Encoded` of a session, with the very tokens that the sweep reads (text and a line feed).

    Args:
        session: a bench.sessions.Session. Without any phase or shift it is unlabelled: `shifts` is None.
        tokenizer: with `encode(text) -> list[int]`.
        max_tokens: keep only the first turns, whole ones, with at most so many tokens together; None or 0 for all.

    Raises:
        ValueError: not even the first turn fits, or the tokens of a turn depend on the turn before it.
    """
    ids = tokenizer.encode(text(session) + "\n")
    starts = _starts([line(turn.speaker, turn.text) for turn in session.turns], ids, tokenizer)
    ends = [*starts[1:], len(ids)]
    kept = sum(end <= (max_tokens or len(ids)) for end in ends)
    if kept == 0:
        raise ValueError(
            f"session {session.id}: its first turn has {ends[0]} tokens, more than max_tokens={max_tokens}"
        )
    labelled = session.shifts or any(turn.phase is not None for turn in session.turns)
    shifts = tuple(turn for turn in session.shifts if turn < kept) if labelled else None
    return Encoded(session.id, torch.tensor(ids[: ends[kept - 1]]), tuple(starts[:kept]), shifts)


def _starts(lines, ids, tokenizer):
    """The first token of every line, checked against the tokens of the whole text.

    Some tokenizers join the line feed with what stands before it, and some never do: both are tried.
    """
    feed = tokenizer.encode("\n")
    for make in (lambda s: tokenizer.encode(s) + feed, lambda s: tokenizer.encode(s + "\n")):
        pieces = [make(s) for s in lines]
        starts = [0, *accumulate(len(piece) for piece in pieces[:-1])]
        if [i for piece in pieces[:-1] for i in piece] == ids[: starts[-1]]:
            return starts
    raise ValueError(
        "the tokens of a turn depend on the turn before it, so no turn has a first token"
    )


def described(encoded, window=None):
    """The dict of a session with no scores yet.

    Args:
        window: tokens on each side of a candidate; by default WINDOW, or a quarter of a session shorter than four of
            them. Below SHORTEST there are no candidates.
    """
    tokens = len(encoded.ids)
    if window is None:
        window = min(WINDOW, tokens // 4)
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(f"window must be a whole number of tokens, got {window!r}")
    inside = lambda start: window <= start <= tokens - window and window >= SHORTEST
    candidates = [turn for turn, start in enumerate(encoded.starts) if inside(start)]
    labels = None
    if encoded.shifts is not None:
        labels = [int(turn in encoded.shifts) for turn in candidates]
    return {
        "session": encoded.session, "turns": len(encoded.starts), "tokens": tokens, "window": window,
        "candidates": candidates, "labels": labels, "scores": {},
    }  # fmt: skip


@torch.no_grad()
def session_scores(model, encoded, window=None, instruments=INSTRUMENTS, *, impl="torch"):
    """The dict of a session with the scores of every layer, from one forward without the head.

    Args:
        model: with an implementation under it (`models.bind.use`).
        instruments: which to compute. LLaMA has no ssm state and no step size.
        impl: what computes the scan again for its states; one that returns states: torch, triton, cpu or reference.

    Raises:
        NotFinite: a hidden state or a step size holds NaN or infinity.
        ValueError: an unknown instrument, or a wrong window.
    """
    unknown = set(instruments) - set(INSTRUMENTS)
    if unknown:
        raise ValueError(f"instruments are {', '.join(INSTRUMENTS)}, got {', '.join(unknown)}")
    found = described(encoded, window)
    if not found["candidates"]:
        return found
    device = next(model.parameters()).device
    at, first = boundaries(encoded, found, device)
    scores = found["scores"]

    def on_hidden(name, hidden):
        check_finite(f"the hidden state of {name}", hidden, 1)
        if "window cosine" in instruments:
            key = INPUTS if name == "embedding" else f"window cosine/{name}"
            scores[key] = window_change(hidden[0], at, found["window"]).tolist()
        if "velocity" in instruments:
            scores[f"velocity/{name}"] = velocity(hidden[0], first).tolist()

    def on_mixing(mixing):
        if mixing.operator != "selective_scan":
            return
        operands = mixing.operands
        check_finite(f"delta of {mixing.layer}", operands["delta"], 2)
        if "step size" in instruments:
            scores[f"step size/{mixing.layer}"] = step_size(operands, first).tolist()
        if "ssm state" in instruments:
            changed = state_change(operands, at, found["window"], impl)
            scores[f"ssm state/{mixing.layer}"] = changed.tolist()

    with observing(model, on_hidden, on_mixing):
        model.base_model(encoded.ids[None].to(device), use_cache=False)
    return found


def boundaries(encoded, found, device="cpu"):
    """The first token of every candidate (n,), and its first FIRST tokens (n, FIRST), -1 past the end of the turn."""
    starts = torch.tensor([*encoded.starts, len(encoded.ids)], device=device)
    turns = torch.tensor(found["candidates"], device=device)
    at = starts[turns]
    first = at[:, None] + torch.arange(FIRST, device=device)
    return at, torch.where(first < starts[turns + 1][:, None], first, -1)


def merged(first, *others):
    """One dict of several of the same session and candidates, with the scores of all."""
    for other in others:
        if {**other, "scores": 0} != {**first, "scores": 0}:
            raise ValueError(
                f"scores of session {first['session']} cannot be put together: candidates differ"
            )
    scores = {key: s for one in (first, *others) for key, s in one["scores"].items()}
    return first | {"scores": scores}
