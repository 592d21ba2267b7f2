"""The options of the sweep: what the command line says, checked, and with every default decided."""

import argparse
import time
from pathlib import Path

import torch

from bench.cli import Parser, one, positive, positives, seconds, some, whole
from bench.engines import choice
from bench.plan import DTYPES, LAUNCHES, MODES, PROTOCOLS, PlanError, default_lengths
from bench.records import STATUSES
from bench.slices import WHOLE
from kernels.implementations import IMPLEMENTATIONS
from models.checkpoint_tokenizer import CHECKPOINT
from models.presets import ARCHITECTURES, PAIR, PRESETS
from models.tokenizer import VOCAB_SIZES

QUICK = {"preset": "tiny", "seqlens": [64, 128, 256], "rounds": 2, "budget": 0.05}
BUDGET_S = {"cpu": 0.06, "cuda": 1.0}
TOKENIZERS = (*VOCAB_SIZES, CHECKPOINT)
METRICS = ("none", "small", "full")
PROFILES = ("none", "torch", "nsys", "auto")
REPORTS = ("none", "page")
NOT_PLANNED = (
    "out",
    "resume",
    "resume_anyway",
    "retry",
    "dry_run",
    "list",
    "quick",
    "cell_timeout",
    "metrics",
    "profile",
    "report",
    *choice.OPTIONS,
)


def make_parser(description):
    """Every option with its default; `auto` is decided by the device."""
    parser = Parser(
        prog="python -m bench.sweep",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    what = parser.add_argument_group("what is measured").add_argument
    what("--impl", type=some(IMPLEMENTATIONS), default=",".join(IMPLEMENTATIONS), metavar="LIST",
         help="implementations")  # fmt: skip
    what("--arch", type=some(ARCHITECTURES), default=",".join(PAIR), metavar="LIST",
         help="architectures")  # fmt: skip
    what(
        "--preset",
        type=one(PRESETS),
        default="paper-50m",
        metavar="NAME",
        help="sizes of the models",
    )
    what("--checkpoint", type=_checkpoint, action="append", default=argparse.SUPPRESS, metavar="ARCH=DIR",
         help="weights of one architecture from a local safetensors folder or a GGUF file (repeatable; "
         "without it: our own seeded initialisation)")  # fmt: skip
    what("--seqlens", type=_lengths, default="auto", metavar="LIST",
         help="lengths in tokens; auto: half-octaves 128..2048 on a CPU, 512..8192 on a GPU, "
         "the paper's five under --protocol paper")  # fmt: skip
    what("--batch", type=positives, default="1", metavar="LIST", help="batch sizes")
    what("--dtype", type=some(DTYPES), default="fp32", metavar="LIST",
         help="fp32 is true float32, tf32 float32 on tensor cores")  # fmt: skip
    what("--mode", type=some(MODES), default="prefill", metavar="LIST",
         help="prefill: a forward over seqlen tokens; decode: one token with the cache of seqlen; train: forward and "
         "backward of the next-token loss of seqlen tokens, with the logits of all positions")  # fmt: skip
    what("--launch", type=some(LAUNCHES), default="eager", metavar="LIST",
         help="eager, or graph: replay of a CUDA graph")  # fmt: skip
    what("--logits", choices=("last", "all"), default="auto",
         help="positions whose logits a prefill computes; auto: last, all under --protocol paper")  # fmt: skip
    what("--slice", type=_slice, default=argparse.SUPPRESS, metavar="LAYERS",
         help="measure the first LAYERS layers and twice as many, at full width, and extend to the whole depth; "
         "K1,K2: these two depths; K1,K2,whole: the whole model too (without it: the whole model alone)")  # fmt: skip
    what("--chunk", type=positive, default=argparse.SUPPRESS, metavar="TOKENS",
         help="a prefill reads its prompt in chunks and carries state or cache (without it: in one pass)")  # fmt: skip
    what(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: the GPU if there is one",
    )

    text = parser.add_argument_group("the input").add_argument
    text("--sessions", type=Path, default="generated", metavar="PATH",
         help="transcripts, a file or a folder (see bench.sessions)")  # fmt: skip
    text("--kind", choices=("dyadic", "couple"), default="dyadic", help="of generated sessions")
    text(
        "--tokenizer",
        type=one(TOKENIZERS),
        default="gpt2-32k",
        metavar="NAME",
        help="gpt2-32k, gpt2, bytes (one id per byte, for DNA), or checkpoint: the one that came with --checkpoint",
    )

    how = parser.add_argument_group("how it is measured").add_argument
    how("--rounds", type=positive, default=5, help="fresh processes; the unit of inference")
    how("--protocol", choices=PROTOCOLS, default="lab",
        help="paper: 2 warm-ups and 5 runs, zero-padded input")  # fmt: skip
    how("--budget", type=_budget, default="auto", metavar="SECONDS",
        help="sampling of one cell in one round; auto: {cpu} on a CPU, {cuda} on a GPU".format(**BUDGET_S))  # fmt: skip
    how("--cell-timeout", type=seconds, default=300.0, metavar="SECONDS",
        help="a cell that takes longer in one round is recorded as timeout")  # fmt: skip
    how(
        "--threads",
        type=_threads,
        default="auto",
        metavar="N",
        help="of CPU kernels; auto: torch's choice",
    )
    how("--seed", type=whole, default=0, help="of weights, sessions and the order of cells")
    how("--metrics", choices=METRICS, nargs="?", const="full", default="small",
        help="representation metrics after the measurements (python -m analysis.metrics RUN completes them): none, a "
        "small version, or, with --metrics alone, the full one")  # fmt: skip
    how("--profile", choices=PROFILES, default="torch",
        help="a profile of the fastest cell of each architecture, after the measurements (python -m profiles.capture "
        "RUN makes others)")  # fmt: skip
    how("--report", choices=REPORTS, default="page",
        help="report.html at the end (python -m analysis.report RUN makes it on any machine)")  # fmt: skip

    choice.add_options(parser)

    add("--out", type=Path, default="runs/<timestamp>", metavar="DIR", help="the run directory")
    add("--resume", action="store_true", help="finish the run in --out; nothing is measured twice")
    add("--retry", type=some(STATUSES), default=argparse.SUPPRESS, metavar="LIST",
        help="with --resume: statuses to measure again, such as error,timeout (without it: none)")  # fmt: skip
    add("--resume-anyway", action="store_true",
        help="with --resume: go on though code or versions changed; the report says so")  # fmt: skip
    add("--quick", action="store_true", help="a smoke run: preset tiny, three lengths, two rounds")
    add("--dry-run", action="store_true", help="print the plan and its cost, write nothing")
    add("--try-everything", action="store_true",
        help="on a CPU, also try cells whose predicted memory is more than the machine has")  # fmt: skip
    add("--list", action="store_true", help="print what can be chosen")
    return parser


def given(parser, argv):
    """{option: value} of what the command line says itself, defaults left out."""
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([]))))
    return {
        name: value
        for name, value in vars(parser.parse_args(argv, blank)).items()
        if value is not None
    }


def with_quick(said):
    """What was said, with the settings of --quick where nothing else was said."""
    return QUICK | said if said.get("quick") else said


def resolve(args, said):
    """The options of a plan as plain JSON values, every default decided.

    Args:
        args: the parsed namespace.
        said: as `given` found, `with_quick` applied.

    Raises:
        PlanError: options that do not go together.
    """
    options = vars(args) | said
    options = {name: value for name, value in options.items() if name not in NOT_PLANNED}
    device = options["device"] = _device(options["device"])
    paper = options["protocol"] == "paper"
    options["mode"] = _modes(options["mode"], said, paper)
    if options["seqlens"] == "auto":
        options["seqlens"] = list(default_lengths(device, options["protocol"]))
    if options["logits"] == "auto":
        options["logits"] = "all" if paper else "last"
    if options["budget"] == "auto":
        options["budget"] = BUDGET_S[device]
    if options["threads"] == "auto":
        options["threads"] = torch.get_num_threads()
    generated = "sessions" not in said
    options["sessions"] = None if generated else str(options["sessions"])
    options["checkpoint"] = _checkpoints(options.get("checkpoint", []), options["arch"])
    options["chunk"] = _chunk(options, paper)
    options["slice"] = _sliced(options, said)
    _check_archs(options)
    if "train" in options["mode"] and min(options["seqlens"]) < 2:
        raise PlanError("--seqlens 1: --mode train predicts the next token, so it needs at least 2")
    return options


def resolved_subset(options, said):
    """The resolved values of the options that were said: what a resumed run must agree with."""
    return {name: options[name] for name in said if name in options}


def out_directory(said):
    """Where the run goes."""
    return said.get("out") or Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")


def _device(name):
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    if name == "cuda" and not has_gpu:
        raise PlanError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return name


def _modes(modes, said, paper):
    if paper and modes != ["prefill"]:
        raise PlanError(
            f"--mode {','.join(modes)}: --protocol paper is a forward over the prompt; use --protocol lab"
        )
    if "logits" in said and "prefill" not in modes:
        raise PlanError(
            f"--logits {said['logits']}: only prefill has a choice; decode computes those of its token, train all"
        )
    return modes


def _chunk(options, paper):
    chunk = options.get("chunk")
    if chunk is None:
        return None
    if paper:
        raise PlanError(f"--chunk {chunk}: --protocol paper reads the prompt in one pass")
    if "prefill" not in options["mode"]:
        raise PlanError(f"--chunk {chunk}: only a prefill is read in chunks; add --mode prefill")
    if "graph" in options["launch"]:
        raise PlanError(
            f"--chunk {chunk}: chunks are not captured in a CUDA graph; use --launch eager"
        )
    return chunk


def _checkpoints(pairs, archs):
    found = {}
    for arch, folder in pairs:
        if arch in found:
            raise PlanError(f"--checkpoint {arch}: given twice")
        if arch not in archs:
            raise PlanError(f"--checkpoint {arch}: {arch} is not among --arch {','.join(archs)}")
        found[arch] = str(folder)
    return found


def _lengths(text):
    return text if text == "auto" else positives(text)


def _slice(text):
    depths, whole_too = text.removesuffix(f",{WHOLE}"), text.endswith(f",{WHOLE}")
    depths = positives(depths)
    if len(depths) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} names more than two depths")
    both = depths if len(depths) == 2 else [depths[0], 2 * depths[0]]
    return both + [WHOLE] * whole_too


def _sliced(options, said):
    for name in ("metrics", "profile"):
        if said.get("slice") and said.get(name, "none") != "none":
            raise PlanError(f"--{name} {said[name]}: not of slices; use --{name} none")
    return options.get("slice")


def _check_archs(options):
    has = PRESETS[options["preset"]].archs
    for arch in options["arch"]:
        if arch not in has and arch not in options["checkpoint"]:
            raise PlanError(
                f"--preset {options['preset']}: it has no {arch}; add --arch {','.join(has)}"
            )


def _threads(text):
    return text if text == "auto" else positive(text)


def _budget(text):
    return text if text == "auto" else seconds(text)


def _checkpoint(text):
    arch, equals, folder = text.partition("=")
    if not equals or not folder or arch not in ARCHITECTURES:
        takes = " or ".join(f"{arch}=DIR" for arch in ARCHITECTURES)
        raise argparse.ArgumentTypeError(f"{text!r} is not {takes}")
    return arch, Path(folder)
