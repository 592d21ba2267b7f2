"""What an architecture is to the lab."""

from collections.abc import Callable
from dataclasses import dataclass, field

# No special tokens: the 32,000 ids are plain text, and generation must not stop at one of them.
PLAIN_TEXT = {
    "vocab_size": 32_000,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        name: in cells, command lines and tables.
        title: in sentences.
        model_types: transformers' types (`config.model_type`) that are built like it, its own first; `models.bind.use`
            takes them all.
        operators: of `kernels`, that mix its tokens; an implementation needs them all.
        decode_operators: those that one decoded token needs besides.
        settings: names in its transformers configuration that `problems` reads; plan.json keeps them.
        problems: of (settings as a dict, batch, seqlen, decode): [(how often, problem)] of all its blocks, without the
            head; `seqlen` is the context with the new token where `decode` is set.
        initial: of (name, shape, config, generator): the value of a parameter, float64; the source is named beside it.
        classes: {model type: what its classes' names begin with in transformers}; a type without an entry is looked up
            through transformers' auto classes, whose import takes seconds.
        presets: {name of a preset: keyword arguments of its configuration}, where it joins the pairs of
            `models.presets`; a `model_type` among them is one of `model_types`.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    operators: tuple[str, ...]
    settings: tuple[str, ...]
    problems: Callable
    initial: Callable
    classes: dict = field(default_factory=dict)
    decode_operators: tuple[str, ...] = ()
    presets: dict = field(default_factory=dict)
