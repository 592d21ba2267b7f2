"""Write sessions as files: the JSON of the paper, with labels beside it."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.sessions.session import Session, SessionError, to_json

SAFE_NAME = re.compile(r"[\w-][\w.-]{0,99}", re.ASCII)


def write(sessions: Sequence[Session], folder) -> list[Path]:
    """One JSON file per session, named by its id, in a folder that is new or empty.

    Everything is written beside the folder and moved into place at the end, so a failure leaves nothing behind.
    """
    folder = Path(folder)
    check_free(folder)
    names = [
        s.id if SAFE_NAME.fullmatch(s.id) else f"session-{i:04d}" for i, s in enumerate(sessions)
    ]
    if len({name.lower() for name in names}) < len(names):
        raise SessionError("two sessions have the same id; rename one of them")
    made = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name, session in zip(names, sessions, strict=True):
            content = json.dumps(to_json(session), ensure_ascii=False, indent=1)
            (made / f"{name}.json").write_text(content + "\n", encoding="utf-8")
        made.chmod(0o755)
        os.replace(made, folder)
    except OSError as error:
        raise SessionError(
            f"{folder}: cannot be written ({(error.strerror or 'failed').lower()})"
        ) from None
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made)
    return [folder / f"{name}.json" for name in names]


def check_free(folder):
    """SessionError unless `folder` is new or empty."""
    folder = Path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise SessionError(f"{folder}: is a file; choose a folder that is new or empty")
        if folder.is_dir() and any(folder.iterdir()):
            raise SessionError(f"{folder}: is not empty; choose a folder that is new or empty")
    except OSError as error:
        raise SessionError(f"{str(folder)!r}: {(error.strerror or 'failed').lower()}") from None
    except ValueError as error:
        if isinstance(error, SessionError):
            raise
        raise SessionError(f"{str(folder)!r}: not the name of a folder") from None
