"""Statistics of every layer's attention: time and memory of streaming them, beside `output_attentions=True`.

    python -m bench.attention_memory
    python -m bench.attention_memory --seqlens 8192,32768 --impl triton --out runs/attention_memory.json

A row is one forward of the LLaMA of a preset, from the same weights and tokens:

model       the forward alone, with the attention of `--impl`
streamed    the same, and `models.observe.observing` gives q and k of every layer to `kernels.attention_statistics`
dense       transformers keeps the weights of every layer (`output_attentions=True`); then the formulas, layer by layer

Bytes are the most that is held through torch's allocator beyond the weights of the model (on a CPU in a forward of
its own, since recording takes time). Weights of 4 bytes x layers x heads x seqlen x seqlen have to be kept; where the
softmax and the formulas, which need three more matrices of a layer, would not fit as well, the row says so.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.cli import Parser
from bench.memory import CudaPeak, allocator_peak, free_bytes, weight_bytes
from kernels import attention_statistics
from kernels.attention_statistics.reference import dense_statistics
from kernels.implementations import IMPLEMENTATIONS, Unavailable, find
from models.bind import use
from models.build import build
from models.observe import observing
from models.presets import PRESETS

TEMPORARY = 3  # matrices of one layer: scores, softmax, and one of the formulas
FREE_SHARE = 0.8  # of the free memory that the dense way may take: others live on the machine too


def streamed(model, ids, impl):
    """{layer: AttentionStatistics} of one forward, whose attention `impl` computes too."""
    found = {}

    def visit(mixing):
        operands = mixing.operands
        found[mixing.layer] = attention_statistics(
            operands["q"], operands["k"], operands["softmax_scale"], impl=impl
        )

    with use(model, impl), observing(model, mixing=visit):
        model(ids, use_cache=False, logits_to_keep=1)
    return found


def plain(model, ids, impl):
    """One forward."""
    with use(model, impl):
        return model(ids, use_cache=False, logits_to_keep=1)


def dense(model, ids):
    """{layer: (entropy, distance, top_mass, span, received)} from the weights that transformers returns."""
    output = model(ids, use_cache=False, logits_to_keep=1, output_attentions=True)
    positions = torch.arange(ids.shape[1], device=ids.device)
    return {
        f"block {i}": (*dense_statistics(p, positions, 5, 0.01), p.sum(-2))
        for i, p in enumerate(output.attentions, 1)
    }


def kept_bytes(config, seqlen):
    """(bytes of the weights that `output_attentions=True` keeps, and with the temporary matrices of one layer)."""
    layer = 4 * config.num_attention_heads * seqlen**2
    return config.num_hidden_layers * layer, (config.num_hidden_layers + TEMPORARY) * layer


def measure(model, seqlen, impl):
    """The rows of one length: dicts of plain values."""
    device = model.device
    ids = torch.randint(
        model.config.vocab_size, (1, seqlen), generator=torch.Generator().manual_seed(0)
    ).to(device)
    ways = {
        "model": lambda: plain(model, ids, impl),
        f"streamed ({impl})": lambda: streamed(model, ids, impl),
        "dense": lambda: dense(model, ids),
    }
    rows = []
    for name, way in ways.items():
        row = {"seqlen": seqlen, "way": name, "seconds": None, "peak_bytes": None, "reason": ""}
        kept, needed = kept_bytes(model.config, seqlen)
        if name == "dense" and needed > FREE_SHARE * free_bytes(device):
            row["reason"] = (
                f"unavailable, because it would keep {kept / 1e9:.1f} GB of weights and needs "
                f"{needed / 1e9:.1f} GB, of which {free_bytes(device) / 1e9:.1f} GB are free"
            )
        else:
            row["seconds"], row["peak_bytes"] = _time_and_peak(way, model)
        rows.append(row)
    return rows


def _time_and_peak(way, model):
    """(seconds of one call, most bytes held beyond the weights of the model), after a first call on a GPU."""
    with torch.no_grad():
        if model.device.type == "cuda":
            way()
            peak = CudaPeak()
            peak.start()
            start = time.perf_counter()
            way()
            held = peak.read()["peak_allocated"] - weight_bytes(model)
            return time.perf_counter() - start, held
        start = time.perf_counter()
        way()
        return time.perf_counter() - start, allocator_peak(way)


def table_of(rows, title):
    table = Table(title=title, title_justify="left")
    for column in ("tokens", "way", "seconds", "MiB beyond the weights"):
        table.add_column(column, justify="left" if column == "way" else "right", overflow="fold")
    for row in rows:
        numbers = (row["reason"], "")
        if not row["reason"]:
            numbers = (f"{row['seconds']:.2f}", f"{row['peak_bytes'] / 2**20:,.1f}")
        table.add_row(f"{row['seqlen']:,}", row["way"], *numbers)
    return table


def make_parser():
    parser = Parser(
        prog="python -m bench.attention_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option(
        "--seqlens", default="512,1024,2048,4096,8192", metavar="N,…", help="(default: %(default)s)"
    )
    option("--preset", choices=PRESETS, default="paper-50m", help="(default: %(default)s)")
    option("--impl", choices=IMPLEMENTATIONS, default="torch", help="(default: %(default)s)")
    option("--out", metavar="FILE.json", help="also write the rows there")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    parts = args.seqlens.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        parser.error(
            f"--seqlens takes positive integers, separated by commas, got {args.seqlens!r}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        for operator in ("attention_statistics", "causal_attention"):
            find(operator, args.impl, device)
    except Unavailable as error:
        parser.error(f"--impl: {error}")
    model = build("llama", args.preset, device=device)
    longest = model.config.max_position_embeddings
    if max(map(int, parts)) > longest:
        parser.error(
            f"--seqlens: {args.preset} has {longest:,} positions, got {max(map(int, parts)):,}"
        )
    made = {"preset": args.preset, "impl": args.impl, "device": device, "torch": torch.__version__}
    rows = []
    for part in track(parts, "attention statistics", console=Console(stderr=True)):
        rows += measure(model, int(part), args.impl)
        if args.out:  # after every length, so that nothing measured is lost
            text = json.dumps(made | {"rows": rows}, indent=1) + "\n"
            Path(args.out).write_text(text, encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(rows, f"Attention statistics of LLaMA {args.preset} on {device}"))
    if args.out:
        console.print(f"wrote {args.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
