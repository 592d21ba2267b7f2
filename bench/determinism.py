"""The same inputs, the same bits: every operator many times, outputs and gradients compared with the first run's.

    python -m bench.determinism                       1,000 runs of each on a GPU, 20 on a CPU
    python -m bench.determinism --impl cpu --repetitions 100
    compute-sanitizer python -m bench.determinism --repetitions 1 --size small

Sizes are ragged and long enough that sequences are split among programs, where an order could come in.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import kernels
from bench.cli import Parser, seconds, some
from bench.kernel_problems import OPERATORS
from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.causal_conv1d.problem import CausalConv1dProblem
from kernels.implementations import IMPLEMENTATIONS, Unavailable, interpreted
from kernels.selective_scan.problem import SelectiveScanProblem

# {device type: (problem of the scan, of the convolution, of attention, of attention with few queries)}
PROBLEMS = {
    "cuda": (
        SelectiveScanProblem(1, 4099, 1000),
        CausalConv1dProblem(batch=2, dim=1000, seqlen=4099),
        CausalAttentionProblem(batch=1, nheads=8, seqlen=2051, headdim=64, nheads_kv=2),
        CausalAttentionProblem(
            batch=1, nheads=8, seqlen=8195, headdim=128, nheads_kv=2, seqlen_q=1
        ),
    ),
    "cpu": (
        SelectiveScanProblem(1, 131, 24),
        CausalConv1dProblem(batch=2, dim=24, seqlen=131),
        CausalAttentionProblem(batch=1, nheads=4, seqlen=131, headdim=16, nheads_kv=2),
        CausalAttentionProblem(batch=1, nheads=4, seqlen=131, headdim=16, nheads_kv=2, seqlen_q=1),
    ),
}
SMALL = (  # for tools under which a kernel takes a thousand times as long
    SelectiveScanProblem(1, 301, 40),
    CausalConv1dProblem(batch=2, dim=40, seqlen=301),
    CausalAttentionProblem(batch=1, nheads=4, seqlen=301, headdim=64, nheads_kv=2),
    CausalAttentionProblem(batch=1, nheads=4, seqlen=301, headdim=64, nheads_kv=2, seqlen_q=1),
)
DTYPES = {"cuda": (torch.float32, torch.bfloat16), "cpu": (torch.float32,)}


def cases(impl, device, dtype, problems=None):
    """[(name, function without arguments that returns fresh tensors)] for one implementation."""
    scan, conv, attention, decode = problems or PROBLEMS[torch.device(device).type]
    found = []
    for operator, problem in (
        ("selective_scan", scan),
        ("causal_conv1d", conv),
        ("causal_attention", attention),
    ):
        compute = partial(getattr(kernels, operator), impl=impl)
        inputs = problem.inputs(dtype, device)
        found.append((operator, partial(_forward, compute, inputs)))
        found.append((f"{operator} backward", partial(_gradients, compute, inputs)))
    few = partial(kernels.causal_attention, impl=impl)
    found.append(
        ("causal_attention, one query", partial(_forward, few, decode.inputs(dtype, device)))
    )
    rows = attention.inputs(dtype, device)
    statistics = partial(kernels.attention_statistics, impl=impl)
    found.append(("attention_statistics", partial(_statistics, statistics, rows["q"], rows["k"])))
    operands = scan.inputs(dtype, device)
    statistics = partial(kernels.scan_statistics, delta_softplus=True, impl=impl)
    steps = [operands[name] for name in ("delta", "A", "B", "C", "delta_bias")]
    found.append(("scan_statistics", partial(_statistics, statistics, *steps)))
    found.append(("selective_state_update", partial(_state_update, impl, scan, dtype, device)))
    found.append(("causal_conv1d_update", partial(_conv_update, impl, conv, dtype, device)))
    return found


def _forward(compute, inputs):
    with torch.no_grad():
        return [compute(**inputs)]


def _statistics(compute, *operands):
    return list(compute(*operands))


def _gradients(compute, inputs):
    """Gradients of every operand of the output's sum of squares."""
    leaves = {
        name: t.detach().requires_grad_() if _differentiable(t) else t for name, t in inputs.items()
    }
    wanted = [t for t in leaves.values() if _differentiable(t)]
    return torch.autograd.grad(compute(**leaves).float().square().sum(), wanted)


def _differentiable(t):
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def _state_update(impl, problem, dtype, device):
    operands = problem.inputs(dtype, device)
    state = torch.ones(problem.batch, problem.dim, problem.dstate, device=device)
    token = {"x": "u", "dt": "delta", "B": "B", "C": "C", "z": "z"}
    y = kernels.selective_state_update(
        state, A=operands["A"], D=operands["D"], dt_bias=operands["delta_bias"], dt_softplus=True, impl=impl,
        **{name: operands[source][..., 0] for name, source in token.items()},
    )  # fmt: skip
    return [y, state]


def _conv_update(impl, problem, dtype, device):
    operands = problem.inputs(dtype, device)
    x = operands["x"]
    state = x[..., 1 : problem.width].contiguous()
    y = kernels.causal_conv1d_update(
        x[..., 0], state, operands["weight"], operands["bias"], activation="silu", impl=impl
    )
    return [y, state]


def check(
    impl, device, repetitions, progress=True, *, operators=OPERATORS, problems=None, limit=None
):
    """Rows {"operator", "dtype", "repetitions", "different", "reason"}; `different` is None where nothing ran.

    Args:
        operators: those that are looked at.
        problems: a value of PROBLEMS, or None for that of the device.
        limit: seconds, of which every row has an equal share: then it ends with fewer repetitions.
    """
    rows = []
    work = [
        (dtype, *case)
        for dtype in DTYPES[device.type]
        for case in cases(impl, device, dtype, problems)
        if case[0].split(" ")[0].rstrip(",") in operators
    ]
    share = None if limit is None else limit / max(1, len(work))
    for dtype, name, run in track(
        work, "determinism", console=Console(stderr=True), disable=not progress
    ):
        row = {"operator": name, "dtype": str(dtype).removeprefix("torch.")}
        row |= {"repetitions": repetitions, "different": None, "reason": ""}
        try:
            row |= _count(run, repetitions, share)
        except (Unavailable, NotImplementedError) as error:
            row["reason"] = str(error)
        rows.append(row)
    return rows


def _count(run, repetitions, seconds):
    """{"repetitions": how many there were, "different": how many of them}."""
    deadline = None if seconds is None else time.monotonic() + seconds
    first = [t.clone() for t in run()]
    different = 0
    done = 0
    while done < repetitions:
        done += 1
        different += any(not torch.equal(a, b) for a, b in zip(first, run(), strict=True))
        if deadline is not None and time.monotonic() > deadline:
            break
    return {"repetitions": done, "different": different}


def result_table(rows, impl):
    table = Table(title=f"Runs of {impl} that differ from the first", title_justify="left")
    for column in ("operator", "dtype", "runs", "different"):
        table.add_column(column, justify="right" if column in ("runs", "different") else "left")
    for row in rows:
        found = row["different"]
        text = f"unavailable, because {row['reason']}" if found is None else str(found)
        table.add_row(row["operator"], row["dtype"], str(row["repetitions"]), text)
    return table


def main(argv=None):
    parser = Parser(
        prog="python -m bench.determinism",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usual = 1000 if device.type == "cuda" else 20
    parser.add_argument(
        "--impl", choices=IMPLEMENTATIONS, help="default: triton on a GPU, else cpu"
    )
    parser.add_argument("--repetitions", type=int, default=usual, help=f"default here: {usual}")
    parser.add_argument(
        "--operator",
        type=some(OPERATORS),
        default=list(OPERATORS),
        metavar="LIST",
        help="comma list (default: all)",
    )
    parser.add_argument(
        "--size",
        choices=("usual", "small"),
        default="usual",
        help="small: for compute-sanitizer (default: usual)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        metavar="S",
        help="for everything: then repeat less often (default: no limit)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    args = parser.parse_args(argv)
    if args.repetitions < 1:
        parser.error(f"--repetitions takes a positive number, got {args.repetitions}")
    impl = args.impl or ("triton" if device.type == "cuda" or interpreted() else "cpu")
    problems = SMALL if args.size == "small" else None
    rows = check(
        impl,
        device,
        args.repetitions,
        operators=args.operator,
        problems=problems,
        limit=args.seconds,
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 160).print(result_table(rows, impl))
    return 1 if any(row["different"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
