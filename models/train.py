"""Train the small presets from our own initialisation, with the forward and backward of one implementation.

The result is a local checkpoint of each architecture, so that metrics run on weights that mean something:

    python -m models.train --out runs/small
    python -m bench.sweep --checkpoint llama=runs/small/llama --checkpoint mamba=runs/small/mamba --metrics

Ctrl-C ends after the step that is running; --resume goes on from there and computes the same bits. In --out:
ARCH/ (config.json, model.safetensors), loss.jsonl, loss.png, train.json, and state-ARCH.safetensors until ARCH is done.
"""

import argparse
import itertools
import json
import shlex
import sys
import time
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.cli import Parser
from bench.sessions import SessionError, read, stream, text
from kernels.clash import clash
from kernels.implementations import IMPLEMENTATIONS, Unavailable, find
from models.bind import OPERATORS
from models.huggingface import transformers
from models.loss_curve import draw
from models.presets import PAIR, PRESETS
from models.tokenizer import TokenizerError, load
from models.train_loop import StateError, replacing
from models.train_run import LOG, read_log, train
from models.train_tasks import Copy, Recall, Text

DEFAULTS = {"arch": "llama,mamba", "preset": "tiny", "task": "sessions", "impl": "auto", "seed": 0}
TASKS = {  # minutes on two cores
    "sessions": {"steps": 250, "batch": 2, "seqlen": 256, "lr": 3e-3},
    "copy": {"steps": 300, "batch": 32, "seqlen": 9, "lr": 5e-3},
    "recall": {"steps": 1000, "batch": 32, "seqlen": 16, "lr": 5e-3},
}
GENERATED = 40  # sessions, about 300,000 tokens
TOKENIZER = "gpt2-32k"
SETTINGS = "train.json"


class TrainError(ValueError):
    """A training that cannot be done; the message is one line."""


def make_parser():
    """The options; one that is not given is None, for --resume to tell it from a default."""
    by_task = lambda name: ", ".join(f"{values[name]} for {task}" for task, values in TASKS.items())
    parser = Parser(
        prog="python -m models.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--arch", type=_archs, metavar="LIST", help=f"architectures (default: {DEFAULTS['arch']})")
    add("--preset", choices=PRESETS, help=f"sizes of the models (default: {DEFAULTS['preset']})")
    add("--task", choices=TASKS,
        help=f"language modelling, copying, or associative recall (default: {DEFAULTS['task']})")  # fmt: skip
    add("--sessions", metavar="PATH",
        help="transcripts for --task sessions, a file or a folder (default: generated sessions)")  # fmt: skip
    add("--impl", choices=("auto", *IMPLEMENTATIONS), metavar="NAME",
        help=f"{', '.join(IMPLEMENTATIONS)} (default: auto: triton on a GPU, cpu without one)")  # fmt: skip
    add(
        "--steps",
        type=_positive,
        metavar="N",
        help=f"optimiser steps (default: {by_task('steps')})",
    )
    add(
        "--batch",
        type=_positive,
        metavar="B",
        help=f"sequences in a step (default: {by_task('batch')})",
    )
    add(
        "--seqlen",
        type=_positive,
        metavar="L",
        help=f"tokens of a sequence (default: {by_task('seqlen')})",
    )
    add("--lr", type=_rate, help=f"highest learning rate (default: {by_task('lr')})")
    add("--seed", type=int, help=f"of weights, text and batches (default: {DEFAULTS['seed']})")
    add(
        "--save-every",
        type=_positive,
        default=50,
        metavar="N",
        help="steps between saved states (default: 50)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="the folder to write to (default: runs/train-<timestamp>)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the training in --out, with the options that it began with",
    )
    return parser


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = make_parser()
    said = {name: v for name, v in vars(parser.parse_args(argv)).items() if v is not None}
    save_every, resume, out = said.pop("save_every"), said.pop("resume"), said.pop("out", None)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if wrong := clash():
        parser.error(wrong)
    transformers().logging.disable_progress_bar()  # there is one bar: ours
    try:
        options = reopen(out, said) if resume else resolve(said)
        task = make_task(options)
        folder = out if resume else create(out, options)
        torch.set_num_threads(options["threads"])
        for arch in options["arch"]:
            if (folder / arch).is_dir():
                continue
            if not train(arch, options, task, folder, save_every, console):
                again = shlex.join(
                    ["python", "-m", "models.train", "--out", str(folder), "--resume"]
                )
                console.print(f"interrupted; to go on: {again}")
                return 130
        report(folder, options)
    except (TrainError, StateError, SessionError, TokenizerError, Unavailable, OSError) as error:
        parser.error(str(error))
    except FloatingPointError as error:
        console.print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    return 0


def resolve(said):
    """Every option decided, as plain JSON values; TrainError or Unavailable for what cannot run here."""
    options = DEFAULTS | {"sessions": None} | TASKS[said.get("task", DEFAULTS["task"])] | said
    options["arch"] = (
        _archs(options["arch"]) if isinstance(options["arch"], str) else options["arch"]
    )
    has_gpu = torch.cuda.is_available()
    if options["impl"] == "auto":
        options["impl"] = "triton" if has_gpu else "cpu"
    options["device"] = "cuda" if has_gpu and options["impl"] != "cpu" else "cpu"
    options["threads"] = (
        torch.get_num_threads()
    )  # sums over threads round otherwise with another number
    if options["sessions"] is not None and options["task"] != "sessions":
        raise TrainError(f"--sessions: --task {options['task']} makes its own tokens")
    for arch in options["arch"]:
        for operator in OPERATORS[arch]:
            find(operator, options["impl"], options["device"])
    return options


def reopen(out, said):
    """The options of the training in `out`; TrainError if it is none, or something else is asked for."""
    if out is None:
        raise TrainError("--resume: name the training with --out DIR")
    try:
        options = json.loads((out / SETTINGS).read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError) as error:
        raise TrainError(f"--resume: {out} holds no training ({error})") from None
    for name, value in said.items():
        if value != options[name]:
            shown = ",".join(options[name]) if isinstance(options[name], list) else options[name]
            raise TrainError(
                f"--{name}: the training in {out} began with {shown}; leave the option out, or start another"
            )
    return options


def create(out, options):
    """Make the folder of a new training and write its options."""
    folder = out or Path("runs") / time.strftime("train-%Y-%m-%d-%H%M%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainError(f"--out {folder}: is not empty; add --resume to go on, or choose another")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SETTINGS) as part:
        settings = {"options": options, "torch": torch.__version__}
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return folder


def make_task(options):
    """What makes the batches; TrainError if the sizes do not go together."""
    seqlen = options["seqlen"]
    try:
        if options["task"] != "sessions":
            return {"copy": Copy, "recall": Recall}[options["task"]](seqlen)
        if options["sessions"] is not None:
            sessions = read(options["sessions"])
        else:
            sessions = itertools.islice(stream(options["seed"], "dyadic"), GENERATED)
        encode = load(TOKENIZER).encode
        ids = [i for session in sessions for i in encode(text(session) + "\n")]
        return Text(ids, seqlen)
    except (TrainError, SessionError):
        raise
    except ValueError as error:
        raise TrainError(str(error)) from None


def report(folder, options):
    """The loss curve, and a table of what was learned."""
    records = read_log(folder / LOG)
    draw(records, f"{options['preset']} on {options['task']}", folder / "loss.png")
    table = Table("architecture", "steps", "first loss", "last loss", "held out", "right, held out", "minutes",
                  box=box.SIMPLE_HEAD)  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for arch in options["arch"]:
        *steps, end = (record for record in records if record["arch"] == arch)
        held, minutes = end["held_out"], sum(record["seconds"] for record in steps) / 60
        table.add_row(
            arch, str(end["step"]), f"{steps[0]['loss']:.3f}", f"{steps[-1]['loss']:.3f}",
            f"{held['loss']:.3f}", f"{held['accuracy']:.1%}", f"{minutes:.1f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    checkpoints = " ".join(f"--checkpoint {arch}={folder / arch}" for arch in options["arch"])
    print(f"{folder}/loss.png; to use the weights: python -m bench.sweep {checkpoints}")


def _archs(value):
    found = list(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in found:
        if name not in PAIR:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose from {', '.join(PAIR)}")
    return found


def _positive(value):
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number above 0")
    return int(value)


def _rate(value):
    try:
        rate = float(value)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number between 0 and 1")
    return rate


if __name__ == "__main__":
    sys.exit(main())
