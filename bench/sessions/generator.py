"""Synthetic therapy sessions, the same for a seed on every machine and Python version."""

import functools
import importlib.resources
import itertools
import json
from collections.abc import Iterator

from bench.sessions import facts, phases
from bench.sessions.client import Client
from bench.sessions.couple import CoupleCourse
from bench.sessions.course import Course
from bench.sessions.dialogue import NothingNew
from bench.sessions.grammar import Draw, Stock
from bench.sessions.novelty import Novelty
from bench.sessions.session import KINDS, Session, SessionError, phase_changes
from models import tokenizer

# topics that weigh on one of two clients
OF_ONE = ("sleep", "work", "grief", "pain", "alcohol", "moving", "caring")
TOKENS = (6_300, 9_700)  # the aim; turns are not cut, so sessions end up within 6,000 to 10,000


def generate(count: int, seed: int = 0, kind: str = "dyadic") -> list[Session]:
    """The first `count` sessions of a seed; session i is the same for every count.

    Each has 6,000 to 10,000 tokens of gpt2-32k. No two sessions of a seed and kind, and no two places of one,
    share a run of `novelty.LONGEST` tokens. SessionError for a bad count, seed or kind, and where the grammar has
    nothing new to say any more (after about 300 sessions).
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SessionError(f"count must be a whole number of at least 1, got {count!r}")
    return list(itertools.islice(stream(seed, kind), count))


def stream(seed: int = 0, kind: str = "dyadic") -> Iterator[Session]:
    """The sessions of a seed one after the other, for as long as the grammar finds something new to say."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SessionError(f"seed must be a whole number, got {seed!r}")
    if kind not in KINDS:
        raise SessionError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    encode = tokenizer.load("gpt2-32k").encode
    novelty = Novelty()
    return (_session(index, seed, kind, novelty, encode) for index in itertools.count())


def _session(index, seed, kind, novelty, encode):
    name = f"{kind}-{seed}-{index:04d}"
    draw = Draw(f"crossover session {name}")
    language = load_language()
    tokens = round(draw.uniform(*TOKENS))
    stock = Stock(draw, language["words"])
    make = _couple if kind == "couple" else _one
    clients, topics = make(draw, stock, language, 3 + (tokens > 7_400))
    course = CoupleCourse if kind == "couple" else Course
    dialogue = course(draw, stock, language, clients, novelty, encode)
    try:
        for phase in phases.plan(draw, topics, tokens):
            dialogue.run(phase)
    except NothingNew:
        raise SessionError(
            f"seed {seed} has no more than {index} {kind} sessions without long repetitions; take another seed too"
        ) from None
    turns = tuple(dialogue.turns)
    return Session(name, kind, turns, phase_changes(turn.phase for turn in turns), "generated")


def _one(draw, stock, language, n):
    """One client, with topics that fit the life they lead."""
    single = draw.chance(0.35)
    child = draw.chance(0.5)
    has = {"partner": not single, "child": child}
    library = language["topics"]
    able = [
        name
        for name, topic in library.items()
        if all(has[need] for need in topic.get("needs", ()))
        and not any(has[x] for x in topic.get("lacks", ()))
    ]
    chosen = [able.pop(draw.index(len(able))) for _ in range(n)]
    known = facts.one_client(draw, language, partner=not single, child=child)[0]
    topics = {name: library[name] for name in chosen}
    return [Client(draw, stock, language, known, topics, "Client")], chosen


def _couple(draw, stock, language, n):
    """Two clients: what stands between them, and one thing that weighs on one of the two."""
    both = facts.two_clients(draw, language, child=draw.chance(0.7))
    shared = list(language["couples"])
    chosen = [shared.pop(draw.index(len(shared))) for _ in range(n - 1)]
    own, owner = draw.pick(OF_ONE), draw.index(2)
    views = ({}, {})
    pursuer = draw.index(2)
    for name in chosen:
        topic = language["couples"][name]
        first = pursuer if draw.chance(0.75) else 1 - pursuer
        common = {part: lines for part, lines in topic.items() if part not in ("a", "b")}
        views[first][name] = {**common, **topic["a"]}
        views[1 - first][name] = {**common, **topic["b"]}
    views[owner][own], views[1 - owner][own] = language["topics"][own], {}
    chosen.insert(1 + draw.index(len(chosen)), own)
    clients = [
        Client(draw, stock, language, known, view, known["name"])
        for known, view in zip(both, views, strict=True)
    ]
    return clients, chosen


@functools.cache
def load_language() -> dict:
    """The word lists and templates, by file."""
    folder = importlib.resources.files("bench.sessions")
    names = ("facts", "words", "topics", "couples", "client", "therapist", "skills")
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names
    }
