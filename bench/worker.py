"""One fresh process of a run: it runs what the parent names and reports each step on its standard output.

    python -m bench.worker RUN        (started by bench.engines; the job comes on standard input)

The job is one line of JSON, as `bench.blocks.Job` writes it. Events leave on the original standard output, one line of
JSON each; everything that code prints goes to standard error, which the parent sends to log.txt. When standard
input closes, the parent is gone and the process ends.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path


class Events:
    """Writes events for the parent; takes the original standard output away from everybody else."""

    def __init__(self):
        self._file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, event, **fields):
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()


def follow_parent(stdin):
    """End this process, whatever it is doing, as soon as the parent's end of the pipe closes.

    `stdin` is unbuffered: a buffered reader's lock, held by the waiting thread, would abort a normal exit.
    """

    def wait():
        stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def volunteer():
    """Be the first to go when memory runs out, not the parent with the results."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def main(argv=None):
    """Run one job; returns the exit status."""
    (run,) = sys.argv[1:] if argv is None else argv
    stdin = os.fdopen(os.dup(0), "rb", buffering=0)
    job = json.loads(stdin.readline())
    events = Events()
    follow_parent(stdin)
    volunteer()

    from bench.blocks import cells_here, place
    from bench.jobs import Lab, Poisoned

    lab = Lab(run)
    events.send("device", device=lab.place)
    job["cells"] = cells_here(job, place(lab.place))
    tasks = {"prepare": lab.prepare, "round": lab.round}
    try:
        tasks[job["task"]](job, events)
    except Poisoned:
        traceback.print_exc()
        return 3
    events.send("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
