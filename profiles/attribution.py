"""From ranges, API calls and device work to a tree of ranges that says where the time went.

Device work belongs to the innermost range in which its API call was made, on the thread that made it, however late it
ran. A thread that works for another (autograd's in a backward) has no cell of its own: its calls and ranges belong to
what is open at that time on the one thread of the process that has one.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from profiles.events import Profile, ProfileError, level, number_of
from profiles.nesting import covered, innermost, nest, spans

MISSING, OUTSIDE, NOT_IN_CELL = -1, -2, -3  # why an event has no range


@dataclass
class Attribution:
    """The ranges of a profile added up by path, before any division by repetitions.

    Attributes:
        paths: one row a path, depth-first: `parent` (row, -1 for a root), `root` (row), `name`, `level`, `count`,
            `launches`, and in ns `host`, `host_self`, `inclusive`, `innermost`, `busy`, `span` and `waits` (host time
            in calls that wait for the device).
        work: one row for each kernel and range: `path` (row of `paths`), `kind`, `name`, `count`, `ns`.
        notes: what was not attributed, how much, and why.
        processes: how many processes have ranges.
    """

    paths: pd.DataFrame
    work: pd.DataFrame
    notes: list
    processes: int


def attribute(profile: Profile):
    """The Attribution of a profile.

    Raises:
        ProfileError: there are no ranges.
    """
    ranges = profile.ranges.reset_index(drop=True)
    if not len(ranges):
        raise ProfileError("there are no ranges")
    stacked = ranges[ranges.stacked].reset_index(drop=True)
    free = ranges[~ranges.stacked].reset_index(drop=True)
    nested = nest(stacked.start, stacked.end, stacked.thread)
    hosts = _hosts(stacked)
    parent, notes = _adopt(stacked, nested, hosts)
    if nested.crossing:
        notes.append(
            f"{number_of(nested.crossing, 'range')} cut across another one, and count under what holds both ends"
        )

    place = lambda events: _place(events, nested, hosts)
    calls, work = profile.calls, profile.work
    call_node, by_time = place(calls)
    work_node, work_by_time = _of_calls(work, calls, call_node, by_time)
    op_node, _ = place(profile.ops)

    free_node = innermost(nested, free.start, free.end, free.thread)
    kept = free_node >= 0
    if not kept.all():
        notes.append(
            f"{number_of(int((~kept).sum()), 'start/end range')} lie in no range of the thread that began them: "
            + _some_names(free.name[~kept])
        )
    nodes = pd.concat([stacked, free[kept]], ignore_index=True)
    nodes["level"] = np.where(nodes.stacked, nodes.name.map(level), "other")
    parent = np.concatenate((parent, free_node[kept]))
    paths, path, depth = _paths(nodes, parent)
    path_of = lambda node: np.where(node >= 0, path[np.maximum(node, 0)], -1)

    work_node = np.where((work_node >= 0) & (path_of(work_node) < 0), NOT_IN_CELL, work_node)
    op_node = np.where((op_node >= 0) & (path_of(op_node) < 0), NOT_IN_CELL, op_node)
    notes += _unattributed(work_node, work_by_time, op_node)
    if (path < 0).any():
        names = nodes.name[(path < 0) & (nodes.level != "round")]
        if len(names):
            notes.append(
                f"{number_of(len(names), 'range')} outside of a cell (warm-up): {_some_names(names)}"
            )

    sums = _Sums(paths, path, parent, depth, nodes)
    sums.host()
    sums.waits(calls, call_node)
    sums.device(work, work_node)
    rows = [_rows(work, work_node, path, (work.end - work.start).to_numpy())]
    rows.append(
        _rows(profile.ops.assign(kind="cpu_op"), op_node, path, op_self(stacked, profile.ops))
    )
    rows = pd.concat(rows).groupby(["path", "kind", "name"], sort=False, as_index=False).sum()
    return Attribution(paths, rows, notes, nodes.process.nunique())


def _hosts(ranges):
    """{process: the one thread that has cells}, or has ranges where nothing has cells; without those with several."""
    cells = ranges[ranges.name.map(level) == "cell"]
    threads = (cells if len(cells) else ranges).groupby("process").thread.unique()
    return {process: found[0] for process, found in threads.items() if len(found) == 1}


def _host_of(events, hosts):
    """(n,) the thread of the process that has cells where an event is on another one; -1 otherwise."""
    codes, processes = pd.factorize(events.process)
    # not Series.map: a missing one would make floats of numbers that need all their bits
    host = np.array([hosts.get(process, -1) for process in processes], dtype=np.int64)[codes]
    return np.where(host == events.thread, -1, host)


def _adopt(ranges, nested, hosts):
    """Parents of ranges, those of helping threads included, and the notes on these."""
    parent = nested.parent.copy()
    orphans = np.flatnonzero((parent < 0) & (_host_of(ranges, hosts) >= 0))
    some = ranges.iloc[orphans]
    parent[orphans] = innermost(nested, some.start, some.end, _host_of(some, hosts))
    placed = int((parent[orphans] >= 0).sum())
    note = f"{number_of(placed, 'range')} of threads without a cell, placed by time"
    return parent, [note] if placed else []


def _place(events, nested, hosts):
    """The range of each event, OUTSIDE if none, and which were placed by time on another thread."""
    node = innermost(nested, events.start, events.end, events.thread)
    elsewhere = innermost(nested, events.start, events.end, _host_of(events, hosts))
    by_time = (node < 0) & (elsewhere >= 0)
    node = np.where(by_time, elsewhere, node)
    return np.where(node < 0, OUTSIDE, node), by_time


def _of_calls(work, calls, call_node, by_time):
    """The range of each piece of device work by its API call, and which were placed by time."""
    calls = calls.assign(node=call_node, by_time=by_time).sort_values("start", kind="stable")
    calls = calls.drop_duplicates(["process", "correlation"])
    keys = ["process", "correlation"]
    found = work[keys].merge(calls[[*keys, "node", "by_time"]], on=keys, how="left")
    known = found.node.notna().to_numpy()
    node = np.where(known, found.node.fillna(MISSING), MISSING).astype(np.int64)
    return node, known & (found.by_time.eq(True)).to_numpy()


def _unattributed(work_node, by_time, op_node):
    launch = lambda chosen: number_of(int(chosen.sum()), "launch")
    kept = work_node >= 0
    why = {
        "of threads without ranges, placed by time": by_time & kept,
        "without an API call in the file, not attributed": work_node == MISSING,
        "made outside of any range, not attributed": work_node == OUTSIDE,
        "made in ranges outside of a cell, left out": work_node == NOT_IN_CELL,
    }
    notes = [f"{launch(chosen)} {reason}" for reason, chosen in why.items() if chosen.any()]
    if lost := int((op_node < 0).sum()):
        notes.append(f"{number_of(lost, 'operator')} of torch outside of a cell, left out")
    return notes


def _some_names(names):
    counts = names.value_counts(sort=True)
    more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
    return ", ".join(counts.index[:3]) + more


def _paths(nodes, parent):
    """Paths, the path of each node (-1 above and outside of cells), and the depth of each node.

    A path begins at its cell, or at the outermost range where nothing has cells.
    """
    names, levels, start = (nodes[name].to_numpy() for name in ("name", "level", "start"))
    depth = np.zeros(len(names), dtype=np.int64)
    path = np.full(len(names), -1)
    any_cell = (levels == "cell").any()
    ids, rows = {}, []
    order = np.argsort(parent, kind="stable")
    children = np.searchsorted(parent[order], np.arange(-1, len(names) + 1))
    at, deep = order[: children[1]], 0
    while len(at):
        depth[at] = deep
        for node in at[np.argsort(start[at], kind="stable")].tolist():
            above = path[parent[node]] if parent[node] >= 0 and levels[node] != "cell" else -1
            if above < 0 and any_cell and levels[node] != "cell":
                continue
            key = (int(above), names[node])
            if key not in ids:
                ids[key] = len(rows)
                rows.append((above, names[node], levels[node], start[node]))
            path[node] = ids[key]
        below = [order[children[i + 1] : children[i + 2]] for i in at.tolist()]
        at, deep = np.concatenate(below) if below else at[:0], deep + 1
    paths = pd.DataFrame(rows, columns=["parent", "name", "level", "first"])
    return *_depth_first(paths, path), depth


def _depth_first(paths, path):
    """The same paths with children after their parent by first appearance, numbered anew."""
    order = []
    below = {
        above: list(found.index)
        for above, found in paths.sort_values("first").groupby("parent", sort=False)
    }
    stack = below.get(-1, [])[::-1]
    while stack:
        order.append(stack.pop())
        stack += below.get(order[-1], [])[::-1]
    new = np.full(len(paths) + 1, -1)  # the last stays -1: what has no path
    new[order] = np.arange(len(order))
    paths = paths.iloc[order].reset_index(drop=True)
    paths["parent"] = new[paths.parent]
    roots = np.arange(len(paths))
    for i, above in enumerate(paths.parent.tolist()):
        roots[i] = roots[above] if above >= 0 else i
    paths["root"] = roots
    return paths.drop(columns="first"), new[path]


class _Sums:
    """Fills the columns of `paths` from nodes (instances of ranges); a parent's include its children's."""

    def __init__(self, paths, path, parent, depth, nodes):
        self.paths, self.path, self.parent, self.depth, self.nodes = (
            paths,
            path,
            parent,
            depth,
            nodes,
        )
        self.inside = path >= 0

    def _by_path(self, values):
        return np.bincount(self.path[self.inside], values[self.inside], len(self.paths))

    def host(self):
        start, end = self.nodes.start.to_numpy(), self.nodes.end.to_numpy()
        stacked = self.nodes.stacked.to_numpy()
        child = (self.parent >= 0) & stacked
        held = covered(start[child], end[child], self.parent[child], len(start))
        # a start/end range may lie across others: what it covers stays with the stack
        own = np.where(stacked, end - start - held, 0.0)
        self.paths["count"] = self._by_path(np.ones(len(start))).astype(int)
        self.paths["host"] = self._by_path((end - start).astype(float))
        self.paths["host_self"] = self._by_path(own)

    def waits(self, calls, node):
        chosen = calls.waits.to_numpy() & (node >= 0)
        time = (calls.end - calls.start).to_numpy()[chosen]
        self.paths["waits"] = self._up(np.bincount(node[chosen], time, len(self.nodes)))

    def device(self, work, node):
        """Launches, sums and unions of intervals; the unions are of each instance of a range, then added up."""
        chosen = node >= 0
        owner = node[chosen]
        start, end = work.start.to_numpy()[chosen], work.end.to_numpy()[chosen]
        n = len(self.nodes)
        own = np.bincount(owner, end - start, n)
        self.paths["innermost"] = self._by_path(own)
        self.paths["inclusive"] = self._up(own)
        self.paths["launches"] = self._up(np.bincount(owner, minlength=n)).astype(int)
        busy, span = np.zeros(n), np.zeros(n)
        for deep in range(self.depth.max(), -1, -1):
            at = (owner >= 0) & (self.depth[owner] == deep)
            busy += covered(start[at], end[at], owner[at], n)
            span += spans(start[at], end[at], owner[at], n)
            owner[at] = self.parent[owner[at]]
        self.paths["busy"], self.paths["span"] = self._by_path(busy), self._by_path(span)

    def _up(self, values):
        """Sums by path of a value of each node, with those of all nodes below it."""
        sums = self._by_path(values)
        for i in range(len(sums) - 1, -1, -1):  # children come after their parents
            above = self.paths.parent.iat[i]
            if above >= 0:
                sums[above] += sums[i]
        return sums


def op_self(ranges, ops):
    """(n,) ns of each operator that are in no operator or range inside it."""
    both = pd.concat([ranges[["start", "end", "thread"]], ops[["start", "end", "thread"]]])
    start, end = both.start.to_numpy(), both.end.to_numpy()
    parent = nest(start, end, both.thread).parent
    child = parent >= 0
    held = covered(start[child], end[child], parent[child], len(start))
    return (end - start - held)[len(ranges) :]


def _rows(events, node, path, ns):
    """One row for each event that has a path: `path`, `kind`, `name`, `count`, `ns`."""
    chosen = node >= 0
    found = events.loc[chosen, ["kind", "name"]]
    return found.assign(path=path[node[chosen]], count=1, ns=ns[chosen])[
        ["path", "kind", "name", "count", "ns"]
    ]
