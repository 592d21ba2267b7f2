"""The options of the engines, and the engine that they ask for."""

import argparse
import importlib.util
import os
import shlex
import shutil
import socket

import torch

from bench.cli import positive
from bench.device import visible_gpus
from bench.engines.local import LocalEngine
from bench.plan import PlanError

LOOPBACK = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # if 0, Ray keeps to this machine's loopback, on Linux too
)
PACKAGES = {"ray": "ray", "slurm": "submitit"}
ENGINES = ("local", *PACKAGES)
ONLY = {"ray_address": "ray", "slurm_partition": "slurm", "slurm_time": "slurm", "slurm_extra": "slurm"}  # fmt: skip
REACH_S = 10.0
OPTIONS = ("engine", "devices", *ONLY)


def add_options(parser):
    """Add the options of `OPTIONS` to the parser of the sweep."""
    where = parser.add_argument_group("where it runs").add_argument
    where("--engine", choices=ENGINES, default="local",
          help="local: this machine; ray: a Ray cluster; slurm: jobs of Slurm, with the run on a shared file system. "
          "Where there are several devices, the cells of one length of a round share one of them")  # fmt: skip
    where("--devices", type=_devices, default="all", metavar="N",
          help="that work at the same time: GPUs of this machine, or of the cluster (all: up to 64)")  # fmt: skip
    where("--ray-address", default="local", metavar="ADDRESS",
          help="of a running cluster: HOST:PORT or auto; local: start Ray on this machine")  # fmt: skip
    where("--slurm-partition", default=argparse.SUPPRESS, metavar="NAME",
          help="without it: Slurm's default")  # fmt: skip
    where("--slurm-time", type=positive, default=60, metavar="MINUTES",
          help="limit of a job; all cells of one length of a round must fit in it")  # fmt: skip
    where("--slurm-extra", type=_pair, action="append", default=argparse.SUPPRESS, metavar="KEY=VALUE",
          help="further options of sbatch, such as account=NAME (repeatable)")  # fmt: skip


def check_engine(args, said):
    """PlanError if the options of the engine do not go together, or if what it needs is not installed."""
    for name, engine in ONLY.items():
        if name in said and args.engine != engine:
            raise PlanError(f"--{name.replace('_', '-')}: only together with --engine {engine}")
    package = PACKAGES.get(args.engine)
    if package and importlib.util.find_spec(package) is None:
        raise PlanError(
            f"--engine {args.engine}: the package {package} is not installed; pip install 'crossover-lab[cluster]'"
        )
    if args.engine == "ray" and args.ray_address not in ("local", "auto"):
        _reach(args.ray_address)
    if args.engine == "slurm" and shutil.which("sbatch") is None:
        raise PlanError("--engine slurm: there is no sbatch on this machine; use --engine local")


def make_engine(args, run, plan):
    """The engine of a run; PlanError if it cannot be had. It is closed by its user."""
    at_once = {} if args.devices == "all" else {"at_once": args.devices}
    if args.engine == "ray":
        if args.ray_address == "local":
            os.environ.setdefault(LOOPBACK, "0")  # read when ray is imported
        from bench.engines.ray_engine import RayEngine

        return RayEngine(run, plan, args.ray_address, **at_once)
    if args.engine == "slurm":
        from bench.engines.slurm_engine import SlurmEngine

        extra = dict(getattr(args, "slurm_extra", ()))
        partition = getattr(args, "slurm_partition", None)
        return SlurmEngine(run, plan, partition, args.slurm_time, extra, **at_once)
    return LocalEngine(_gpus(plan.options["device"], args.devices))


def engine_words(said):
    """The options of the engine that were said, as they are repeated to resume a run."""
    words = []
    for name in OPTIONS:
        for value in said.get(name, ()) if name == "slurm_extra" else [said.get(name)]:
            if value is not None:
                value = "=".join(value) if name == "slurm_extra" else str(value)
                words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def _gpus(device, wanted):
    """UUIDs of the GPUs to work on at the same time, none where it is one device."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    if wanted != "all" and wanted > count:
        have = f"{count} GPU{'s' * (count != 1)}" if device == "cuda" else "one CPU"
        raise PlanError(f"--devices {wanted}: this machine shows {have}")
    use = count if wanted == "all" else wanted
    return visible_gpus()[:use] if use > 1 else []


def _reach(address):
    """PlanError if nothing answers at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except ValueError:
        raise PlanError(f"--ray-address {address}: is not HOST:PORT, auto or local") from None
    except OSError as error:
        raise PlanError(f"--ray-address {address}: no cluster answers: {error}") from None


def _devices(text):
    return text if text == "all" else positive(text)


def _pair(text):
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
