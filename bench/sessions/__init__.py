"""The input of the lab: synthetic therapy sessions with labelled shifts, and readers for real transcripts."""

from bench.sessions.generator import generate, stream
from bench.sessions.readers import read
from bench.sessions.session import KINDS, Session, SessionError, Turn, line, text
from bench.sessions.writer import write

__all__ = [
    "KINDS",
    "Session",
    "SessionError",
    "Turn",
    "generate",
    "line",
    "read",
    "stream",
    "text",
    "write",
]
