"""Where the jobs of a run are worked on: the devices of this machine, a Ray cluster, or Slurm.

An engine has
    places      what works at the same time, one job each: UUIDs of GPUs, or None where the engine chooses
    splits      whether a round is split into blocks: all cells of one length, on one device, in one fresh process
    start(assignment, place, log) -> Stream
    close()
and everything else (order, timeouts, deaths, records) is the same for all: see bench.runner
and bench.attempt.
"""
