import re

import pytest

from bench.sessions.client import DARK, FOLLOW
from bench.sessions.course import FIRST, KINDS, NEAR, UNLIMITED
from bench.sessions.generator import load_language
from bench.sessions.grammar import Draw, Stock, sentence, slots, to_second_person

# the grammar


@pytest.mark.parametrize(
    ("clause", "said_back"),
    [
        ("I lie in my bed", "you lie in your bed"),
        ("I'm tired and I was late", "you're tired and you were late"),
        ("I wasn't there, I've said it myself", "you weren't there, you've said it yourself"),
        ("my mother and I argue", "you and your mother argue"),
        ("Tom and I talk about our child", "you and Tom talk about your child"),
        (
            "there's a knot in my chest and I can't breathe",
            "there's a knot in your chest and you can't breathe",
        ),
        ("it was my birthday", "it was your birthday"),
        ("she told me what I am to her", "she told you what you are to her"),
        ("we're late, he waits for us", "you're late, he waits for you"),
        ("Ida came in", "Ida came in"),
        ("I just was so ill in Miami", "you just were so ill in Miami"),
    ],
)
def test_person_is_switched(clause, said_back):
    assert to_second_person(clause) == said_back


@pytest.mark.parametrize(
    ("raw", "finished"),
    [
        ("i saw a owl and an dog", "I saw an owl and a dog."),
        ("a hour , an unit", "An hour, a unit."),
        ("well.  so it goes?", "Well. So it goes?"),
        ("I... i stay... quiet", "I... i stay... quiet."),
        ("", ""),
    ],
)
def test_sentence(raw, finished):
    assert sentence(raw) == finished


def test_stock_deals_content_once_and_phrases_in_rounds():
    stock = Stock(Draw("x"), {"day": ["Monday"]})
    options = ["a {day}", "b [c|c]", "d {unknown}"]
    assert {stock.pick("p", options, {}) for _ in range(2)} == set(options[:2])
    assert {stock.fresh("f", options, {}) for _ in range(2)} == set(options[:2])
    assert stock.fresh("f", options, {}) is None
    stock.give_back()
    assert stock.fresh_left("f", options, {}) == 2
    assert stock.fill("{Day}, b [c|c]", {"level": 0}) == "Monday, b c"


# the language material


def templates(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from templates(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from templates(inner, path)
    else:
        yield path, value


LANGUAGE = load_language()
TOPICS = {**LANGUAGE["topics"], **LANGUAGE["couples"]}
# parts that the therapist may say back, so they must be clauses in the first person
CLAUSES = {
    "complaint",
    "start",
    "turn",
    "end",
    "thought",
    "act",
    "cost",
    "tried",
    "better",
    "wish",
    "insight",
    "memory",
}


def known_slots():
    dyad = ["partner", "he", "him", "his", "child_age", "name", "sib_word"]
    people = ["boss", "colleague", "friend", "sib", "parent", "lost", "child"]
    people += [f"{who}_{form}" for who in people for form in ("he", "him", "his")]
    places = [
        "pet",
        "appointment",
        "appointment_time",
        "town",
        "old_town",
        "job",
        "workplace",
        "task",
        "meeting",
    ]
    own = ["hobby", "site", "drink", "debt", "duration", "homework"]
    given = [
        "c",
        "c1",
        "c2",
        "n",
        "n2",
        "np",
        "q",
        "focus",
        "feel",
        "feel2",
        "noun",
        "step",
        "skill",
    ]
    return {*dyad, *people, *places, *own, *given, *LANGUAGE["words"]}


@pytest.mark.parametrize("file", [name for name in LANGUAGE if name != "facts"])
def test_every_slot_is_known(file):
    known = known_slots()
    for path, template in templates(LANGUAGE[file]):
        for slot in slots(template):
            assert slot in known or slot.rstrip("0123456789") in known, f"{path}: {{{slot}}}"


def test_clauses_can_be_said_back():
    for path, template in templates(TOPICS):
        if path[-1] in CLAUSES:
            clause = template.split(" :: ")[0]
            assert not re.search(r"\b[Yy]ou\b|\b[Yy]our\b|yourself", clause), f"{path}: {clause}"
            assert clause[-1] not in ".?!", f"{path}: {clause}"
            assert clause[0] in "I{[" or clause[0].islower() or clause.startswith("Sunday"), (
                f"{path}: {clause}"
            )


def test_topics_have_all_parts():
    core = {"np", "raise", "start", "turn", "end", "tried", "better", "step", "teach"}
    side = {"complaint", "thought", "act", "cost", "wish", "insight"}
    for name, topic in LANGUAGE["topics"].items():
        assert core | side | {"obstacle", "ask"} <= set(topic), name
        for ask in topic["ask"]:
            question, _, kind = ask.partition(" >> ")
            assert question.endswith("?"), ask
            assert kind in topic, ask
    for name, topic in LANGUAGE["couples"].items():
        assert core <= set(topic), name
        for view in ("a", "b"):
            assert side | {"direct"} == set(topic[view]), name
            assert all(" :: " in line for line in topic[view]["direct"]), name


def test_every_kind_of_question_can_be_asked_and_answered():
    asked = {kind for kinds in KINDS.values() for kind in kinds} | {
        k for ks in NEAR.values() for k in ks
    }
    asked |= {kind for kinds in FIRST.values() for kind in kinds}
    answered = (
        set(LANGUAGE["client"]) | set(LANGUAGE["topics"]["sleep"]) | {"describe", "feeling", "body"}
    )
    joined = LANGUAGE["client"]["join"]
    for kind in asked - {"own", "probe", "callback", "teach", "two_sides", "summary"}:
        assert kind in LANGUAGE["therapist"]["question"], kind
        assert kind in answered, kind
    for parts in FOLLOW.values():
        assert set(parts) <= set(joined)
    assert {"own", "probe", "callback", "teach", "two_sides", "summary"} <= UNLIMITED
    assert set(FOLLOW) - DARK <= {"start", "better", "wish", "insight", "function", "evidence", "friend",
                                  "noticed", "debrief", "life"}  # fmt: skip
