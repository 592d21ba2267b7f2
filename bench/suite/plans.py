"""The plans of `bench.gpu_suite`: stages in the order of their worth, each with the seconds that it may take of a call.

all         everything once, at sizes of a quick look
scan        the scan and the convolution: parity, tuned configurations, tables against peers, counters, determinism
attention   attention and its statistics, likewise
answer      the sweeps of models, most valuable first, then metrics, larger shapes and profiles

The sum over a plan is more than a call has: what is left goes on in the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.kernel_problems import MODES, OPERATORS
from bench.kernels import ALL_MODES
from bench.suite import models, stages
from bench.suite.sweeps import ANSWER, GENERAL, LATER

DTYPES = ("bf16", "fp32", "fp16")
SCAN_OPERATORS = (
    "selective_scan", "causal_conv1d", "selective_state_update", "causal_conv1d_update",
)  # fmt: skip
SCAN_PEERS = ("triton", "mamba-ssm", "causal-conv1d", "copy")
SCAN_KERNELS = (
    "selective_scan_fwd", "selective_scan_bwd", "causal_conv1d_fwd", "selective_state_update", "causal_conv1d_bwd",
)  # fmt: skip
ATTENTION_OPERATORS = ("causal_attention", "attention_statistics")
ATTENTION_PEERS = (
    "triton", "sdpa.flash", "sdpa.cudnn", "sdpa.efficient", "flash-attn-2", "flash-attn-3", "copy",
)  # fmt: skip
ATTENTION_KERNELS = (
    "causal_attention_fwd", "causal_attention_bwd_dkdv", "causal_attention_bwd_dq", "causal_attention_decode",
    "attention_statistics",
)  # fmt: skip
SCAN_TESTS = (
    "tests/kernels/test_selective_scan.py", "tests/kernels/test_selective_scan_backward.py",
    "tests/kernels/test_selective_scan_gradients.py", "tests/kernels/test_selective_scan_operators.py",
    "tests/kernels/test_selective_scan_sequences.py", "tests/kernels/test_selective_state_update.py",
    "tests/kernels/test_causal_conv1d.py", "tests/kernels/test_causal_conv1d_backward.py",
    "tests/kernels/test_causal_conv1d_update.py",
)  # fmt: skip
ATTENTION_TESTS = (
    "tests/kernels/test_causal_attention.py", "tests/kernels/test_causal_attention_backward.py",
    "tests/kernels/test_causal_attention_decode.py", "tests/kernels/test_causal_attention_packed.py",
    "tests/kernels/test_attention_statistics.py",
)  # fmt: skip
MODEL_TESTS = (
    "tests/kernels", "tests/models/test_bind.py", "tests/models/test_generation.py", "tests/models/test_compile.py",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One part of a plan.

    Attributes:
        name: of its section in suite.md; a stage of the same name in two plans is the same work.
        seconds: of one call at most.
        run: function of a Suite and of seconds that returns {"complete", "summary"}.
        least: seconds below which it is not begun: starting alone takes some.
    """

    name: str
    seconds: int
    run: Callable
    least: int = 15


def _kernels(name, seconds, mode, operators, dtypes, grid, contenders, effort=0.4):
    run = partial(
        stages.run_kernels, operators=operators, mode=mode, dtypes=dtypes, grid=grid, contenders=contenders,
        effort=effort,
    )  # fmt: skip
    return Stage(name, seconds, run, 10)


def _sweep(sweep):
    run = partial(models.run_sweep, sweep=sweep)
    # started without the time for a good part of it, it would compute its references for nothing
    return Stage(f"sweep-{sweep.name}", sweep.seconds, run, sweep.seconds // 3)


def _tune(name, seconds, kernels):
    return Stage(name, seconds, partial(stages.run_tune, kernels=kernels, dtypes=("bf16", "fp32")), 40)  # fmt: skip


def _preflight(name, seconds, operators, dtypes, grid=None):
    run = partial(
        stages.run_preflight, operators=operators, modes=ALL_MODES, dtypes=dtypes, grid=grid
    )
    return Stage(name, seconds, run)


def _tests(name, seconds, paths):
    return Stage(name, seconds, lambda suite, s: stages.run_tests(suite, s, *paths))


def _counters(name, seconds, *targets):
    return Stage(name, seconds, lambda suite, s: stages.run_counters(suite, s, *targets))


def _checks(operators):
    """Determinism and compute-sanitizer of operators."""
    names = operators[0].split("_")[-1]
    return (
        Stage(f"determinism-{names}", 60, partial(stages.run_determinism, operators=operators)),
        Stage(f"sanitizer-{names}", 90, partial(stages.run_sanitizer, operators=operators)),
    )


SCAN = (
    _preflight("preflight-scan", 75, (*SCAN_OPERATORS, "mamba_mixer"), DTYPES, "scan"),
    _tune("tune-scan", 110, SCAN_KERNELS),
    _kernels("scan-forward", 110, "forward", SCAN_OPERATORS, ("bf16", "fp32"), "scan", SCAN_PEERS),
    _kernels("scan-decode", 25, "decode", SCAN_OPERATORS, ("bf16", "fp32"), "scan", SCAN_PEERS, 0.2),
    _kernels("mixer", 25, "forward", ("mamba_mixer",), ("bf16",), "scan", ("triton", "cuda", "mamba-ssm")),
    _kernels("scan-backward", 100, "backward", SCAN_OPERATORS, ("bf16", "fp32"), "scan", SCAN_PEERS),
    _tests("tests-scan", 90, SCAN_TESTS),
    _counters("counters-scan", 60, "selective_scan/forward/bf16/triton", "selective_scan/backward/bf16/triton",
              "causal_conv1d/forward/bf16/triton", "selective_state_update/decode/bf16/triton",
              "selective_scan/forward/bf16/cuda"),
    *_checks(SCAN_OPERATORS),
)  # fmt: skip
ATTENTION = (
    _preflight("preflight-attention", 75, ATTENTION_OPERATORS, DTYPES, "attention"),
    _tune("tune-attention", 130, ATTENTION_KERNELS),
    _kernels("attention-forward", 100, "forward", ATTENTION_OPERATORS, ("bf16",), "attention", ATTENTION_PEERS, 0.3),
    _kernels("attention-decode", 30, "decode", ATTENTION_OPERATORS, ("bf16",), "attention", ATTENTION_PEERS, 0.2),
    _kernels("attention-backward", 70, "backward", ATTENTION_OPERATORS, ("bf16",), "attention", ATTENTION_PEERS, 0.3),
    *(
        _kernels(f"attention-few-{mode}", seconds, mode, ATTENTION_OPERATORS, ("fp32", "fp16"), "attention-few",
                 ATTENTION_PEERS, 0.3)
        for mode, seconds in (("forward", 45), ("backward", 40), ("decode", 15))
    ),
    Stage("statistics-memory", 45, partial(stages.run_statistics, impl="triton", seqlens="2048,8192,32768")),
    _tests("tests-attention", 90, ATTENTION_TESTS),
    _counters("counters-attention", 60, "causal_attention/forward/bf16/triton", "causal_attention/backward/bf16/triton",
              "causal_attention/decode/bf16/triton", "attention_statistics/forward/bf16/triton"),
    *(
        _kernels(f"flex-{mode}", 40, mode, ("causal_attention",), ("bf16",), "attention-flex", ("triton", "flex"), 0.3)
        for mode in ("forward", "backward")
    ),
    *_checks(ATTENTION_OPERATORS),
)  # fmt: skip
ANSWER_PLAN = (
    _preflight("preflight-models", 60, OPERATORS, ("bf16", "fp32")),
    *map(_sweep, ANSWER[:4]),
    Stage("metrics", 90, partial(models.run_metrics, sweep="paper", seqlen=8192)),
    *map(_sweep, ANSWER[4:]),
    Stage("profiles", 100, models.run_profiles),
    Stage("long-context", 60, models.run_long_context),
    *map(_sweep, LATER),
)
EVERYTHING = (
    _preflight("preflight", 75, OPERATORS, DTYPES),
    _tests("tests", 150, MODEL_TESTS),
    *(
        _kernels(f"kernels-{mode}", 90, mode, tuple(o for o in OPERATORS if mode in MODES[o]),
                 ("fp32", "bf16"), "quick", (*SCAN_PEERS, *ATTENTION_PEERS[1:], "flex"))
        for mode in ALL_MODES
    ),
    Stage("determinism", 100, stages.run_determinism),
    *map(_sweep, GENERAL),
    Stage("profiles", 100, models.run_profiles),
    Stage("long-context", 60, models.run_long_context),
    Stage("quick-metrics", 90, partial(models.run_metrics, sweep="quick-prefill", seqlen=8192)),
    Stage("sanitizer", 90, stages.run_sanitizer),
)  # fmt: skip
PLANS = {"all": EVERYTHING, "scan": SCAN, "attention": ATTENTION, "answer": ANSWER_PLAN}
