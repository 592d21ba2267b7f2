"""Kernels compile in a process of their own: whether they are interpreted is decided when they are imported."""

import json
import os
import subprocess
import sys
from pathlib import Path


def printed(script, *arguments):
    """What a script, run where Triton compiles, prints: one JSON value a line."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_name(script, *arguments):
    """{its "name": value} of what a script prints."""
    return {case["name"]: case for case in printed(script, *arguments)}
