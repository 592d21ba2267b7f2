"""The facts of a session: names, work, family and places, drawn once and the same in every turn."""

from bench.sessions.grammar import Draw

PRONOUNS = {"female": ("she", "her", "her"), "male": ("he", "him", "his")}
GENDER = {"she": "female", "he": "male"}


class People:
    """Hands out names so that no two people of a session share one."""

    def __init__(self, draw: Draw, facts: dict):
        self.draw = draw
        self.left = {gender: list(facts[gender]) for gender in PRONOUNS}

    def gender(self):
        return "female" if self.draw.chance(0.5) else "male"

    def name(self, gender):
        names = self.left[gender]
        return names.pop(self.draw.index(len(names)))

    def add(self, facts, key, gender=None, name=True):
        """Put a person into `facts`: `key`, `key_he`, `key_him`, `key_his`."""
        gender = gender or self.gender()
        facts[key] = self.name(gender) if name else key
        facts[f"{key}_he"], facts[f"{key}_him"], facts[f"{key}_his"] = PRONOUNS[gender]
        return gender


def household(draw: Draw, language: dict, people: People, has_child: bool) -> dict:
    """What a couple shares, or what one client lives in: town, child, pet, appointment."""
    source = language["facts"]
    facts = {
        "pet": draw.pick(source["pets"]),
        "appointment": draw.pick(source["days"]),
        "appointment_time": draw.pick(source["times"]),
    }
    facts["town"], facts["old_town"] = _two(draw, source["towns"])
    if has_child:
        people.add(facts, "child")
        facts["child_age"] = draw.pick(source["ages"])
    return facts


def person(draw: Draw, language: dict, people: People, gender: str) -> dict:
    """One client: name, work and the people around."""
    source = language["facts"]
    facts = dict(draw.pick(source["jobs"]))
    facts["name"] = people.name(gender)
    for key in ("boss", "colleague", "friend"):
        people.add(facts, key)
    sibling = people.add(facts, "sib")
    facts["sib_word"] = "sister" if sibling == "female" else "brother"
    parent = people.add(facts, "parent", name=False)
    facts["parent"] = "mother" if parent == "female" else "father"
    facts["lost"], pronoun = draw.pick(source["lost"])
    facts["lost_he"], facts["lost_him"], facts["lost_his"] = PRONOUNS[GENDER[pronoun]]
    for key, name in (
        ("hobby", "hobbies"),
        ("site", "sites"),
        ("drink", "drinks"),
        ("debt", "debts"),
    ):
        facts[key] = draw.pick(source[name])
    facts["duration"] = draw.pick(source["durations"])
    return facts


def give_partner(facts: dict, name: str, gender: str):
    """`{partner}`, `{he}`, `{him}` and `{his}` are the partner of the client whose facts these are."""
    facts["partner"] = name
    facts["he"], facts["him"], facts["his"] = PRONOUNS[gender]


def one_client(draw: Draw, language: dict, partner: bool, child: bool) -> list[dict]:
    people = People(draw, language["facts"])
    facts = household(draw, language, people, child)
    facts.update(person(draw, language, people, people.gender()))
    if partner:
        gender = people.gender()
        give_partner(facts, people.name(gender), gender)
    return [facts]


def two_clients(draw: Draw, language: dict, child: bool) -> list[dict]:
    people = People(draw, language["facts"])
    shared = household(draw, language, people, child)
    genders = [people.gender(), people.gender()]
    both = [{**shared, **person(draw, language, people, gender)} for gender in genders]
    for own, other, gender in zip(both, reversed(both), reversed(genders), strict=True):
        give_partner(own, other["name"], gender)
    return both


def _two(draw, options):
    first = draw.index(len(options))
    second = (first + 1 + draw.index(len(options) - 1)) % len(options)
    return options[first], options[second]
