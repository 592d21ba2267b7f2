"""Scores of shifts that need no model: what one has to beat.

    position      closeness to a quarter, a half or three quarters of the session: with equal phases it knows everything
    tf-idf        1 - cos of the words of the window before the turn and of the window from it on, weighted by
                  sklearn's inverse document frequency
    texttiling    how deep the same similarity, of plain counts, falls between its peaks on both sides (Hearst 1997)

Windows are those of `analysis.shifts`, in tokens: a turn that lies in one partly counts partly. Words are lower case,
without English stop words and speakers. Document frequencies are those of the session's own turns: no label is seen,
and one transcript is enough. The mean of input embeddings is the window cosine of the layer `embedding`, so
`analysis.shifts.session_scores` gives it as `input embeddings`. What chance gives stands in the extra of
`analysis.shift_evaluation.evaluate`.
"""

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from analysis.shifts import described

POSITION, TF_IDF, TEXTTILING = "position/", "tf-idf/", "texttiling/"
SMOOTHING = 1  # neighbours on each side, as Hearst's default


def baseline_scores(session, encoded, window=None):
    """The dict of a session (`analysis.shifts`) with the scores of the three baselines.

    Args:
        session: the bench.sessions.Session that `encoded` was made of.
    """
    found = described(encoded, window)
    if found["candidates"]:
        words = counts([turn.text for turn in session.turns[: found["turns"]]])
        at = np.asarray(encoded.starts)[found["candidates"]]
        weighted = TfidfTransformer(norm=None).fit_transform(words)
        found["scores"] = {
            POSITION: position(at, found["tokens"]).tolist(),
            TF_IDF: lexical_change(weighted, encoded, found).tolist(),
            TEXTTILING: depths(smoothed(1 - lexical_change(words, encoded, found))).tolist(),
        }
    return found


def position(at, tokens):
    """Minus the distance from tokens `at` (n,) to the nearest quarter of a session of `tokens`, in sessions: (n,)."""
    return -np.abs(at[:, None] / tokens - np.array([0.25, 0.5, 0.75])).min(1)


def counts(texts):
    """(turns, words) how often each word stands in each turn; one column of zeros if there is no word at all."""
    try:
        return csr_array(CountVectorizer(stop_words="english").fit_transform(texts), dtype=float)
    except ValueError:  # nothing but stop words
        return csr_array((len(texts), 1), dtype=float)


def lexical_change(words, encoded, found):
    """(candidates,) 1 - cos of the words in both windows, 1 where one has none; `words` is (turns, words)."""
    starts = np.asarray(encoded.starts)
    ends = np.append(starts[1:], len(encoded.ids))
    at, window = starts[found["candidates"]][:, None], found["window"]

    def within(low, high):
        inside = np.minimum(ends, high) - np.maximum(starts, low)
        return csr_array(np.maximum(inside, 0) / (ends - starts)) @ words

    left, right = within(at - window, at), within(at, at + window)
    both, size = (left * right).sum(1), np.sqrt((left * left).sum(1) * (right * right).sum(1))
    return 1 - np.divide(both, size, out=np.zeros(len(at)), where=size > 0)


def smoothed(values):
    """Each value and its neighbours, averaged; fewer of them at the ends."""
    near = np.ones(2 * SMOOTHING + 1)
    total, number = (np.convolve(v, near) for v in (values, np.ones(len(values))))
    return (total / number)[SMOOTHING:-SMOOTHING]


def depths(similarity):
    """How far the similarity rises to the nearest peak on the left plus to the one on the right, for each gap."""
    similarity = np.asarray(similarity)

    def rises(values):
        peaks = np.empty(len(values))
        for i, value in enumerate(values):
            peaks[i] = peaks[i - 1] if i and values[i - 1] >= value else value
        return peaks - values

    return rises(similarity) + rises(similarity[::-1])[::-1]
