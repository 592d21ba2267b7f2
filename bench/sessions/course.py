"""The course of a session: what happens in each of its phases."""

from bench.sessions.dialogue import Dialogue, NothingNew, bright_and_dark
from bench.sessions.grammar import sentence, to_second_person
from bench.sessions.phases import Phase

# what is asked in a phase; a deck, so all of it comes up before anything comes twice
KINDS = {
    "check_in": ["low", "high", "life", "echo", "life"],
    "review": ["noticed", "hard", "noticed", "feeling"],
    "concern": ["describe", "since", "cost", "scale", "people", "start", "feeling", "describe", "act"],
    "exploration": ["start", "thought", "feeling", "body", "act", "cost", "tried", "better", "describe",
                    "own", "own", "probe", "callback", "teach", "start", "thought"],
    "history": ["rule", "child", "learned", "link", "feeling", "child", "rule", "learned", "friend"],
    "insight": ["insight", "function", "evidence", "friend", "two_sides", "summary", "callback", "wish", "insight"],
    "skill": ["debrief", "body", "feeling", "apply", "teach"],
    "planning": ["support", "wish", "feeling"],
    "closing": ["feeling", "better"],
}  # fmt: skip
# questions that follow naturally from an answer
NEAR = {
    "raise": ("describe", "start"), "describe": ("start", "thought", "probe"), "complaint": ("start", "feeling"),
    "start": ("feeling", "thought"), "turn": ("feeling", "thought"), "end": ("feeling", "thought", "body"),
    "thought": ("feeling", "act", "evidence"), "feeling": ("body", "thought", "child"), "body": ("feeling", "act"),
    "act": ("cost", "function"), "cost": ("tried", "feeling", "wish"), "tried": ("better",), "better": ("feeling",),
    "rule": ("child", "learned"), "child": ("feeling", "learned"), "learned": ("link",), "insight": ("feeling",),
    "low": ("high",), "evidence": ("insight",), "function": ("insight",),
}  # fmt: skip
# with what a phase may begin
FIRST = {
    "exploration": ("start", "start", "describe", "thought", "act"),
    "history": ("rule", "child"),
    "insight": ("insight", "insight", "function"),
}
ONCE = {"since", "scale", "echo", "low", "high"}
# kinds that need no template of the topic that is still unused
UNLIMITED = {
    "feeling",
    "body",
    "scale",
    "own",
    "probe",
    "callback",
    "two_sides",
    "summary",
    "teach",
}
OUTCOMES = {"homework_done": 0.35, "homework_part": 0.4, "homework_not": 0.25}


class Course(Dialogue):
    """A dialogue that goes through phases; `run` once for each."""

    def run(self, phase: Phase):
        """Everything of one phase; the next one begins where this leaves off."""
        previous, self.phase = self.phase, phase
        self.previous_topic = previous.topic if previous else phase.topic
        if phase.name == "concern" and "concern" in self.asked and self.draw.chance(0.4):
            self.phase = previous
            self.ask(lambda: [self.therapist.acknowledge(self.last_client, self.last)])
            self.phase = phase
        getattr(self, phase.name, self.talk)()
        self.asked.add(phase.name)

    def client_for(self, topic):
        """Who is asked next; a topic may belong to one of two clients."""
        able = [client for client in self.clients if "complaint" in client.topics[topic]]
        return self.draw.pick(able)

    def until_end(self, margin=40):
        """Ask what belongs to the phase until its tokens are spent."""
        name = self.phase.name
        refused = 0
        while self.tokens < self.phase.end - margin and refused < 2 * len(KINDS[name]):
            client = self.client_for(self.phase.topic)
            kind = self.next_kind(client)
            if kind is None:
                refused += 1
                continue
            refused = 0
            self.asked.add(kind)
            self.recent = [kind, *self.recent[:5]]
            self.try_exchange(kind, client)

    def try_exchange(self, kind, client):
        """The exchange, or none where the question cannot be put in a new way."""
        before = len(self.turns)
        try:
            self.exchange(kind, client)
        except NothingNew:
            if len(self.turns) > before:
                raise

    def next_kind(self, client):
        """What to ask next: often what lies near the last answer, else what has waited longest; None if used up."""
        name = self.phase.name
        near = [k for k in NEAR.get(self.last.kind if self.last else "", ()) if k in KINDS[name]]
        if near and self.draw.chance(0.5):
            kind = self.draw.pick(near)
        else:
            kind = self.stock.pick(("kinds", name), KINDS[name], {})
        done = kind in ONCE or (name == "review" and kind == "noticed")
        pause = (
            6 if kind in ("feeling", "body") else 3
        )  # questions until the same kind may come again
        if (done and kind in self.asked) or kind in self.recent[:pause]:
            return None
        if kind in UNLIMITED or client.can(kind, self.phase.topic):
            return kind
        return None

    def begin(self, opening, kind, client, answer=None):
        """The first question of a phase behind its opening words, and the answer."""
        topic = self.phase.topic

        def make():
            words = self.therapist.opening(opening, client, topic)
            before = self.reaction() if self.draw.chance(0.4) else ""
            question = self.therapist.question(kind, client, topic)
            return [before, words, self.addressed(client, question)]

        self.ask(make)
        self.reply(client, lambda: client.answer(answer or kind, topic))
        self.stay_with(client)

    def talk(self):
        """Exploration, history and insight: an opening, then questions."""
        name = self.phase.name
        topic = self.phase.topic
        client = self.client_for(topic)
        kind = self.draw.pick([k for k in FIRST[name] if client.can(k, topic)] or ["feeling"])
        back = name == "exploration" and (self.phase.again or topic != self.previous_topic)
        self.begin("exploration_again" if back else name, kind, client)
        self.until_end()

    def check_in(self):
        client = self.clients[0]
        self.ask(lambda: [self.therapist.opening("check_in", client, self.phase.topic)])
        self.reply(client, lambda: client.short("hello"))
        kind = "week" if self.draw.chance(0.65) else "arrive"
        self.ask(lambda: [self.therapist.question(kind, client, self.phase.topic)])
        self.reply(client, lambda: client.answer(kind, self.phase.topic))
        self.until_end()

    def review(self):
        topic = self.phase.topic
        client = self.client_for(topic)
        client.facts["homework"] = client.fill((topic, "step"), client.topics[topic]["step"])
        outcome = self.draw.weighted(OUTCOMES)
        self.begin("review", "homework", client, outcome)
        if outcome == "homework_not":
            self.asked.add("noticed")  # there is nothing to have noticed
        self.exchange("noticed" if outcome == "homework_done" else "hard", client)
        self.until_end()

    def concern(self):
        topic = self.phase.topic
        client = self.client_for(topic)
        again = "concern" in self.asked
        if again and self.turns[-1].role == "therapist":
            self.reply(client, lambda: client.bring_up(topic, "raise_own"))
        else:
            opening = "concern_again" if again else "concern"
            self.ask(lambda: [self.therapist.opening(opening, client, topic)])
            self.reply(client, lambda: client.bring_up(topic, "raise_more" if again else "raise"))
        self.until_end()

    def skill(self):
        client = self.client_for(self.phase.topic)
        self.exercise(client)
        while self.phase.end - self.tokens > 700:
            self.exchange("debrief", client)
            self.exercise(client)
        self.until_end()

    def exercise(self, client):
        """A scripted exercise, step by step."""
        topic = self.phase.topic
        skills = self.language["skills"]
        fitting = [name for name, skill in skills.items() if topic in skill.get("topics", [topic])]
        name = self.draw.pick([name for name in fitting if name not in self.asked] or fitting)
        self.asked.add(name)
        skill = skills[name]

        def opening():
            words = self.therapist.opening("skill", client, topic)
            return [words, self.therapist.say("skill_name", client, skill=skill["name"])]

        self.ask(opening)
        self.reply(client, lambda: client.answer("agree", topic))
        for i, step in enumerate(skill["steps"]):
            key = (skill["name"], i)
            self.ask(lambda s=step, k=key: self.instruction(k, s["t"], client))
            self.reply(client, lambda s=step, k=key: client.step_reply(k, s["c"]))

    def instruction(self, key, lines, client):
        nod = self.therapist.say("nod", client) if key[1] and self.draw.chance(0.55) else ""
        return [nod, sentence(self.therapist.fill(key, lines, client))]

    def planning(self):
        topic = self.phase.topic
        first = True
        while first or self.tokens < self.phase.end - 150:
            client = self.client_for(topic)
            self.make_plan(client, topic, first)
            first = False
            topics = [t for t in client.topics if "complaint" in client.topics[t]]
            topic = self.draw.pick(topics)

    def make_plan(self, client, topic, first):
        """A step, when, what could get in the way, and how likely it is."""
        step = ""

        def propose():
            nonlocal step
            step = client.fill((topic, "step"), client.topics[topic]["step"])
            words = self.therapist.opening("planning", client, topic) if first else self.reaction()
            return [words, self.therapist.say("propose", client, step=step)]

        self.ask(propose)
        self.reply(client, lambda: client.answer("agree", topic))
        kinds = ["when", "obstacle", "counter"]
        kinds += [kind for kind in ("support", "confidence") if self.draw.chance(0.55)]
        for kind in kinds:
            self.ask(lambda k=kind: [self.nod(client), self.therapist.question(k, client, topic)])
            self.reply(client, lambda k=kind: client.answer(k, topic))
        self.ask(lambda: [self.therapist.say("firm_up", client, step=step)])
        self.reply(client, lambda: client.agree_with("plan", topic))

    def nod(self, client):
        return self.therapist.say("backchannel", client) if self.draw.chance(0.35) else ""

    def closing(self):
        client, topic = self.clients[0], self.phase.topic
        self.until_end(margin=330)
        self.look_back_on_the_hour(client, topic)
        for each in self.clients:
            self.ask(
                lambda c=each: [self.addressed(c, self.therapist.question("takeaway", c, topic))]
            )
            self.reply(each, lambda c=each: c.answer("takeaway", topic))
        self.ask(lambda: [self.therapist.question("feedback", client, topic)])
        self.reply(client, lambda: client.answer("feedback", topic))
        self.ask(lambda: [self.reaction(), self.therapist.say("appointment", client)])
        self.reply(client, lambda: client.short("thanks"))
        self.ask(lambda: [self.farewell(client)])

    def look_back_on_the_hour(self, client, topic):
        own = [m for m in self.memory if m[1] is client] or self.memory
        bright, dark = bright_and_dark(own)

        def make():
            words = self.therapist.opening("closing", client, topic)
            first, last = self.draw.pick(dark or own)[3], self.draw.pick(bright or own)[3]
            c1, c2 = to_second_person(first), to_second_person(last)
            return [words, self.therapist.say("closing_summary", client, topic, c1=c1, c2=c2)]

        self.ask(make)
        self.reply(client, lambda: client.agree_with("closing", topic, may_correct=False))

    def farewell(self, client):
        return self.therapist.say("farewell", client)
