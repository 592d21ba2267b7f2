"""A conversation as it is built up: turns, and exchanges of question and answer made of them."""

import re

from bench.sessions.client import BRIGHT, Client, Said
from bench.sessions.grammar import Draw, Stock, to_second_person
from bench.sessions.novelty import Novelty
from bench.sessions.phases import Phase
from bench.sessions.session import Turn
from bench.sessions.therapist import Therapist

ATTEMPTS, PATIENCE = 60, 15  # proposals for a turn; after how many comes a filler in front
LONG_SENTENCE = 7  # words: shorter ones may be said twice in a session, as people do
# what is worth recalling later
LASTING = {"raise", "describe", "complaint", "act", "cost", "better", "insight", "wish"}


def bright_and_dark(memories):
    """What somebody said with hope, and the rest."""
    bright = [memory for memory in memories if memory[2] in BRIGHT]
    return bright, [memory for memory in memories if memory not in bright]


class NothingNew(Exception):
    """Everything that could be said at this point was said before."""


def long_sentences(text):
    """The sentences of a turn that should not come twice in a session."""
    sentences = re.split(r"(?<=[.?!]) ", text)
    return {sentence for sentence in sentences if len(sentence.split()) >= LONG_SENTENCE}


class Dialogue:
    """One session with one client. `tokens` counts what was said in the ids of `encode`."""

    def __init__(
        self,
        draw: Draw,
        stock: Stock,
        language: dict,
        clients: list[Client],
        novelty: Novelty,
        encode,
    ):
        self.draw, self.stock, self.language = draw, stock, language
        self.therapist = Therapist(draw, stock, language)
        self.clients, self.novelty, self.encode = clients, novelty, encode
        self.turns: list[Turn] = []
        self.tokens = 0
        self.phase: Phase | None = None
        self.said: set[str] = set()
        self.asked: set[str] = set()
        self.recent: list[str] = []
        self.memory: list = []  # (turn, client, kind, clause)
        self.last: Said | None = None
        self.last_client = clients[0]
        self.previous_topic = ""
        novelty.begin()

    def speak(self, speaker, role, make) -> Said:
        """Say what `make` proposes, the first time that it is not a repetition."""
        label = self.encode(f"\n{speaker}:")
        for attempt in range(ATTEMPTS):
            said = make()
            # where the words leave no choice, as after a nod, people still begin in different ways
            lead = [self.filler(role) for _ in range(attempt // PATIENCE)]
            said.text = " ".join([*lead, *said.text.split()])
            words = self.encode(" " + said.text)
            long = long_sentences(said.text)
            # a sentence twice is bad style, a passage twice is never accepted
            stale = role == "client" and attempt < ATTEMPTS // 3 and long & self.said
            if not stale and self.novelty.accepts(label, words):
                self.stock.keep()
                self.novelty.add(label, words)
                self.said |= long
                self.tokens += len(label) + len(words)
                self.turns.append(Turn(speaker, role, said.text, self.phase.name))
                return said
            self.stock.give_back()
        raise NothingNew

    def filler(self, role):
        if role == "client":
            fillers = self.language["client"]["hesitation"]
        else:
            fillers = self.therapist.phrases["backchannel"]
        return self.stock.pick(("filler", role), fillers, {})

    def ask(self, make):
        """A turn of the therapist; `make` gives its parts."""
        self.speak(self.therapist.speaker, "therapist", lambda: Said(" ".join(make())))

    def reply(self, client: Client, make) -> Said:
        client.feel_on(self.phase.name)
        said = self.speak(client.speaker, "client", make)
        self.last, self.last_client = said, client
        now = len(self.turns)
        self.memory += [(now, client, kind, c) for kind, c in said.clauses if kind in LASTING]
        return said

    def reaction(self):
        return self.therapist.reaction(self.last_client, self.last)

    def addressed(self, client, question):
        """The question as this client is asked it; with one client nobody needs to be named."""
        return question

    def exchange(self, kind: str, client: Client):
        """A question and its answer, and what the answer may lead to."""
        topic = self.phase.topic
        if kind in ("callback", "two_sides", "summary"):
            return self.look_back(kind, client)
        if kind == "teach":
            return self.teach(client)
        question, answer = "", kind
        if kind == "own":
            question, answer = self.therapist.own_question(client, topic) or ("", "feeling")
        elif kind == "probe" and self.last and self.last.focus and self.last_client is client:
            probe, answer = self.therapist.probe(client, topic, self.last.focus)
            self.ask(lambda: [probe])
            self.reply(client, lambda: client.answer(answer, topic))
            return self.stay_with(client)
        elif kind == "probe":
            answer = "feeling"

        def make():
            words = question or self.therapist.question(answer, client, topic)
            return [self.reaction(), self.addressed(client, words)]

        self.ask(make)
        self.reply(client, lambda: client.answer(answer, topic))
        self.stay_with(client)
        return None

    def teach(self, client):
        """Something that therapists know and clients may not, in one piece or with a nod in between."""
        topic = self.phase.topic
        say, tell = self.therapist.say, self.therapist.tell
        in_one, rest = self.draw.chance(0.5), ""

        def begin():
            nonlocal rest
            first, rest = self.therapist.lesson(client, topic)
            words = [self.reaction(), say("teach_intro", client), tell(first, client)]
            return [*words, tell(rest, client)] if in_one else words

        self.ask(begin)
        if rest and not in_one:
            self.reply(client, lambda: client.short("backchannel"))
            self.ask(lambda: [tell(rest, client), say("teach_check", client)])
        self.reply(client, lambda: client.answer("teach_reply", topic))

    def stay_with(self, client: Client):
        """Sometimes the therapist only nods and the client goes on, or says back what was heard."""
        topic, kind = self.phase.topic, self.last.kind
        if kind == "start" and not any(part == "end" for part, _ in self.last.clauses):
            told = "end" if len(self.last.clauses) > 1 else "turn"
            self.ask(lambda: [self.nod(client), self.therapist.question(told, client, topic)])
            self.reply(client, lambda: client.answer(told, topic))
        elif self.draw.chance(0.13) and client.more_parts(self.last.ended_on, topic):
            ended_on = self.last.ended_on
            self.ask(lambda: [self.therapist.say("nod_on", client)])
            self.reply(client, lambda: client.go_on(ended_on, topic))
        elif self.draw.chance(0.2) and self.therapist.takes_up(self.last):
            last = self.last

            def make():
                reflection = self.therapist.reflection(client, last, deepen=0.45)
                check = self.therapist.say("confirm", client) if self.draw.chance(0.3) else ""
                return [self.nod(client), reflection, check]

            try:
                self.ask(make)
            except NothingNew:  # said back in every way by now; the next question comes instead
                return
            self.reply(client, lambda: client.agree_with(kind, topic))

    def look_back(self, kind, client):
        """Take up something that was said long before, or set two things beside each other."""
        own = [m for m in self.memory if m[1] is client]
        if kind == "callback":
            own = [m for m in own if m[0] < len(self.turns) - 20]
        bright, dark = bright_and_dark(own)
        if len(own) < 2 or (kind == "two_sides" and not (bright and dark)):
            return self.exchange("describe", client)
        used = []

        def make():
            nonlocal used
            if kind == "callback":
                used = [self.draw.pick(own)]
                return [self.therapist.say("callback", client, c=to_second_person(used[0][3]))]
            if kind == "two_sides":
                used = [self.draw.pick(dark), self.draw.pick(bright)]
            else:
                recent = own[-8:]
                first = self.draw.index(len(recent) - 1)
                used = [recent[first], recent[first + 1 + self.draw.index(len(recent) - 1 - first)]]
            return [self.reaction(), self.therapist.of_two(kind, client, used[0][3], used[1][3])]

        self.ask(make)
        for memory in used:
            if memory in self.memory:
                self.memory.remove(memory)
        kind, topic = used[-1][2], self.phase.topic
        self.reply(client, lambda: client.agree_with(kind, topic, may_correct=False))
        return None
