"""Finds the file of a profile and the reader for it."""

import json
from pathlib import Path

from profiles import kineto_file, nsight_file
from profiles.events import ProfileError, number_of

TRACES = ("trace.json.gz", "trace.json", "capture.sqlite")


def read_profile(path, domain=nsight_file.DOMAIN):
    """The Profile in a file or a capture folder.

    Raises:
        ProfileError: it is no profile, is damaged or lacks something; the message says what to do.
    """
    file = find_trace(Path(path))
    try:
        if file.name.endswith((".json", ".json.gz")):
            return kineto_file.read(file)
        return nsight_file.read(file, domain)
    except OSError as error:
        raise ProfileError(f"{file} cannot be read: {error.strerror}") from None


def find_trace(path):
    """The file with the events: `path` itself, or that of a capture folder."""
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise ProfileError(f"{path}: there is no such file or folder")
    if error := nsight_file.not_converted(path):
        raise error
    if path.suffix == ".sqlite" or path.name.endswith((".json", ".json.gz")):
        return path
    raise ProfileError(
        f"{path} is no profile: takes FILE.sqlite, trace.json, trace.json.gz or a folder of one capture"
    )


def _in_folder(folder):
    for name in TRACES:
        if (folder / name).is_file():
            return folder / name
    for file in sorted(folder.iterdir()):
        if error := nsight_file.not_converted(file):
            raise error
    manifest = folder / "manifest.json"
    if manifest.is_file() and (reason := _reason(manifest)):
        raise ProfileError(f"{folder}: the capture failed: {reason}")
    places = [
        f"{place}/{name}" for place in ("*", "profiles/*") for name in TRACES
    ]  # a run has profiles/
    inner = sorted({str(file.parent) for place in places for file in folder.glob(place)})
    if inner:
        some = ", ".join(inner[:3]) + (", …" if len(inner) > 3 else "")
        raise ProfileError(f"{folder} holds {number_of(len(inner), 'capture')}; choose one: {some}")
    raise ProfileError(f"{folder} holds no capture: none of {', '.join(TRACES)}")


def _reason(manifest):
    """Why a capture failed, as its manifest says; None if it says nothing."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8")).get("reason")
    except (ValueError, AttributeError, RecursionError):
        raise ProfileError(f"{manifest} is no JSON object; capture again") from None
