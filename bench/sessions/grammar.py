"""Templates to English.

A template is a sentence or a clause with slots and alternatives:

    "I [lie|lay] there going over {worry}"

`{name}` is a fact of the session ("boss", the same all along) or one of a list of words, drawn anew each time;
`{Name}` is the same with a capital letter, `{name2}` another draw from the same list. `[a|b|]` is a choice, may be
nested, and may be empty. Whatever follows " :: " is a second form of the same content and no part of the sentence.
"""

import functools
import random
import re

VOWEL_SOUND = re.compile(r"(?i)(?!(one|once|uni|use|usu|eu)\w*)([aeiou]|hour|honest|heir)")
SECOND_PERSON = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "am": "are",
    "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll",
    "we": "you", "us": "you", "our": "your", "ours": "yours", "ourselves": "yourselves",
    "we're": "you're", "we've": "you've", "we'd": "you'd", "we'll": "you'll",
}  # fmt: skip
FIRST_PERSON = re.compile(
    r"\b(" + "|".join(sorted(SECOND_PERSON, key=len, reverse=True)) + r")(?!['\w])", re.I
)
LEVELLED = ("feel", "noun")  # word lists that exist once per level of affect: feel_0, feel_1, ...
I_WAS = re.compile(
    r"\bI((?: (?:never|always|just|almost|nearly|still|really|hardly|also))?) was(n't)?\b"
)


class Draw:
    """Draws from random.random() alone, the one sequence that Python promises never to change for a seed."""

    def __init__(self, seed: str):
        self._random = random.Random(seed).random

    def uniform(self, low=0.0, high=1.0):
        return low + (high - low) * self._random()

    def chance(self, probability):
        return self._random() < probability

    def index(self, n):
        return int(self._random() * n)

    def pick(self, options):
        return options[self.index(len(options))]

    def weighted(self, weights: dict):
        at = self.uniform(0, sum(weights.values()))
        for name, weight in weights.items():
            at -= weight
            if at < 0:
                return name
        return name

    def normal(self):
        """Nearly normal, mean 0 and deviation 1: the sum of 12 uniforms, so that no libm enters."""
        return sum(self._random() for _ in range(12)) - 6


@functools.cache
def parse(template):
    """A template as a tuple of parts: a str, ("slot", name) or ("choice", (parts, ...))."""
    parts, rest = _sequence(template, 0, end="")
    assert rest == len(template), f"unbalanced brackets in {template!r}"
    return parts


def _sequence(text, i, end):
    parts, literal = [], ""
    while i < len(text) and text[i] not in end:
        if text[i] not in "{[":
            literal += text[i]
            i += 1
            continue
        if literal:
            parts.append(literal)
            literal = ""
        if text[i] == "{":
            close = text.index("}", i)
            parts.append(("slot", text[i + 1 : close]))
            i = close + 1
        else:
            options = []
            while text[i] != "]":
                option, i = _sequence(text, i + 1, end="|]")
                options.append(option)
            parts.append(("choice", tuple(options)))
            i += 1
    if literal:
        parts.append(literal)
    return tuple(parts), i


@functools.cache
def slots(template) -> frozenset:
    """Names of all slots that a template may need, without their capital."""

    def walk(parts):
        for part in parts:
            if part[0] == "slot":
                yield part[1][0].lower() + part[1][1:]
            elif part[0] == "choice":
                for option in part[1]:
                    yield from walk(option)

    return frozenset(walk(parse(template)))


class Stock:
    """The language of one session: what was used up, and what comes next from each list.

    `pick` deals from a shuffled deck and begins again when it is empty: for manners of speaking. `fresh` deals each
    template once: for content.
    """

    def __init__(self, draw: Draw, words: dict):
        self.draw = draw
        self.words = words
        self._left = {}
        self._last = {}
        self._fresh = {}
        self._dealt = []

    def pick(self, key, options, known):
        """One of `options`, a shuffled deck per `key`; only those whose slots are facts in `known` or word lists."""
        left = self._left.get(key)
        if not left:
            left = [i for i, option in enumerate(options) if self._fits(option, known)]
            assert left, f"nothing in {key} fits this session"
            if len(left) > 1 and self._last.get(key) in left:
                left.remove(self._last[key])
            self._left[key] = left
        i = left.pop(self.draw.index(len(left)))
        self._last[key] = i
        return options[i]

    def fresh(self, key, options, known):
        """One of `options` that was not dealt before, or None."""
        deck = self._deck(key, options, known)
        if not deck:
            return None
        i = deck.pop(self.draw.index(len(deck)))
        self._dealt.append((key, i))
        return options[i]

    def keep(self):
        """What was dealt was said."""
        self._dealt.clear()

    def give_back(self):
        """What was dealt since `keep` was not said after all."""
        for key, i in self._dealt:
            self._fresh[key].append(i)
        self._dealt.clear()

    def fresh_left(self, key, options, known):
        return len(self._deck(key, options, known))

    def _deck(self, key, options, known):
        if key not in self._fresh:
            self._fresh[key] = [i for i, option in enumerate(options) if self._fits(option, known)]
        return self._fresh[key]

    def _fits(self, option, known):
        if not isinstance(option, str):
            return True
        return all(name in known or self._list(name, 0) in self.words for name in slots(option))

    def _list(self, slot, level):
        """The list that a slot draws from: "weekday2" -> "weekday", "feel" -> "feel_1"."""
        name = slot if slot in self.words else slot.rstrip("0123456789")
        return f"{name}_{level}" if name in LEVELLED else name

    def fill(self, template, known):
        """The template with every slot and choice filled, before `sentence` or inside another template."""
        return "".join(self._part(part, known) for part in parse(template))

    def _part(self, part, known):
        if isinstance(part, str):
            return part
        kind, value = part
        if kind == "choice":
            return "".join(self._part(p, known) for p in self.draw.pick(value))
        lower = value[0].lower() + value[1:]
        if lower in known:
            filled = known[lower]
        else:
            name = self._list(lower, known["level"])
            filled = self.fill(self.pick(name, self.words[name], known), known)
        return capital(filled) if value[0].isupper() else filled


def capital(text):
    """The text with a capital first letter, also behind an opening bracket or dots."""
    for i, char in enumerate(text):
        if char.isalpha():
            return text[:i] + char.upper() + text[i + 1 :]
    return text


def sentence(text):
    """Finished English: one space between words, a/an by sound, capitals, and a mark at the end."""
    text = " ".join(text.split())
    text = re.sub(r" ([,.?!;:])", r"\1", text)
    text = re.sub(r"\b([Aa])n? (?=(\w+))", _article, text)
    text = re.sub(r"(?<!\.\.)([.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)
    if text and text[-1] not in ".?!)":
        text += "."
    return capital(text) if not text.startswith("...") else text


def _article(match):
    return match[1] + ("n " if VOWEL_SOUND.match(match[2]) else " ")


def to_second_person(clause):
    """What the client says of themselves, as the therapist says it back: "I lie in my bed" -> "you lie in your bed"."""
    clause = re.sub(r"^([A-Z]\w+|my \w+) and I\b", r"I and \1", clause)
    clause = I_WAS.sub(lambda m: f"I{m[1]} were{m[2] or ''}", clause)
    return FIRST_PERSON.sub(lambda m: SECOND_PERSON[m[1].lower()], clause)
