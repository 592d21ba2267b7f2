"""ESConv (Liu et al. 2021), a list of emotional support conversations:

    [{"emotion_type": ..., "problem_type": ..., "situation": ...,
      "dialog": [{"speaker": "seeker" or "supporter", "annotation": {"strategy": ...}, "content": ...}, ...]}, ...]

Derived copies say "text" for "content", and "usr" and "sys" for the speakers. Strategies label single turns of the
supporter and are no phases, so its sessions have no shifts.
"""

from bench.sessions.entries import make_session, make_turn
from bench.sessions.session import Session, SessionError

SOURCE = "ESConv"
ROLES = {"seeker": "client", "usr": "client", "supporter": "therapist", "sys": "therapist"}


def is_dialog(item):
    """Whether a JSON value looks like a conversation of ESConv."""
    return isinstance(item, dict) and "dialog" in item


def session(item, where) -> Session:
    """The session of one conversation."""
    if not isinstance(item["dialog"], list):
        raise SessionError(
            f'{where}: dialog must be a list of objects with "speaker" and "content"'
        )
    turns = [_turn(entry, f"{where}, dialog[{i}]") for i, entry in enumerate(item["dialog"])]
    return make_session(turns, where, source=SOURCE)


def _turn(entry, where):
    if not isinstance(entry, dict):
        raise SessionError(f'{where}: expected an object with "speaker" and "content"')
    speaker, words = entry.get("speaker"), entry.get("content", entry.get("text"))
    if not isinstance(words, str) or not words.strip():
        raise SessionError(f"{where}: the turn has no content; expected a text that is not empty")
    role = ROLES.get(speaker, "") if isinstance(speaker, str) else ""
    return make_turn({"speaker": speaker, "text": words, "role": role}, where)
