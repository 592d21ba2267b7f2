"""No long passage twice: not within a session and not in two sessions of one seed.

Every run of WINDOW tokens that ends in somebody's words is new. Only the line break and the name of the next
speaker, at most LABEL tokens that nobody can choose, may prolong a run that was said before: so what two places
share is shorter than LONGEST tokens.
"""

import numpy as np

WINDOW, LABEL = 32, 7  # tokens; 32 are about two sentences, and longer than any single template
LONGEST = WINDOW + LABEL


class Novelty:
    """The runs that were said so far, as 64-bit polynomial hashes of their token ids.

    A collision can only refuse a turn that was new, about once in 10^7 sessions.
    """

    def __init__(self):
        self._seen = set()
        self._tail = []
        self._weights = np.array(
            [pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(WINDOW)], dtype=np.uint64
        )

    def begin(self):
        """A new session: its text does not continue the one before."""
        self._tail = []

    def _hashes(self, ids):
        if len(ids) < WINDOW:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(
            np.array(ids, dtype=np.uint64) + np.uint64(1), WINDOW
        )
        return (windows * self._weights).sum(axis=1, dtype=np.uint64).tolist()

    def accepts(self, label: list[int], words: list[int]) -> bool:
        """Whether a turn, after the turns before it, completes no run that was said already."""
        tail = (self._tail + label)[-(WINDOW - 1) :]
        hashes = self._hashes(tail + words)
        return self._seen.isdisjoint(hashes) and len(set(hashes)) == len(hashes)

    def add(self, label: list[int], words: list[int]):
        """Remember a turn that is said."""
        ids = self._tail + label + words
        self._seen.update(self._hashes(ids))
        self._tail = ids[-(WINDOW - 1) :]
