"""Prefills of long contexts in chunks, with carried state and cache: tokens per second, memory, time chunk by chunk.

    python -m bench.long_context --impl triton --seqlens 131072,1048576 --chunk 16384 --dtype bf16 --out runs/long
    torchrun --nproc-per-node 8 -m bench.long_context --impl triton --seqlens 1048576 --dtype bf16 --out runs/long

Each case is read once, after its outputs on a prefix passed the accuracy rule and one chunk warmed it up; the time of a
chunk grows with attention's cache and stays the same with a scan's state. What a case takes in memory is predicted
first, and a case that would not fit is not tried. (Rounds, and intervals over them: `bench.sweep --chunk`.)

Under torchrun the sequence is cut over the processes, each with its segment in one pass: the scan exchanges states, the
attention keys and values. Tokens are drawn at random: no step depends on which they are. `--out` keeps a line a case in
long.jsonl, with a table and a picture; a second call measures only what is missing there.
"""

import argparse
import json
import os
import sys
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from bench import long_case, long_table
from bench.availability import fate
from bench.cli import Parser, one, positive, positives, seconds, some, whole
from bench.cost import sizes
from bench.forward import TORCH_DTYPES
from bench.long_case import Case, OverTime
from bench.memory import is_out_of_memory, weight_bytes
from bench.records import Appender, one_line
from kernels.implementations import IMPLEMENTATIONS, Unavailable
from models.build import build, parameter_counts
from models.presets import PRESETS

NAME = "long.jsonl"
ARCHITECTURES = (
    "mamba",
    "llama",
)  # whose memory is counted and whose sequence can be cut over processes


def make_parser():
    parser = Parser(
        prog="python -m bench.long_context",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = parser.add_argument
    gpu = torch.cuda.is_available()
    option("--impl", type=some(IMPLEMENTATIONS), default=["triton" if gpu else "cpu"], metavar="LIST",
           help="implementations (default: triton on a GPU, else cpu)")  # fmt: skip
    option("--arch", type=some(ARCHITECTURES), default=list(ARCHITECTURES), metavar="LIST",
           help="architectures (default: mamba,llama)")  # fmt: skip
    option("--preset", type=one(PRESETS), default="paper-50m", metavar="NAME",
           help="sizes of the models; positions are raised to what is read (default: %(default)s)")  # fmt: skip
    option("--seqlens", type=positives, default=[131_072, 1_048_576], metavar="LIST",
           help="tokens (default: 131072,1048576)")  # fmt: skip
    option("--chunk", type=positive, default=16_384, metavar="TOKENS",
           help="tokens of a chunk, in one process (default: %(default)s)")  # fmt: skip
    option("--batch", type=positive, default=1, metavar="N", help="rows (default: %(default)s)")
    option("--dtype", type=one(TORCH_DTYPES), default="fp32", metavar="NAME",
           help="fp32, tf32, bf16 or fp16 (default: %(default)s)")  # fmt: skip
    option("--balanced", action="store_true",
           help="under torchrun: LLaMA's ranks hold a piece from the front and one from the end, so that all attend to "
           "as many keys (default: contiguous segments)")  # fmt: skip
    option("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu",
           help="default: the GPU if there is one")  # fmt: skip
    option("--threads", type=positive, metavar="N", help="of CPU kernels (default: torch's choice)")
    option("--seed", type=whole, default=0, help="of weights and tokens (default: %(default)s)")
    option("--case-timeout", type=seconds, default=600.0, metavar="SECONDS",
           help="a case ends after the chunk that exceeds it, and keeps its curve (default: %(default)g)")  # fmt: skip
    option("--out", type=Path, metavar="DIR",
           help="keep rows, table and picture there (default: print only)")  # fmt: skip
    return parser


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    for arch in args.arch:
        if getattr(PRESETS[args.preset], arch) is None:
            parser.error(
                f"--preset {args.preset}: it has no {arch}; choose another, or leave it out of --arch"
            )
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            read_rows(args.out / NAME)
        except OSError as error:
            parser.error(f"--out {args.out}: cannot be made: {error.strerror or error}")
        except ValueError as error:
            parser.error(
                f"--out {args.out}: {NAME} has a broken line ({error}); choose another folder"
            )
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        return launch(args)
    except KeyboardInterrupt:
        print("interrupted; the same command with --out goes on where it stopped", file=sys.stderr)
        return 130


def launch(args):
    """Run in this process, or as one of those that torchrun started; returns the exit status."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return run(args, Console(stderr=True))
    rank = int(os.environ["RANK"])
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    try:
        return run(args, Console(stderr=True, quiet=rank > 0), processes, rank)
    finally:
        dist.destroy_process_group()


def run(args, console, processes=1, rank=0):
    """Measure what is missing, print the table, and write table and picture; returns the exit status."""
    cases = [
        Case(arch, impl, args.preset, args.dtype, args.batch, seqlen,
             args.chunk if processes == 1 else None, processes)
        for arch in args.arch for seqlen in args.seqlens for impl in args.impl
    ]  # fmt: skip
    file = None if args.out is None else args.out / NAME
    rows = read_rows(file)
    known = {Case(**{name: row[name] for name in asdict(cases[0])}) for row in rows}
    todo = [case for case in cases if case not in known]
    if processes > 1:
        dist.barrier()  # all have read the file before the first line is appended
    keep = None
    if file is not None and rank == 0:
        keep = Appender(file)
    with closing(keep) if keep else nullcontext():
        lab = Lab(args, max(args.seqlens))
        for number, case in enumerate(todo, 1):
            console.print(f"{number} of {len(todo)}: {case}", highlight=False)
            rows.append(lab.row(case))
            if keep:
                keep.append(rows[-1])
            console.print(f"  {long_table.outcome(rows[-1])}", highlight=False)
    if rank == 0:
        conclude(rows, args.out)
    return 0


class Lab:
    """The models of a run, built as they are asked for: one at a time is in memory."""

    def __init__(self, args, longest):
        self.args, self.longest = args, longest
        self.device = torch.device(args.device)
        self._arch = self._model = self._proof = None
        generator = torch.Generator().manual_seed(args.seed)
        vocabulary = min(getattr(PRESETS[args.preset], arch)["vocab_size"] for arch in args.arch)
        ids = torch.randint(vocabulary, (args.batch, longest), generator=generator)
        self.ids = ids.to(self.device)

    def row(self, case):
        """Measure a case: its row, with what went wrong if anything did."""
        row = long_case.new_row(case, str(self.args.device))
        kind, reason = fate(case.cell, self.device)
        if kind == "interpreted":
            reason = "no GPU: Triton's interpreter says nothing about time"
        if kind != "measured":
            return row | {"status": "unavailable", "reason": reason}
        try:
            model = self._get(case.arch)
            needs = long_case.predicted(case, sizes(model.config, parameter_counts(model)))
            row["memory_bytes"] = {"weights": weight_bytes(model), "predicted": needs}
            if reason := long_case.too_large(needs, self.device, case.processes):
                return row | {"status": "unavailable", "reason": reason}
            self._measure(row, model, case)
        except (NotImplementedError, Unavailable) as error:
            row.update(status="unavailable", reason=one_line(error, kind=False))
        except OverTime as error:
            row.update(status="timeout", reason=str(error))
        except Exception as error:
            row.update(status="oom" if is_out_of_memory(error) else "error", reason=one_line(error))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return row

    def _measure(self, row, model, case):
        if self._proof is None:
            self._proof = long_case.Proof(model, self.ids, case.dtype)
        ids = self.ids[:, : case.seqlen]
        if case.processes > 1:
            long_case.measure_parallel(row, model, ids, case, self._proof, self.args.balanced)
        else:
            long_case.measure(row, model, ids, case, self._proof, self.args.case_timeout)

    def _get(self, arch):
        if self._arch != arch:
            self._model = self._proof = None  # the memory of the one before
            preset = PRESETS[self.args.preset].with_positions(self.longest)
            dtype = TORCH_DTYPES[self.args.dtype]
            self._model = build(arch, preset, seed=self.args.seed, dtype=dtype, device=self.device)
            self._arch = arch
        return self._model


def read_rows(file):
    """The rows of a long.jsonl, a torn last line aside; none where there is no file."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def conclude(rows, out):
    """Print the table, and write it and the picture."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(long_table.table(rows))
    for line in long_table.notes(rows):
        console.print(line, soft_wrap=True, highlight=False)
    if out is not None:
        from bench import long_figure  # matplotlib takes a second

        (out / "long.md").write_text(long_table.markdown(rows), encoding="utf-8")
        for name in ("long.md", *long_figure.write(rows, out)):
            console.print(f"wrote {out / name}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
