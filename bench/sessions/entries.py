"""What a transcript must hold, whatever file it comes from: from raw entries to checked turns and sessions."""

import hashlib
import itertools
from dataclasses import replace

from bench.sessions.session import Session, SessionError, Turn, phase_changes, text

THERAPISTS = {
    "therapist",
    "counsellor",
    "counselor",
    "clinician",
    "psychologist",
    "doctor",
    "interviewer",
    "ellie",
}
CLIENTS = {"client", "patient", "participant"}
SESSION_ID = (
    "session",
    "session_id",
    "transcript_id",
    "conversation_id",
    "id",
)  # in order of preference


def group(rows, source):
    """Sessions out of turns, in the order in which their ids appear."""
    sessions = {}
    for where, entry in rows:
        key = next((scalar(entry, name, where) for name in SESSION_ID if name in entry), None)
        sessions.setdefault(key, []).append((where, make_turn(entry, where)))
    for turns in sessions.values():
        yield make_session([turn for _, turn in turns], turns[0][0], source=source)


def make_turn(entry, where) -> Turn:
    if not isinstance(entry, dict):
        raise SessionError(f'{where}: expected an object with "speaker" and "text"')
    for name in ("speaker", "text"):
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise SessionError(
                f"{where}: the turn has no {name}; expected a text that is not empty"
            )
    speaker, words = " ".join(entry["speaker"].split()), entry["text"].strip()
    role = scalar(entry, "role", where) or _role(speaker)
    phase = scalar(entry, "phase", where)
    for value in (speaker, words, role, phase or ""):
        _check_unicode(value, where)
    return Turn(speaker, role, words, phase)


def _role(speaker):
    first = speaker.lower().split()[0].strip(".:")
    return "therapist" if first in THERAPISTS else "client" if first in CLIENTS else ""


def scalar(entry, name, where):
    """A text or a whole number as text; None where it is missing or empty."""
    value = entry.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SessionError(f"{where}: {name} must be a text")
    try:
        value = str(value).strip()
    except ValueError:  # an integer of thousands of digits
        raise SessionError(f"{where}: {name} must be a text") from None
    _check_unicode(value, where)
    return value or None


def _check_unicode(value, where):
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise SessionError(
            f"{where}: half of a surrogate pair; expected whole Unicode characters"
        ) from None


def make_session(turns, where, source, name=None, kind="transcript", shifts=None) -> Session:
    """A checked session. Only a generated one keeps its `name`: others get a hash of their text."""
    if not turns:
        raise SessionError(f"{where}: the session has no turns; expected at least one")
    if shifts is None:
        shifts = phase_changes(turn.phase for turn in turns)
    elif not (
        isinstance(shifts, list)
        and all(type(i) is int and 0 < i < len(turns) for i in shifts)
        and all(a < b for a, b in itertools.pairwise(shifts))
    ):
        raise SessionError(
            f"{where}: shifts must be ascending turn indexes between 1 and {len(turns) - 1}"
        )
    session = Session(name or "", kind, tuple(turns), tuple(shifts), source)
    if source == "generated" and name:
        return session
    digest = hashlib.sha256(text(session).encode()).hexdigest()
    return replace(session, id=f"session-{digest[:12]}")
