"""The sessions of the shift task: the user's labelled transcripts, or those that the generator makes of the run's seed.

Transcripts without labels of phases or shifts are left out: no other label stands for one.
"""

from functools import cached_property

from analysis.shift_baselines import baseline_scores
from analysis.shifts import encode, merged, session_scores
from bench.sessions import read, stream
from bench.sessions.session import is_labelled
from models.checkpoint_tokenizer import tokenizer_of


class ShiftSessions:
    """Sessions by their index, made when they are first asked for, and their scores.

    Args:
        options: of the run's plan.
    """

    def __init__(self, options):
        self.options = options
        self._made = []

    @cached_property
    def _source(self):
        path = self.options["sessions"]
        return labelled(path) if path else stream(self.options["seed"], self.options["kind"])

    @cached_property
    def _tokenizer(self):
        return tokenizer_of(self.options["tokenizer"], self.options["checkpoint"])

    def session(self, index):
        """The session at `index`; IndexError past the last one."""
        while len(self._made) <= index:
            self._made.append(next(self._source))
        return self._made[index]

    def scores(self, model, index, max_tokens):
        """Scores of a session under a bound model and by the baselines, as plain numbers and no text."""
        session = self.session(index)
        encoded = encode(session, self._tokenizer, max_tokens or None)
        # the states are formed by a scan of our own, whatever implementation the model is bound to
        impl = "triton" if next(model.parameters()).device.type == "cuda" else "cpu"
        return merged(session_scores(model, encoded, impl=impl), baseline_scores(session, encoded))


def how_many(options):
    """How many labelled sessions the user's transcripts hold; None for the generator, which goes on."""
    return sum(1 for _ in labelled(options["sessions"])) if options["sessions"] else None


def labelled(path):
    """The sessions of a file or folder that have labels of phases or shifts."""
    return filter(is_labelled, read(path))
