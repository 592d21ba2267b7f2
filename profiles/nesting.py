"""Intervals of time: which holds which, which one is innermost at a moment, and how much time several cover."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Nest:
    """Intervals of several threads and how they hold one another.

    Attributes:
        start, end: (n,) int64, as given.
        parent: (n,) index of the innermost interval of the same thread that holds both ends; -1 for none.
        crossing: how many begin inside another interval and end after it.
        moments: {thread: (times, innermost)}, where from each time on `innermost` is the innermost one that is open.
    """

    start: np.ndarray
    end: np.ndarray
    parent: np.ndarray
    crossing: int
    moments: dict


def nest(start, end, thread):
    """The Nest of (n,) intervals; of equal ones the first given is the outer one."""
    start, end, thread = (np.asarray(values, dtype=np.int64) for values in (start, end, thread))
    parent = np.full(len(start), -1)
    crossing, moments = 0, {}
    for one, members in by_group(thread, np.lexsort((-end, start))):
        parents, crossed, times, innermost = _sweep(start[members], end[members])
        parent[members] = np.where(parents >= 0, members[parents], -1)
        moments[one] = times, np.where(innermost >= 0, members[innermost], -1)
        crossing += crossed
    return Nest(start, end, parent, crossing, moments)


def by_group(group, order=None):
    """(value, indices) of every group of an (n,) array, the indices in the given order."""
    order = np.arange(len(group)) if order is None else order
    order = order[np.argsort(group[order], kind="stable")]
    values, firsts = np.unique(group[order], return_index=True)
    return zip(values.tolist(), np.split(order, firsts[1:]), strict=True) if len(group) else ()


def _sweep(start, end):
    """One thread, sorted by start and then longest first: parents, crossings, moments."""
    n = len(start)
    rank = np.arange(n)
    times = np.concatenate((start, end))
    # at one moment: ends (the innermost first), then starts (the outermost first), then ends of what had no length
    kind = np.concatenate((np.ones(n), np.where(start == end, 2, 0)))
    order = np.lexsort((np.concatenate((rank, -rank)), kind, times))
    ends, parents, innermost, stack, crossing = end.tolist(), [-1] * n, [], [], 0
    for event in order.tolist():
        if event < n:
            holder = next((i for i in reversed(stack) if ends[i] >= ends[event]), -1)
            crossing += bool(stack) and holder != stack[-1]
            parents[event] = holder
            stack.append(event)
        elif stack[-1] == event - n:
            stack.pop()
        else:
            stack.remove(event - n)
        innermost.append(stack[-1] if stack else -1)
    return np.array(parents), crossing, times[order], np.array(innermost)


def innermost(nested, start, end, thread):
    """Index of the innermost interval of a thread that holds all of each (m,) given interval; -1 for none."""
    start, end, thread = (np.asarray(values, dtype=np.int64) for values in (start, end, thread))
    found = np.full(len(start), -1)
    for one, members in by_group(thread):
        if one in nested.moments:
            times, holder = nested.moments[one]
            # before the first moment nothing is open, as after the last: index -1 is right
            found[members] = holder[np.searchsorted(times, start[members], side="right") - 1]
    while (out := (found >= 0) & (nested.end[found] < end)).any() if len(nested.end) else False:
        found[out] = nested.parent[found[out]]
    return found


def covered(start, end, group, n):
    """(n,) length of the union of the (m,) intervals of each group 0..n-1."""
    order = np.lexsort((start, group))
    start, end, group = start[order], end[order], group[order]
    latest = pd.Series(end).groupby(group).cummax().to_numpy()
    first = np.append(True, group[1:] != group[:-1])[: len(group)]
    before = np.where(first, start, np.append(start[:1], latest[:-1]))
    gained = np.maximum(end - np.maximum(start, before), 0)
    return np.bincount(group, gained, n)


def spans(start, end, group, n):
    """(n,) time from the first start to the last end of each group 0..n-1; 0 for an empty one."""
    first, last = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
    np.minimum.at(first, group, start)
    np.maximum.at(last, group, end)
    return np.where(first <= last, last - first, 0).astype(float)
