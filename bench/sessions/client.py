"""A client: what they answer, in which words, and how they feel while they say it."""

import re
from dataclasses import dataclass, field

from bench.sessions.grammar import Draw, Stock, sentence

# how a phase moves the client's affect, which lies in [-1, 1]
PULL = {
    "check_in": -0.1, "review": 0.0, "concern": -0.5, "exploration": -0.55, "history": -0.5,
    "insight": 0.15, "skill": 0.25, "planning": 0.35, "closing": 0.45,
}  # fmt: skip
MEMORY, NOISE = 0.85, 0.16  # of the first-order autoregression
LEVELS = 5

# what people add by themselves after having said something of a kind
FOLLOW = {
    "raise": ("complaint", "cost"),
    "describe": ("complaint", "thought", "act", "better"),
    "complaint": ("complaint", "act", "thought"),
    "start": ("turn",),
    "turn": ("end",),
    "end": ("thought",),
    "thought": ("act", "thought"),
    "act": ("cost",),
    "cost": ("cost", "thought"),
    "tried": ("tried",),
    "better": ("better",),
    "wish": ("wish",),
    "insight": ("insight", "act"),
    "feeling": ("thought", "complaint"),
    "rule": ("rule", "child"),
    "child": ("learned",),
    "learned": ("link",),
    "link": ("link",),
    "function": ("function",),
    "evidence": ("evidence",),
    "friend": ("friend",),
    "noticed": ("noticed",),
    "debrief": ("debrief",),
    "hard": ("hard",),
    "life": ("life",),
    "partner_reply": ("complaint", "thought"),
}
# a remark after these sounds as the client feels, but no brighter or no darker than the subject allows
DARK = {"raise", "describe", "complaint", "turn", "end", "thought", "feeling", "act", "cost", "tried", "rule",
        "child", "learned", "link", "hard", "since", "people", "body", "low", "partner_reply"}  # fmt: skip
BRIGHT = {"better", "wish", "insight", "friend", "noticed", "debrief", "high"}
LEADS = {"describe", "act", "cost", "hard", "function"}  # "to be honest, ..."
# sentences after the first, for somebody of ordinary talkativeness
EXTRA = {0: 0.27, 1: 0.3, 2: 0.21, 3: 0.12, 4: 0.06, 5: 0.04}
PARTNER = re.compile(r"\{(?:partner|he|him|his)\}")
# answers that are whole sentences already
WHOLE = {"when", "agree", "feedback", "homework_done", "homework_part", "homework_not"}
NUMBERS = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass
class Said:
    """A turn before it is spoken, with what the other one can take up from it."""

    text: str
    kind: str = ""
    clauses: list = field(default_factory=list)  # (kind, clause in the first person)
    focus: str = ""  # what the therapist may call the subject of it
    feel: str = ""

    @property
    def ended_on(self):
        """The kind of the last thing said."""
        return self.clauses[-1][0] if self.clauses else self.kind


class Client:
    """One client with a manner of speaking of their own.

    `topics` are the topics as this client sees them; in a couple the two see the same one from two sides.
    """

    def __init__(
        self, draw: Draw, stock: Stock, language: dict, facts: dict, topics: dict, speaker: str
    ):
        self.draw, self.stock, self.speaker = draw, stock, speaker
        self.phrases, self.topics, self.facts = language["client"], topics, facts
        self.affect = draw.uniform(-0.5, 0.1)
        self.mood = draw.uniform(-0.25, 0.3)
        self.talkative = draw.uniform(0.75, 1.35)
        self.hesitant = draw.uniform(0.03, 0.14)
        self.leads = [draw.pick(self.phrases["lead"]) for _ in range(3)]
        self.tic = draw.pick(self.phrases["tic"])

    @property
    def level(self):
        return min(LEVELS - 1, max(0, int((self.affect + 1) * LEVELS / 2)))

    def feel_on(self, phase: str):
        """One step of the affect's autoregression towards what the phase does to people."""
        aim = PULL[phase] + self.mood
        self.affect = MEMORY * self.affect + (1 - MEMORY) * aim + NOISE * self.draw.normal()
        self.affect = min(1.0, max(-1.0, self.affect))

    def known(self, **more):
        return {**self.facts, "level": self.level, **more}

    def fill(self, key, options, **more):
        """A filled template of a list that may come round again: manners of speaking."""
        known = self.known(**more)
        return self.stock.fill(self.stock.pick(key, options, known), known)

    # content: each template once in a session

    def _content(self, kind, topic):
        own = self.topics[topic]
        part = "complaint" if kind == "describe" else kind
        if part in own:
            return (topic, part, own[part][0]), own[part]
        return part, self.phrases.get(part, ())

    def can(self, kind: str, topic: str) -> bool:
        """Whether there is still something unsaid of this kind."""
        if kind in ("turn", "end"):
            return kind in self.topics[topic]
        return self.stock.fresh_left(*self._content(kind, topic), self.known()) > 0

    def clause(self, kind: str, topic: str):
        """A clause in the first person that was not used before, and the noun for it if it has one."""
        key, options = self._content(kind, topic)
        known = self.known()
        template = self.stock.fresh(key, options, known) or self.stock.pick(
            ("again", key), options, known
        )
        clause, _, focus = self.stock.fill(self._by_name(template), known).partition(" :: ")
        return clause, focus

    def _by_name(self, template):
        """The partner is he or she most of the time, and now and then called by name where first mentioned."""
        first = PARTNER.search(template)
        if first and first[0] in ("{he}", "{him}") and self.draw.chance(0.3):
            return template[: first.start()] + "{partner}" + template[first.end() :]
        return template

    # turns

    def answer(self, kind: str, topic: str) -> Said:
        """A turn that answers a question of this kind."""
        if kind == "feeling":
            said = self._feeling()
        elif kind == "body":
            body = self.fill(f"body_{self.level}", self.stock.words[f"body_{self.level}"])
            said = self._framed("body", body)
        elif kind in ("week", "arrive", "teach_reply"):
            said = Said(
                sentence(self.fill((kind, self.level), self.phrases[kind][self.level])), kind
            )
        elif kind in ("scale", "confidence"):
            said = Said(sentence(self._number(kind)), kind)
        elif kind in WHOLE:
            said = Said(sentence(self.fill(kind, self.phrases[kind])), kind)
        else:
            clause, focus = self.clause(kind, topic)
            said = self._framed(kind, clause)
            said.focus = focus
        return self._expand(said, topic)

    def bring_up(self, topic: str, frame: str) -> Said:
        """The turn that puts a new subject on the table."""
        clause, _ = self.clause("raise", topic)
        text = self.fill(("frame", frame), self.phrases["frame"][frame], c=clause)
        return self._expand(Said(sentence(text), "raise", [("raise", clause)]), topic, at_least=1)

    def short(self, key: str) -> Said:
        """A turn that stands alone."""
        return Said(self.fill(key, self.phrases[key]), key)

    def step_reply(self, key, replies) -> Said:
        """What the client says to one step of an exercise."""
        said = Said(sentence(self.fill(key, replies)), "step")
        if self.draw.chance(0.3):
            said.text = self.fill("hesitation", self.phrases["hesitation"]) + " " + said.text
        elif self.draw.chance(0.4):
            said.text += " " + self.remark("step")
        return said

    def more_parts(self, kind, topic):
        return [part for part in FOLLOW.get(kind, ()) if self.can(part, topic)]

    def go_on(self, kind: str, topic: str) -> Said:
        """More of the same after no more than a nod; only where `more_parts` has any."""
        part = self.draw.pick(self.more_parts(kind, topic))
        clause, focus = self.clause(part, topic)
        said = Said(self._join(part, kind, clause), part, [(part, clause)], focus)
        return self._expand(said, topic)

    def agree_with(self, kind: str, topic: str, may_correct=True) -> Said:
        """What somebody says to having been understood, or nearly."""
        parts = self.more_parts(kind, topic)
        if may_correct and kind in ("describe", "complaint") and parts and self.draw.chance(0.2):
            clause, focus = self.clause(parts[0], topic)
            words = self.fill("not_quite", self.phrases["not_quite"])
            repair = sentence(self.fill("repair", self.phrases["repair"], c=clause))
            return Said(f"{words} {repair}", "repair", [(parts[0], clause)], focus)
        said = Said(self.fill("yes", self.phrases["yes"]), "yes")
        if may_correct and parts and self.draw.chance(0.4):
            more = self.go_on(kind, topic)
            more.text = f"{said.text} {more.text}"
            return more
        if self.draw.chance(0.5):
            said.text += " " + self.remark(kind)
        return said

    def remark(self, kind) -> str:
        """A short sentence coloured by the affect of the moment; empty where all fitting ones are used up."""
        level = self.level
        if kind in DARK:
            level = min(level, 2)
        elif kind in BRIGHT:
            level = max(level, 3)
        template = self.stock.fresh(
            ("comment", level), self.stock.words[f"comment_{level}"], self.known()
        )
        if template is None:
            return ""
        words = self.stock.fill(template, self.known())
        if level in (1, 2) and "," not in words and self.draw.chance(0.06):
            words += f", {self.tic}"
        elif level < 2 and self.draw.chance(0.08):
            words += "..."
        return sentence(words)

    def _framed(self, kind, clause):
        frames = self.phrases["frame"].get(kind, ["{c}."])
        frame = self.stock.pick(("frame", kind, self.speaker), frames, {"c": ""})
        if frame == "{c}." and kind in LEADS and self.draw.chance(0.3):
            frame = self.draw.pick(self.leads) + frame
        elif self.draw.chance(self.hesitant + 0.12 * max(0.0, -self.affect)) and frame[:3] in (
            "{c}",
            "{C}",
        ):
            frame = self.fill("hesitation", self.phrases["hesitation"]) + " " + frame
        spoken = clause
        if clause.startswith("I ") and self.level < 2 and self.draw.chance(0.08):
            spoken = "I... " + clause
        text = sentence(self.stock.fill(frame, self.known(c=spoken)))
        if self.level == 0 and self.draw.chance(0.1):
            text = "(pause) " + text
        return Said(text, kind, [(kind, clause)])

    def _feeling(self):
        feel = self.fill(f"feel_{self.level}", self.stock.words[f"feel_{self.level}"])
        text = self.fill(("frame", "feeling"), self.phrases["frame"]["feeling"], feel=feel)
        return Said(sentence(text), "feeling", feel=feel)

    def _number(self, kind):
        if kind == "scale":  # ten is unbearable
            n = round(5.5 - 3.5 * self.affect)
        else:  # ten is certain
            n = round(6.5 + 2.5 * self.affect)
        n = min(9, max(2, n))
        return self.fill(
            kind, self.phrases[kind], n=NUMBERS[n], n2=NUMBERS[n + self.draw.pick([-1, 1])]
        )

    def _expand(self, said, topic, at_least=0):
        """Add the sentences that make an answer as long as this person's answers are at this moment."""
        extra = round(self.draw.weighted(EXTRA) * self.talkative * (1.15 - 0.35 * self.affect))
        current, remarks, runs = said.kind, 0, 0
        for _ in range(max(extra, at_least)):
            parts = [
                part for part in self.more_parts(current, topic) if part != current or runs < 1
            ]
            if parts and (current == "start" or self.draw.chance(0.65)):
                part = self.draw.pick(parts)
                clause, _ = self.clause(part, topic)
                said.text += " " + self._join(part, current, clause)
                said.clauses.append((part, clause))
                runs = runs + 1 if part == current else 0
                current = part
            elif remarks == 0 and (current in DARK or current in BRIGHT):
                remarks += 1
                said.text += " " + self.remark(current)
        return said

    def _join(self, part, before, clause):
        key = "better_more" if part == before == "better" else part
        return sentence(self.fill(("join", key), self.phrases["join"][key], c=clause))
