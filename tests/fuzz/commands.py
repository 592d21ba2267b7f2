"""Command lines, called in this process."""

import contextlib
import io
import os
from unittest import mock

from tests.fuzz.examples import check_one_line

REFUSED = 2


class Reached(BaseException):
    """The arguments were accepted: here the work would begin. No handler of a command takes it for an error."""


def check_command(main, argv, statuses, work=()):
    """Run `main(argv)` and judge its status and what it says; returns the status.

    Args:
        statuses: those that the command documents, for such arguments.
        work: "module.function"s that are not called: what takes long, or would leave something behind.
    """
    out, error = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(error))
        stack.enter_context(mock.patch.dict(os.environ))
        for function in work:
            stack.enter_context(mock.patch(function, side_effect=Reached))
        try:
            status = main(argv)
        except SystemExit as ended:
            status = ended.code
        except Reached:
            status = 0
    status = status or 0
    assert status in statuses, f"exit status {status!r}: {error.getvalue()}"
    assert "Traceback" not in error.getvalue()
    if status == REFUSED:
        check_one_line(error.getvalue())
    return status
