"""Workers on this machine: one at a time, or one on each of several GPUs."""

from dataclasses import replace

from bench.engines.node import Worker


class LocalEngine:
    """The devices of this machine.

    Args:
        gpus: UUIDs of several GPUs to work on at the same time; without them one worker at a time runs a whole round,
            on the device that torch chooses.
    """

    def __init__(self, gpus=()):
        self.places = list(gpus) or [None]
        self.splits = len(self.places) > 1

    def start(self, assignment, place, log):
        if place is not None:
            settings = assignment.settings | {"CUDA_VISIBLE_DEVICES": place}
            assignment = replace(assignment, settings=settings)
        return Worker(assignment, log)

    def close(self):
        """Nothing is held."""
