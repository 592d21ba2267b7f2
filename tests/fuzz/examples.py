"""How many examples a fuzz test tries, and what every one of them must keep to."""

import os
import re

import pytest
from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
FACTOR = {"ci": 1, "thorough": 50}
LIMIT_S = {"ci": 120, "thorough": 3600}  # of a whole test, against examples that hang


def examples(count):
    """Decorator: `count` examples in CI, the same each time, and FACTOR times as many new ones in a thorough run."""

    def decorate(test):
        chosen = settings(settings.get_profile(PROFILE), max_examples=count * FACTOR[PROFILE])
        return pytest.mark.timeout(LIMIT_S[PROFILE])(chosen(test))

    return decorate


def check_one_line(message, *names):
    """A message for people: one line that holds one of `names`, if there are any, as a word."""
    assert message.strip(), "an empty message"
    assert "\n" not in message.strip(), f"several lines: {message!r}"
    assert "Traceback" not in message
    if names:
        words = set(re.findall(r"\w+", message))
        assert words & set(names), f"names no argument: {message!r}"
