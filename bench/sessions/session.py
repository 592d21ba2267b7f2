"""A session: who said what, in which phase, and where a new phase begins."""

from dataclasses import dataclass

KINDS = ("dyadic", "couple")


class SessionError(ValueError):
    """A transcript that cannot be read, or sessions that cannot be made or written. Never quotes a transcript."""


@dataclass(frozen=True)
class Turn:
    """What one speaker says at a time; `role` is `therapist`, `client` or "" where it is not known.

    `speaker` is "" for text that nobody speaks: prose, or DNA.
    """

    speaker: str
    role: str
    text: str
    phase: str | None = None


@dataclass(frozen=True)
class Session:
    """One conversation.

    `shifts` are the indexes of the turns with which a new phase begins, in ascending order, never 0. `kind` is
    `dyadic`, `couple`, "transcript", "text" or "dna"; `source` is "generated" or the format it was read from. The `id`
    of what people said says nothing of them: it is a hash.
    """

    id: str
    kind: str
    turns: tuple[Turn, ...]
    shifts: tuple[int, ...] = ()
    source: str = ""


def text(session: Session) -> str:
    """The session as the models read it: one line per turn, "Speaker: text"."""
    return "\n".join(line(turn.speaker, turn.text) for turn in session.turns)


def line(speaker: str, words: str) -> str:
    """One turn as the models read it, on one line; text that nobody speaks as it is."""
    if not speaker:
        return words
    return f"{speaker}: {' '.join(words.split())}"


def is_labelled(session: Session) -> bool:
    """Whether phases or shifts are known; a labelled session may have no shift."""
    return bool(session.shifts) or any(turn.phase is not None for turn in session.turns)


def phase_changes(phases) -> tuple[int, ...]:
    """Indexes at which a labelled sequence changes; an unlabelled turn (None) belongs to the phase before it."""
    changes, current = [], None
    for i, phase in enumerate(phases):
        if phase is not None and phase != current:
            if current is not None:
                changes.append(i)
            current = phase
    return tuple(changes)


def to_json(session: Session) -> dict:
    """The paper's form (a list `dialogue` of `speaker` and `text`) with labels beside it."""
    dialogue = []
    for turn in session.turns:
        entry = {"speaker": turn.speaker, "role": turn.role, "text": turn.text}
        if turn.phase is not None:
            entry["phase"] = turn.phase
        dialogue.append(entry)
    return {
        "id": session.id,
        "kind": session.kind,
        "source": session.source,
        "shifts": list(session.shifts),
        "dialogue": dialogue,
    }
