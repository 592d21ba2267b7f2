"""A session with two clients, who talk about each other and, at times, to each other."""

from bench.sessions.client import BRIGHT, Client, Said
from bench.sessions.course import Course
from bench.sessions.grammar import sentence

KEEPS_CAPITAL = (
    "I ",
    "I'd",
    "I'm",
    "I've",
)  # how a question may begin that a name in front leaves as it is


class CoupleCourse(Course):
    """Two clients with names; the therapist says whom a question is for."""

    def other(self, client: Client) -> Client:
        return self.clients[1] if client is self.clients[0] else self.clients[0]

    def addressed(self, client, question):
        name = client.facts["name"]
        if name in question or (client is self.last_client and self.draw.chance(0.75)):
            return question
        one_question = question.endswith("?") and not any(mark in question[:-1] for mark in ".?!")
        if one_question and (question.startswith("And ") or self.draw.chance(0.3)):
            return f"{question[:-1]}, {name}?"
        if not question.startswith(KEEPS_CAPITAL):
            question = question[0].lower() + question[1:]
        return f"{name}, {question}"

    def exchange(self, kind, client):
        super().exchange(kind, client)
        if self.phase.name in ("check_in", "closing"):
            return
        if self.phase.name in ("insight", "skill", "exploration") and self.draw.chance(0.12):
            self.enact(client)
        elif self.last.kind not in BRIGHT and self.draw.chance(0.4):
            self.turn_to_other(client)

    def turn_to_other(self, client):
        """Ask the one who listened; it may get loud."""
        other, topic = self.other(client), self.phase.topic
        if self.draw.chance(0.2) and self.phase.name in ("concern", "exploration"):
            self.quarrel(client, other)
            return
        self.ask(lambda: [self.reaction(), self.therapist.question("impact", other, topic)])
        self.reply(other, lambda: other.answer("partner_reply", topic))
        self.stay_with(other)

    def quarrel(self, client, other):
        """A few short turns without the therapist, who then steps in."""
        self.reply(other, lambda: other.short("spat"))
        self.reply(client, lambda: client.short("spat_reply"))
        if self.draw.chance(0.4):
            self.reply(other, lambda: other.short("spat"))
        self.last = None
        self.ask(lambda: [self.therapist.say("referee", client)])
        self.reply(client, lambda: client.answer("feeling", self.phase.topic))

    def enact(self, client):
        """One tells the other directly, the other says it back before answering."""
        topic, other = self.phase.topic, self.other(client)
        if not client.can("direct", topic):
            return
        self.ask(lambda: [self.reaction(), self.therapist.say("enact", client)])
        mirror = ""

        def tell():
            nonlocal mirror
            clause, mirror = client.clause("direct", topic)
            return Said(sentence(clause), kind="direct")

        self.reply(client, tell)
        self.reply(
            other, lambda: Said(sentence(other.fill("mirror", other.phrases["mirror"], c=mirror)))
        )
        self.reply(client, lambda: client.short("yes"))
        self.reply(other, lambda: other.short("soften"))
        self.last = None
        self.ask(lambda: [self.therapist.say("after_enact", client)])
        self.reply(client, lambda: client.answer("feeling", topic))

    def exercise(self, client):
        """With a couple the exercise is speaking and listening in turns."""
        topic = self.phase.topic
        if not client.can("direct", topic):
            super().exercise(client)
            return
        self.ask(
            lambda: [
                self.therapist.opening("skill", client, topic),
                self.therapist.say("rules", client),
            ]
        )
        self.reply(client, lambda: client.answer("agree", topic))
        self.enact(client)
        self.enact(self.other(client))

    def check_in(self):
        first, second = self.clients
        self.ask(lambda: [self.therapist.opening("check_in_couple", first, self.phase.topic)])
        for client in (first, second):
            self.reply(client, lambda c=client: c.short("hello"))
        for client in (second, first):
            self.ask(
                lambda c=client: [
                    self.reaction() if c is first else "",
                    self.addressed(c, self.therapist.question("week", c, self.phase.topic)),
                ]
            )
            self.reply(client, lambda c=client: c.answer("week", self.phase.topic))
        self.until_end()

    def farewell(self, client):
        return self.therapist.say("farewell_couple", client)
