"""What every command line of the lab shares: one-line errors, and the types of arguments."""

import argparse
import os
import sys
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with exit status 2; an argument of type Path can be looked up."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def error(self, message):
        one_line = " ".join(message.split())  # what was typed may hold line breaks
        print(f"{self.prog}: error: {one_line}", file=sys.stderr)
        raise SystemExit(2)


def _path(text):
    """A Path, whether or not something is there; not one that no file can have, or that may not be looked at."""
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, forbidden, a null character
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{text[:100]!r} cannot be a path: {reason}") from None
    return Path(text)


def one(choices):
    """Argument type: one of `choices`."""

    def parse(text):
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"{text!r} is unknown; choose from {', '.join(choices)}"
            )
        return text

    return parse


def some(choices):
    """Argument type: `choices` joined by commas, as a list without repetitions."""
    parse_one = one(choices)

    def parse(text):
        return list(dict.fromkeys(parse_one(name.strip()) for name in text.split(",")))

    return parse


def whole(text):
    """Argument type: an int of any sign."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def at_least(least):
    """Argument type: an int that is not smaller than `least`."""

    def parse(text):
        if (value := whole(text)) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return parse


positive = at_least(1)


def positives(text):
    """Argument type: positive ints joined by commas, as a sorted list without repetitions."""
    return sorted({positive(item.strip()) for item in text.split(",")})


def seconds(text):
    """Argument type: a positive, finite float."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value
