"""The floor time of a pass of a model, as the sum of what its operators and projections need at least."""

from kernels.roofline import MODES, Floor, LinearProblem, floor
from models.architectures import REGISTRY


def model_floor(config, arch, batch, seqlen, dtype, peaks, logits="last", mode="prefill"):
    """The floor of one pass of a model: the sum of the floors of its operators and projections.

    Projections with a common input (q, k and v; gate and up) count as one that reads it once. Embedding, norms,
    residuals, rotary embedding, the gate of the MLP, the loss and what an optimizer does are taken as fused into
    their neighbours, at no cost.

    Args:
        config: the sizes by the names of its transformers configuration, in a dict: `settings` of the architecture.
        arch: a name of `models.architectures.REGISTRY`.
        batch, seqlen: tokens of the prompt; in decoding, the length of the context with the new token.
        dtype, peaks: as in `floor`.
        logits: positions that go through the head: "last" or "all"; training takes all.
        mode: "prefill" (a forward over the prompt), "decode" (one token) or "train" (forward and backward).

    Returns:
        Floor: `seconds` is the sum of the parts' floors, `terms` are sums over the parts as well, and `bound` is the
        largest of them; so `seconds` is more than the largest term where the parts have different bounds.
    """
    steps = model_problems(config, arch, batch, seqlen, logits, mode)
    floors = [
        (count, floor(problem, dtype, peaks, direction))
        for count, problem in steps
        for direction in MODES[mode]
    ]
    terms, missing = {}, {}
    for count, part in floors:
        missing |= dict.fromkeys(part.missing)
        for term, seconds in part.terms.items():
            terms[term] = terms.get(term, 0.0) + count * seconds
    seconds = sum(count * part.seconds for count, part in floors)
    return Floor(seconds, max(terms, key=terms.get), terms, tuple(missing))


def model_problems(config, arch, batch, seqlen, logits="last", mode="prefill"):
    """[(how often, problem)] of one pass; arguments as in `model_floor`."""
    if arch not in REGISTRY:
        raise ValueError(f"arch must be one of {', '.join(REGISTRY)}, got {arch!r}")
    if logits not in ("last", "all"):
        raise ValueError(f"logits must be last or all, got {logits!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    everywhere = mode == "train" or (mode == "prefill" and logits == "all")
    positions = batch * (seqlen if everywhere else 1)
    blocks = REGISTRY[arch].problems(config, batch, seqlen, mode == "decode")
    return [*blocks, (1, LinearProblem(positions, config["hidden_size"], config["vocab_size"]))]
