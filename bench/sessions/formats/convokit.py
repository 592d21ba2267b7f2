"""A ConvoKit corpus (Chang et al. 2020): a folder with utterances.jsonl, conversations.json, speakers.json and more.

A line of utterances.jsonl is {"id", "conversation_id", "speaker", "text", "reply-to", "timestamp", ...}; older corpora
say "root", "user" and "reply_to". Only this file is read: the others describe conversations and speakers. Utterances
are put into the order of their timestamps, or of their replies where a timestamp is missing; those without words
(deleted ones) are left out. The metadata holds no phases that are named so in every corpus, so there are no shifts.
"""

import math
from collections.abc import Iterator

from bench.sessions.entries import make_session, make_turn, scalar
from bench.sessions.session import Session, SessionError

SOURCE = "ConvoKit"
FILE = "utterances.jsonl"
EXPECTED = '{"id", "conversation_id", "speaker", "text", "reply-to", "timestamp"}'


def is_utterance(item):
    """Whether a JSON value looks like a line of utterances.jsonl."""
    return (
        isinstance(item, dict)
        and {"id", "text"} <= item.keys()
        and _first(item, "speaker", "user") is not None
        and _first(item, "conversation_id", "root") is not None
    )


def sessions(rows) -> Iterator[Session]:
    """A session for each conversation, in the order in which they appear; `rows` are (where, line as an object)."""
    conversations, seen = {}, {}
    for where, item in rows:
        if not is_utterance(item):
            raise SessionError(f"{where}: not an utterance of ConvoKit; expected {EXPECTED}")
        name = scalar(item, "id", where)
        if name is None or name in seen:
            why = f"the id of {seen[name]} again" if name in seen else "the id is empty"
            raise SessionError(f"{where}: {why}; expected a text that no other utterance has")
        seen[name] = where.rpartition(", ")[2]
        conversation = _scalar(item, ("conversation_id", "root"), where)
        conversations.setdefault(conversation, []).append((where, name, item))
    for found in conversations.values():
        turns = [_turn(where, item) for where, _, item in _ordered(found) if _has_words(item)]
        if turns:
            yield make_session(turns, found[0][0], source=SOURCE)


def _turn(where, item):
    speaker = _scalar(item, ("speaker", "user"), where)
    return make_turn({"speaker": speaker, "text": item["text"]}, where)


def _has_words(item):
    return not (
        item["text"] is None or (isinstance(item["text"], str) and not item["text"].strip())
    )


def _ordered(found):
    times = [_time(item) for _, _, item in found]
    if None not in times:
        order = sorted(range(len(found)), key=times.__getitem__)
        return [found[i] for i in order]
    return _by_replies(found)


def _by_replies(found):
    """Depth first from the utterances that reply to none of the conversation; siblings in the order of the file."""
    replies, roots = {}, []
    names = {name for _, name, _ in found}
    for row in found:
        where, _, item = row
        parent = _scalar(item, ("reply-to", "reply_to"), where)
        (replies.setdefault(parent, []) if parent in names else roots).append(row)
    order, waiting = [], roots[::-1]
    while waiting:
        row = waiting.pop()
        order.append(row)
        waiting += replies.get(row[1], [])[::-1]
    if len(order) < len(found):
        reached = {name for _, name, _ in order}
        where = next(where for where, name, _ in found if name not in reached)
        raise SessionError(f"{where}: its replies go round in a circle; expected a first utterance")
    return order


def _time(item):
    """Seconds as a float, or None."""
    try:
        time = float(item.get("timestamp"))
    except (TypeError, ValueError, OverflowError):
        return None
    return time if math.isfinite(time) else None


def _first(item, *names):
    return next((item[name] for name in names if item.get(name) is not None), None)


def _scalar(item, names, where):
    return scalar({names[0]: _first(item, *names)}, names[0], where)
