"""With this folder on PYTHONPATH, workers misbehave as told; every other process is left alone."""

import sys

if "bench.worker" in sys.orig_argv:
    import misbehaving

    misbehaving.begin()
