"""Which phases a session goes through, in which order, about what, and how long each is.

The order is a walk, so that phases come back and no two sessions have the same outline; lengths are shares of the
session's tokens and unequal, so that the position of a shift says little about it.
"""

from dataclasses import dataclass

from bench.sessions.grammar import Draw

# where a session may go from a phase, and how likely
NEXT = {
    "concern": {"exploration": 0.68, "history": 0.13, "skill": 0.11, "insight": 0.08},
    "exploration": {"history": 0.25, "insight": 0.3, "skill": 0.25, "concern": 0.2},
    "history": {"insight": 0.45, "exploration": 0.4, "concern": 0.15},
    "insight": {"skill": 0.35, "exploration": 0.35, "concern": 0.2, "history": 0.1},
    "skill": {"exploration": 0.4, "insight": 0.25, "concern": 0.35},
}
AT_MOST = {"exploration": 4, "history": 2, "insight": 2, "skill": 2}
SHARE = {
    "check_in": 0.55, "review": 0.5, "concern": 1.0, "exploration": 1.45, "history": 0.9,
    "insight": 0.8, "skill": 0.85, "planning": 0.75, "closing": 0.4,
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A stretch of a session; `end` is the token count of the session at which it should be over."""

    name: str
    topic: str
    again: bool  # the session has been there before
    end: int


def plan(draw: Draw, topics: list[str], tokens: int) -> list[Phase]:
    """At least six phases (five shifts) that bring up every topic and end at `tokens`."""
    order = _order(draw, topics)
    shares = [SHARE[name] * draw.uniform(0.55, 1.45) for name, _ in order]
    phases, done, seen = [], 0.0, set()
    for (name, topic), share in zip(order, shares, strict=True):
        done += share
        key = (name, topic) if name == "exploration" else name
        phases.append(Phase(name, topic, key in seen, round(tokens * done / sum(shares))))
        seen.add(key)
    return phases


def _order(draw, topics):
    waiting = list(topics)
    topic = waiting.pop(0)
    order = [("check_in", topic)]
    if draw.chance(0.6):
        order.append(("review", topic))
    order.append(("concern", topic))
    middle = 6 + draw.index(4)
    while middle > 0 or waiting:
        here = order[-1][0]
        count = [name for name, _ in order].count
        weights = {
            name: weight
            for name, weight in NEXT[here].items()
            if (waiting if name == "concern" else count(name) < AT_MOST[name])
        }
        if not weights:
            break
        late = "concern" in weights and middle < 2 * len(waiting) - 1  # a topic takes two phases
        name = "concern" if late else draw.weighted(weights)
        if name == "concern":
            topic = waiting.pop(0)
        elif name == "exploration":
            raised = topics[: len(topics) - len(waiting)]
            if order.count((name, topic)) > 1 or draw.chance(0.35):
                topic = min(raised, key=lambda t: (order.count((name, t)), draw.uniform()))
        order.append((name, topic))
        middle -= 1
    order.append(("planning", topics[0] if draw.chance(0.6) else topic))
    if draw.chance(0.15):
        order.append(("exploration", topic))
    order.append(("closing", topics[0]))
    return order
