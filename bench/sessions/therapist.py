"""The therapist: takes up what was said, and asks the next thing."""

import re

from bench.sessions.client import BRIGHT, DARK, Client, Said
from bench.sessions.grammar import Draw, Stock, sentence, to_second_person

NOT_REFLECTED = {"echo", "people", "life", "takeaway", "apply", "obstacle", "counter", "support", "low", "high",
                 "since", "partner_reply", "step"}  # fmt: skip
# the second half of a clause that stands on its own: ", and people have stopped asking"
SECOND_HALF = re.compile(
    r", (?:and|so|but) (?=(?:I|my|it|he|she|they|we|nobody|people|everybody)\b)"
)
# questions that follow when the therapist names a detail: what about it?
ABOUT_A_DETAIL = ("thought", "feeling", "body", "act", "cost")


class Therapist:
    """Speaks to one client at a time, with that client's facts."""

    speaker = "Therapist"

    def __init__(self, draw: Draw, stock: Stock, language: dict):
        self.draw, self.stock = draw, stock
        self.phrases = language["therapist"]
        self.warmth = draw.uniform(0.12, 0.26)
        self.mirroring = draw.uniform(0.3, 0.46)

    def fill(self, key, options, client: Client, topic=None, **more):
        known = {**client.known(), **more}
        if topic is not None and "np" in client.topics[topic]:
            known["np"] = self.topic_name(client, topic)
        return self.stock.fill(self.stock.pick(("therapist", key), options, known), known)

    def topic_name(self, client, topic):
        known = client.known()
        return self.stock.fill(
            self.stock.pick(("np", topic), client.topics[topic]["np"], known), known
        )

    def say(self, key, client, topic=None, **more):
        """A finished sentence from the list `key`."""
        return sentence(self.fill(key, self.phrases[key], client, topic, **more))

    def question(self, kind, client, topic):
        return sentence(
            self.fill(("question", kind), self.phrases["question"][kind], client, topic)
        )

    def reaction(self, client: Client, last: Said | None) -> str:
        """What a listener gives back before asking on: a reflection, a kind word, or nothing."""
        if last is None or not last.text:
            return ""
        if self.draw.chance(self.mirroring) and (last.feel or self.takes_up(last)):
            return self.reflection(client, last)
        if self.draw.chance(self.warmth) and (last.kind in DARK or last.kind in BRIGHT):
            return self.empathy(client, last)
        if last.kind in ("insight", "better", "tried", "wish", "noticed") and self.draw.chance(
            0.35
        ):
            return self.say("affirm", client)
        if self.draw.chance(0.18):
            return self.say("backchannel", client)
        return ""

    def takes_up(self, last: Said):
        """The parts of a turn that can be said back, the last first."""
        return [clause for clause in reversed(last.clauses) if clause[0] not in NOT_REFLECTED]

    def reflection(self, client: Client, last: Said, deepen=0.2) -> str:
        """The client's own last content with the person switched; now and then with the feeling behind it."""
        if last.feel:
            return sentence(
                self.fill(
                    "reflect_feeling",
                    self.phrases["reflect_feeling"],
                    client,
                    feel=to_second_person(last.feel),
                )
            )
        if last.focus and self.draw.chance(0.3):
            return self.say("echo_word", client, focus=last.focus)
        kind, clause = self.takes_up(last)[0]
        halves = SECOND_HALF.split(clause, maxsplit=1)
        if len(halves) == 2 and kind != "thought" and self.draw.chance(0.6):
            clause = halves[1]
        key = {"thought": "reflect_thought", "wish": "reflect_wish"}.get(kind, "reflect")
        text = self.say(key, client, c=to_second_person(clause))
        if self.draw.chance(deepen):
            level = max(client.level, 3) if kind in BRIGHT else min(client.level, 2)
            text += " " + self.say("deepen", client, level=level)
        return text

    def acknowledge(self, client, last):
        """A whole turn that only shows that the therapist is there."""
        if last.kind in DARK or last.kind in BRIGHT:
            return self.empathy(client, last)
        return self.say("backchannel", client)

    def empathy(self, client, last):
        """A kind word in the colour of what was said."""
        if last.kind in BRIGHT:
            return self.say("empathy_high", client)
        return self.say("empathy_low" if client.level == 0 else "empathy_mid", client)

    def probe(self, client, topic, focus):
        """A question about a detail that the client mentioned, and its kind."""
        kind = self.draw.pick(
            [k for k in ABOUT_A_DETAIL if k in ("feeling", "body") or client.can(k, topic)]
        )
        question = self.question(kind, client, topic)
        return self.say("probe", client, focus=focus, q=question), kind

    def own_question(self, client, topic):
        """A question that belongs to this topic alone, and the kind of its answer; None if none is left."""
        known = client.known()
        ask = self.stock.fresh(("ask", topic), client.topics[topic].get("ask", ()), known)
        if ask is None:
            return None
        question, _, kind = ask.partition(" >> ")
        return (
            (sentence(self.stock.fill(question, known)), kind) if client.can(kind, topic) else None
        )

    def of_two(self, key, client, first, second):
        """A summary that sets two things the client said next to each other."""
        c1, c2 = to_second_person(first), to_second_person(second)
        return self.say(key, client, c1=c1, c2=c2)

    def lesson(self, client, topic):
        """A piece of psychoeducation on the topic, as templates: its first sentence, and the rest or ""."""
        first, _, rest = self.stock.pick(
            ("teach", topic), client.topics[topic]["teach"], client.known()
        ).partition(". ")
        return first, rest

    def tell(self, template, client):
        return sentence(self.stock.fill(template, client.known()))

    def opening(self, name, client, topic):
        """The first words of a phase, which may be none: not every change is announced."""
        return sentence(self.fill(("open", name), self.phrases["open"][name], client, topic))
