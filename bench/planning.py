"""From options to a run directory: everything is read and checked before anything is written."""

import itertools
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.cost import sizes
from bench.forward import build_planned, planned_preset
from bench.machine import describe
from bench.plan import Plan, PlanError, make_cells
from bench.records import now
from bench.sessions import SessionError, read, stream
from bench.slices import WHOLE, label
from bench.tokens import TokensError, token_stream
from models.architectures import REGISTRY
from models.build import outline, parameter_counts
from models.checkpoint_tokenizer import tokenizer_of

PAPER_SESSIONS = 4


def make_plan(options, command=""):
    """(Plan, Tokens) of resolved options; PlanError with one line for anything that cannot be had."""
    tokenizer = _tokenizer(options)
    options = options | {"vocabulary": tokenizer.vocab_size}
    architectures = {arch: _architecture(arch, options, tokenizer) for arch in options["arch"]}
    tokens = read_tokens(options, tokenizer)
    preset = options["preset"] + ("+checkpoint" if options["checkpoint"] else "")
    cells = [
        cell
        for depth in options["slice"] or [WHOLE]
        for cell in make_cells(
            options["arch"], options["impl"], label(preset, depth), options["seqlens"], options["batch"],
            options["dtype"], options["launch"], options["mode"],
        )
    ]  # fmt: skip
    plan = Plan(
        cells=cells,
        rounds=options["rounds"],
        seed=options["seed"],
        protocol=options["protocol"],
        preset=preset
        if not options["slice"]
        else f"{preset}@{','.join(map(str, options['slice']))}",
        options=options,
        architectures=architectures,
        tokens={
            "sha256": tokens.sha256,
            "sessions": tokens.sessions,
            "padded": {str(n): tokens.padding_at(n) for n in options["seqlens"]},
        },
        created=now(),
        command=command,
    )
    return plan, tokens


def create(path, plan, tokens):
    """Make the run directory: it appears whole, or not at all."""
    path = Path(path)
    machine = describe(plan.options["device"])
    if machine["gpu"]:
        torch.cuda.empty_cache()  # the workers' device_used should not count what measuring the peaks took
    part = path.parent / f".{path.name}.{os.getpid()}"
    try:
        part.mkdir(parents=True)
        (part / "references").mkdir()
        plan.write(part / "plan.json")
        (part / "machine.json").write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")
        save_file({"ids": tokens.ids}, part / "references" / "tokens.safetensors")
        (part / "log.txt").touch()
        part.rename(path)
    except OSError as error:
        raise PlanError(f"--out {path}: cannot be made: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _tokenizer(options):
    try:
        return tokenizer_of(options["tokenizer"], options["checkpoint"])
    except (OSError, ValueError) as error:
        raise PlanError(f"--tokenizer {options['tokenizer']}: {error}") from None


def _architecture(arch, options, tokenizer):
    """Parameter counts and sizes of one architecture: a checkpoint is loaded once, a preset only outlined."""
    trained = arch in options["checkpoint"]
    try:
        model = build_planned(arch, options) if trained else outline(arch, planned_preset(options))
    except (OSError, ValueError, ImportError) as error:
        raise PlanError(str(error)) from None
    config, counts = model.config, parameter_counts(model)
    if config.vocab_size < tokenizer.vocab_size:
        raise PlanError(
            f"--tokenizer {options['tokenizer']}: its {tokenizer.vocab_size:,} ids do not fit the "
            f"{config.vocab_size:,} of the {arch} checkpoint"
        )
    depths = [depth for depth in options["slice"] or () if depth != WHOLE]
    if depths and max(depths) >= config.num_hidden_layers:
        raise PlanError(
            f"--slice {','.join(map(str, options['slice']))}: {arch} has {config.num_hidden_layers} layers, so a slice "
            f"of {max(depths)} leaves nothing to extend to; leave --slice out, or take less"
        )
    positions = getattr(config, "max_position_embeddings", None)
    longest, decoded = max(options["seqlens"]), "decode" in options["mode"]
    if positions is not None and longest + decoded > positions:
        needs = f"the token decoded after {longest:,} needs one more, and " if decoded else ""
        raise PlanError(
            f"--seqlens {longest}: {needs}{arch} has {positions:,} positions (preset {options['preset']})"
        )
    return {"total": counts.total, "embedding": counts.embedding, "other": counts.other} | {
        "sizes": sizes(config, counts),
        # of the whole depth: no floor of a slice
        ("whole_config" if depths else "config"): {
            name: getattr(config, name) for name in REGISTRY[arch].settings
        },
    }


def read_tokens(options, tokenizer):
    """The Tokens that the options of a plan ask for; PlanError where there are too few."""
    try:
        if options["sessions"] is not None:
            sessions = read(options["sessions"])
        else:
            sessions = stream(options["seed"], options["kind"])
            if options["protocol"] == "paper":
                sessions = itertools.islice(sessions, PAPER_SESSIONS)
        longest = max(options["seqlens"]) + ("decode" in options["mode"])
        rows = max(options["batch"])
        return token_stream(sessions, tokenizer, longest, rows, options["protocol"])
    except (OSError, SessionError, TokensError) as error:
        raise PlanError(f"--{error}" if isinstance(error, TokensError) else str(error)) from None
