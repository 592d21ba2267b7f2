"""`triton`: Mamba-2's scan as matrix products (the state space duality of Dao and Gu 2024, section 6), forward.

A program carries the states of a head through the sequence, in registers, a chunk of tokens at a time. With c_i the
sum of the exponents d A of the tokens of the chunk up to i, and h the state before it, in transposed form,

    y_i = exp(c_i) C_i h + sum_{j <= i} (C_i B_j') exp(c_i - c_j) d_j x_j + D x_i
    h  <- exp(c_last) h + sum_j B_j' exp(c_last - c_j) d_j x_j

so a chunk is four products on tensor cores, and no state, score or weight goes through memory. `ssd_steps_kernel` forms
d and c before. The exponents are differences of sums, which would cancel: c has two parts, of which the second is what
rounding took from the first. Where a step is large, sums are long: an exponent below 2^-160 counts as that.

Sums are float32, and operands of products have the dtype of x, B and C, the widest of them. In half precision a weight
rounded once would err more than y's own rounding does, so it comes in two parts, each a product with x. The state is
rounded once on its way into y; d x comes in three parts on its way into the state, which is float32 and errs like it.
(mamba-ssm rounds d x once.)

Where the heads cannot fill the machine, the sequence is split into segments: the kernel runs first without outputs, to
find what state each segment leaves, `ssd_carry_kernel` chains them, and the kernel runs every segment from its true
first state.

Two cases are left to the kernels of Mamba-1's scan (`expanded.py`), and the manifest says so: a wanted gradient, which
this form does not have, and float32 with more than 64 states, whose operands, two TF32 parts each, outgrow registers.
"""

import torch
import triton

from kernels.causal_attention.tiles import TARGETS, generation, precision
from kernels.checks import wants_gradient
from kernels.implementations import interpreted, note
from kernels.specialise import TYPES, static_case
from kernels.ssd_scan import expanded
from kernels.ssd_scan.forward_kernels import ssd_carry_kernel, ssd_scan_fwd_kernel, ssd_steps_kernel
from kernels.ssd_scan.problem import SsdScanProblem
from kernels.tuning import configuration

NAMES = ("CHUNK", "PIECE", "BLOCK_P", "PROGRAMS_PER_SM", "num_warps", "num_stages")
# by GPU generation and largest dstate; not measured yet, but nothing spills. A chunk of 64 tokens is what the products
# of a warp group are high, and two such programs fit on a multiprocessor of Hopper.
HALF = {
    8: {64: (64, 32, 32, 2, 4, 2), 128: (64, 32, 16, 2, 4, 2), 256: (16, 16, 32, 2, 4, 2)},
    9: {64: (64, 64, 64, 2, 4, 2), 128: (64, 64, 64, 2, 4, 2), 256: (64, 16, 32, 2, 4, 1)},
    10: {64: (64, 64, 64, 2, 4, 2), 128: (64, 64, 32, 2, 4, 2), 256: (64, 32, 16, 2, 4, 1)},
}
FLOAT32 = {
    8: {64: (32, 16, 16, 2, 4, 1)},
    9: {64: (64, 32, 16, 2, 4, 1)},
    10: {64: (64, 32, 32, 2, 4, 1)},
}
# What to try besides on Hopper in half precision, by largest dstate, for what cannot be counted: latencies.
TRIED = {
    64: [
        {"num_stages": 3}, {"PIECE": 32}, {"PIECE": 32, "num_stages": 3}, {"BLOCK_P": 32},
        {"BLOCK_P": 32, "num_stages": 3}, {"num_stages": 1},
    ],
    128: [{"PIECE": 32}, {"BLOCK_P": 32}, {"PIECE": 32, "BLOCK_P": 32}, {"PIECE": 32, "num_stages": 3}],
    256: [{"PIECE": 32, "num_stages": 2}],
}  # fmt: skip
STEPS = {"BLOCK_H": 8, "num_warps": 4}
CARRY = {"BLOCK": 256, "AHEAD": 8, "num_warps": 4}


def ssd_scan_triton(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    """Arguments and returns as in `ssd_scan_ref`; repeats are bit-identical.

    Whatever the strides, nothing is copied but what x, B and C lack to one dtype, and an initial state with gaps.
    float32 is computed from three TF32 products per product, or from one where `torch.backends.cuda.matmul.allow_tf32`
    is set. float16 has its range: inputs d x of a state below 1e-7 lose digits, and beyond 255 they are lost, as are
    states beyond 65,504.
    """
    if torch.float64 in (x.dtype, B.dtype, C.dtype):
        raise NotImplementedError(
            "ssd_scan: impl 'triton' takes float32, float16 and bfloat16, got float64; use impl='torch'"
        )
    operands = (x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    gradient = wants_gradient(x, dt, A, B, C, D, dt_bias, initial_state)
    if gradient or not takes(_product_dtype(x, B, C), B.shape[3]):
        return expanded.ssd_scan_triton(*operands)
    if torch.compiler.is_compiling():
        return torch.ops.crossover.ssd_scan(*operands)
    note("ssd_scan", "triton.ssd_scan_fwd")
    y, last_state, launches = plan(*operands)
    with torch.cuda.device_of(x):
        for kernel, grid, args in launches:
            kernel[grid](**args)
    return y, last_state


@torch.library.custom_op("crossover::ssd_scan", mutates_args=())
def ssd_scan(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor,
    D: torch.Tensor | None, dt_bias: torch.Tensor | None, dt_softplus: bool, initial_state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`ssd_scan_triton` through torch's dispatcher, for torch.compile; without a gradient."""
    return ssd_scan_triton(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)


@ssd_scan.register_fake
def _(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
    batch, _, nheads, headdim = x.shape
    last_state = x.new_empty(batch, nheads, headdim, B.shape[3], dtype=torch.float32)
    return x.new_empty(x.shape), last_state


def takes(dtype, dstate):
    """Whether products in `dtype` over that many states have a configuration here."""
    return dtype != torch.float32 or dstate <= 64


def _product_dtype(x, B, C):
    return torch.promote_types(torch.promote_types(x.dtype, B.dtype), C.dtype)


def plan(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, segments=None, config=None):
    """Allocate the outputs and list the launches that fill them.

    Args:
        segments: into how many the sequence is cut; None for the choice of `choose_segments`.
        config: overrides the choice of `kernels.tuning`.

    Returns:
        (y, last_state, [(kernel, grid, arguments)]).
    """
    batch, seqlen, nheads, headdim = x.shape
    ngroups, dstate = B.shape[2:]
    y = x.new_empty(x.shape)
    last_state = x.new_empty(batch, nheads, headdim, dstate, dtype=torch.float32)
    dtype = _product_dtype(x, B, C)
    x, B, C = x.to(dtype), B.to(dtype), C.to(dtype)
    A, D, dt_bias = (None if t is None else t.contiguous() for t in (A, D, dt_bias))
    config = dict(config) if config else configuration(
        "ssd_scan_fwd", _default(x, dstate), x.device,
        same={"dtype": TYPES[dtype], "headdim": headdim, "dstate": dstate},
        near={"seqlen": seqlen, "heads": batch * nheads},
    )  # fmt: skip
    per_sm = config.pop("PROGRAMS_PER_SM")
    programs = batch * nheads * triton.cdiv(headdim, config["BLOCK_P"])
    chunks = triton.cdiv(seqlen, config["CHUNK"])
    segments = segments or choose_segments(programs, chunks, per_sm * _sm_count(x.device))
    segment = triton.cdiv(chunks, segments) * config["CHUNK"]
    segments = triton.cdiv(seqlen, segment)

    steps, total, carried, exponents = _workspaces(
        x, batch, segments, config["CHUNK"], chunks, nheads, headdim, dstate
    )
    first = None if initial_state is None else initial_state.contiguous()
    step = dict(
        dt_ptr=dt, A_ptr=A, bias_ptr=dt_bias, steps_ptr=steps, total_ptr=total, dt_strides=dt.stride(),
        seqlen=seqlen, nheads=nheads, SOFTPLUS=dt_softplus, CHUNK=config["CHUNK"], **STEPS,
    )  # fmt: skip
    args = dict(
        x_ptr=x, steps_ptr=steps, total_ptr=total, B_ptr=B, C_ptr=C, D_ptr=D,
        first_ptr=first, y_ptr=y, last_ptr=last_state, exponent_ptr=None,
        x_strides=_no_token(x), B_strides=_no_token(B), C_strides=_no_token(C), y_strides=_no_token(y),
        seqlen=seqlen, segments=segments, segment=segment, chunks=chunks, nheads=nheads, ngroups=ngroups,
        X_TOKEN=x.stride(1), B_TOKEN=B.stride(1), C_TOKEN=C.stride(1), Y_TOKEN=y.stride(1),
        HEADDIM=headdim, DSTATE=dstate, PRECISION=precision(x), BLOCK_N=_block(dstate), **config,
    )  # fmt: skip
    blocks = triton.cdiv(nheads, STEPS["BLOCK_H"])
    launches = [(ssd_steps_kernel, (batch * chunks, blocks), step)]
    if segments == 1:
        return y, last_state, [*launches, (ssd_scan_fwd_kernel, (programs, 1), args)]

    absent = ("C_ptr", "C_strides", "D_ptr", "y_ptr", "y_strides", "first_ptr")
    only_states = args | dict.fromkeys(absent) | {"last_ptr": carried, "exponent_ptr": exponents}
    carry = dict(
        first_ptr=first, exponent_ptr=exponents, states_ptr=carried,
        segments=segments, nheads=nheads, HEADDIM=headdim, DSTATE=dstate, **CARRY,
    )  # fmt: skip
    outputs = args | {"first_ptr": carried}
    blocks = triton.cdiv(headdim * dstate, CARRY["BLOCK"])
    launches += [
        (ssd_scan_fwd_kernel, (programs, segments - 1), only_states),
        (ssd_carry_kernel, (batch * nheads, blocks), carry),
        (ssd_scan_fwd_kernel, (programs, segments), outputs),
    ]
    return y, last_state, launches


def choose_segments(programs, chunks, wanted):
    """Into how many segments to cut `chunks`, for `programs` of a segment each and `wanted` in all.

    What a segment costs besides (its states twice more, and what forms them) pays below half of the programs.
    """
    if 2 * programs > wanted:
        return 1
    return max(1, min(wanted // programs, chunks))


def _no_token(t):
    """The strides of all axes of `t` but the second."""
    return t.stride()[:1] + t.stride()[2:]


def _workspaces(x, batch, segments, chunk, chunks, nheads, *state):
    """steps, total, states between segments and exponents, as the kernels name them: uninitialised float32."""
    new = lambda *shape: x.new_empty(shape, dtype=torch.float32)
    try:
        steps = new(batch, nheads, chunks, 4, chunk), new(batch, nheads, chunks)
        if segments == 1:
            return *steps, None, None
        return *steps, new(batch, segments, nheads, *state), new(batch, segments - 1, nheads)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"ssd_scan: no memory for its workspace, the decays of {chunks * chunk} tokens and the states between "
            f"{segments} segments; a smaller batch needs less. {error}"
        ) from error


def _sm_count(device):
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def _block(n):
    return max(16, triton.next_power_of_2(n))


def _default(x, dstate):
    """The static configuration for these operands on their device."""
    if interpreted():  # cost is per operation, so few and big blocks
        chunk, block_p = min(64, _block(x.shape[1])), _block(x.shape[3])
        return dict(zip(NAMES, (chunk, max(16, chunk // 2), block_p, 1, 1, 1), strict=True))
    return config_of(x.dtype, x.shape[3], dstate, generation(x.device))


def config_of(dtype, headdim, dstate, major):
    """The static configuration on a GPU whose compute capability is `major`.x."""
    table = (FLOAT32 if dtype == torch.float32 else HALF)[major]
    chosen = next(config for largest, config in table.items() if dstate <= largest)
    config = dict(zip(NAMES, chosen, strict=True))
    return config | {"BLOCK_P": min(config["BLOCK_P"], _block(headdim))}


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a SsdScanProblem in `dtype`, the static choice first; none where `takes` says no."""
    if not takes(dtype, problem.dstate):
        return ()
    default = config_of(dtype, problem.headdim, problem.dstate, generation)
    tried = [{"PROGRAMS_PER_SM": n} for n in (1, 4, 8)]
    if generation == 9 and dtype != torch.float32:
        tried += TRIED[64 if problem.dstate <= 64 else 128 if problem.dstate <= 128 else 256]
    fits = lambda config: config["BLOCK_P"] <= default["BLOCK_P"]
    found = [default | change for change in tried]
    return (default, *(config for config in found if fits(config) and config != default))


def static_candidates(target):
    """The candidates as `profiles.static` compiles them, without those that differ only in how many programs run."""
    for dtype in (torch.bfloat16, torch.float32):
        for dstate in (64, 128, 256):
            problem = SsdScanProblem(1, 512, 32, 64, dstate)
            for config in candidates("ssd_scan_fwd", problem, dtype, TARGETS[target]):
                if config["PROGRAMS_PER_SM"] == 2:
                    *_, fwd = _static_launches(problem, dtype, target, config)
                    label = "c{CHUNK}-k{PIECE}-p{BLOCK_P}-w{num_warps}-s{num_stages}".format(
                        **config
                    )
                    name = f"ssd_scan_fwd-{TYPES[dtype]}-n{dstate}-{label}"
                    yield fwd | {
                        "name": name,
                        "kernel_name": "ssd_scan_fwd",
                        "configuration": config,
                    }


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that it is meant for."""
    for target, major in TARGETS.items():
        for dtype, table in ((torch.bfloat16, HALF), (torch.float32, FLOAT32)):
            for dstate in table[major]:
                problem = SsdScanProblem(1, 512, 32, 64, dstate, has_initial_state=True)
                config = config_of(dtype, problem.headdim, dstate, major)
                *others, fwd = _static_launches(problem, dtype, target, config)
                yield from (*others, fwd) if (dtype, dstate) == (torch.bfloat16, 128) else (fwd,)


def _static_launches(problem, dtype, target, config):
    """The launches of a sequence in segments, as `profiles.static` compiles them for `target`."""
    *_, launches = plan(**problem.inputs(dtype, "meta"), segments=4, config=config)
    for kernel, _, args in launches:
        part = kernel.__name__.removeprefix("ssd_").removesuffix("_kernel")
        case = {"work": {}}
        if kernel is ssd_scan_fwd_kernel:
            part = "states" if args["y_ptr"] is None else "scan_fwd"
            case["work"] = {"tokens": args["CHUNK"], "channels": args["BLOCK_P"]}
            if target == "gfx942":
                args["PRECISION"] = "ieee"
        case["name"] = f"ssd_{part}-{TYPES[dtype]}-n{problem.dstate}"
        case["targets"] = (target,)
        case["unaligned"] = ("dt_strides", "seqlen", "chunks", "segments", "nheads", "ngroups")
        options = {name: args[name] for name in ("num_warps", "num_stages") if name in args}
        yield case | static_case(kernel, args) | options
