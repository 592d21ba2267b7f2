"""The events of one worker, wherever it runs."""

import queue
import threading

KILL_EVERY_S = 5.0


class Stream:
    """A worker as the parent sees it: a subclass says how events are read and how it is killed.

    Attributes:
        status: the exit status of the worker process, None as long as it is not known.
        lost: why the worker went away through no doing of its own; else empty.
    """

    def __init__(self):
        self.status, self.lost = None, ""
        self._events = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def event(self, timeout):
        """The next event; None once there are no more. Raises queue.Empty after `timeout` seconds (None: never)."""
        return self._events.get(timeout=None if timeout is None else max(0.0, timeout))

    def kill(self):
        """Make the worker end, from any thread; the events then come to their end."""
        raise NotImplementedError

    def end(self, grace=0.0):
        """Let the worker end by itself for `grace` seconds, then kill it; returns its exit status."""
        self._reader.join(grace)
        while self._reader.is_alive():
            self.kill()
            self._reader.join(KILL_EVERY_S)
        return self.status

    def _read(self):
        try:
            for event in self._produce():
                if event["event"] == "exit":
                    self.status = event["status"]
                else:
                    self._events.put(event)
            if self.status is None and not self.lost:
                self.lost = "was lost"
        finally:
            self._events.put(None)

    def _produce(self):
        """Events as they come, the last one `exit`; without that one the worker was lost."""
        raise NotImplementedError
