"""What holds for every profile, on random ones: nothing is lost, and nothing counts twice."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.attribution import attribute
from profiles.events import CALLS, RANGES, WORK, Profile
from profiles.nesting import covered, innermost, nest


@st.composite
def trees(draw, start=0, end=10_000, depth=4):
    """(name, start, end) of nested ranges."""
    found = []
    cuts = sorted(draw(st.lists(st.integers(start, end), max_size=6)))
    for low, high in zip(cuts[::2], cuts[1::2], strict=False):
        found.append((f"op/{draw(st.integers(0, 2))}", low, high))
        if depth and high - low > 2:
            found += draw(trees(low, high, depth - 1))
    return found


@st.composite
def profiles(draw):
    """A cell and a repetition with ranges in it, and kernels that were launched anywhere."""
    ranges = [("cell/a", 0, 10_001), ("rep", 0, 10_000), *draw(trees())]
    ranges = [(low, high, 1, 1, name, True) for name, low, high in draw(st.permutations(ranges))]
    calls, work = [], []
    for i in range(draw(st.integers(0, 12))):
        at = draw(st.integers(0, 12_000))
        calls.append((at, at + draw(st.integers(0, 30)), 1, 1, i, False))
        for _ in range(draw(st.integers(1, 3))):  # a graph has several
            begin = at + draw(st.integers(0, 20_000))
            kind = draw(st.sampled_from(("kernel", "memcpy")))
            work.append((begin, begin + draw(st.integers(0, 500)), 1, i, kind, f"k{i % 3}"))
    table = lambda rows, columns: pd.DataFrame(rows, columns=list(columns)).astype(columns)
    return Profile("by hand", table(ranges, RANGES), table(calls, CALLS), table(work, WORK))


def holder(ranges, call):
    """The shortest range that holds a call, by looking at all of them; the end of a range is not in it."""
    held = ranges[
        (ranges.start <= call.start) & (ranges.end >= call.end) & (ranges.end > call.start)
    ]
    return (held.end - held.start).min() if len(held) else None


@settings(max_examples=60, deadline=None)
@given(profiles())
def test_sums_of_any_profile(profile):
    found = attribute(profile)
    paths = found.paths
    lengths = (profile.work.end - profile.work.start).to_numpy()
    calls = profile.calls.set_index("correlation")
    held = [holder(profile.ranges, calls.loc[i]) is not None for i in profile.work.correlation]
    attributed = lengths[held].sum()
    assert paths.innermost.sum() == attributed == paths.inclusive[0] == found.work.ns.sum()
    assert paths.launches[0] == sum(held) == found.work["count"].sum()
    assert (paths.busy <= paths.inclusive).all()
    assert (paths.busy <= paths.span).all()
    assert (paths.innermost <= paths.inclusive).all()
    assert paths.host_self.sum() == paths.host[0] == 10_001
    assert (paths.host_self >= 0).all()
    assert (paths.parent < np.arange(len(paths))).all()
    below = paths.groupby("parent").inclusive.sum().drop(-1)
    assert (below + paths.innermost[below.index] == paths.inclusive[below.index]).all()


@settings(max_examples=60, deadline=None)
@given(trees(), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 50)), max_size=20))
def test_innermost_is_the_shortest_that_holds_all(tree, moments):
    ranges = pd.DataFrame(tree, columns=["name", "start", "end"])
    calls = pd.DataFrame([(at, at + length) for at, length in moments], columns=["start", "end"])
    nested = nest(ranges.start, ranges.end, np.zeros(len(ranges)))
    found = innermost(nested, calls.start, calls.end, np.zeros(len(calls)))
    for call, index in zip(calls.itertuples(), found, strict=True):
        shortest = holder(ranges, call)
        if shortest is None:
            assert index == -1
        else:
            assert ranges.end[index] - ranges.start[index] == shortest
    assert nested.crossing == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 20)), max_size=30))
def test_covered_counts_every_moment_once(rows):
    group, start, length = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)) if rows else (
        np.zeros(0, dtype=np.int64),) * 3  # fmt: skip
    moments = [{t for g, s, n in rows if g == one for t in range(s, s + n)} for one in range(4)]
    assert covered(start, start + length, group, 4).tolist() == [len(found) for found in moments]


@pytest.mark.parametrize("n", [100_000])
def test_many_ranges_and_kernels(n):
    """Slow code would take minutes here."""
    layers = np.arange(n)
    start = 10 * layers
    ranges = pd.DataFrame(
        {"start": start, "end": start + 9, "name": [f"layer/{i % 24}" for i in layers]}
    )
    outer = pd.DataFrame({"start": [0, 0], "end": [10 * n, 10 * n], "name": ["cell/a", "rep"]})
    ranges = (
        pd.concat([outer, ranges])
        .assign(thread=1, process=1, stacked=True)[list(RANGES)]
        .astype(RANGES)
    )
    calls = pd.DataFrame({"start": start + 1, "end": start + 2, "thread": 1, "process": 1, "correlation": layers,
                          "waits": False})  # fmt: skip
    work = pd.DataFrame({"start": start + 50, "end": start + 58, "process": 1, "correlation": layers, "kind": "kernel",
                         "name": "k"})  # fmt: skip
    found = attribute(Profile("by hand", ranges, calls.astype(CALLS), work.astype(WORK)))
    assert found.paths.innermost.sum() == 8 * n
    assert found.paths.busy[0] == 8 * n
    assert len(found.paths) == 26
    assert not found.notes
