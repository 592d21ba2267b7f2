"""`triton`: one warp carries the states of a block of channels through the sequence, in registers.

The state is a tuple of dstate vectors of BLOCK_D channels. Every sum over states therefore happens inside a
thread (no shuffle, no barrier, no shared memory), and B_t, C_t are scalars, loaded once for all channels of
the block. A warp runs serially and must hide its own latency: it loads u, delta and z some tokens ahead, B
one token ahead, and strides in time are compile-time constants, so that addresses cost nothing.

Where batch * dim cannot fill the machine, the sequence is split into segments. The kernel first runs without
outputs, to find the state that each segment ends in when it starts from zero, and the sum of its step sizes;
`carry_kernel` chains them (the decay over a segment is exp(A * sum)); then the kernel runs every segment from
its true first state. Exponentials are computed twice so: to keep those of the first pass would take 4 bytes of memory
per state, and to write and read them takes as long as about eight exponentials (H200, 4.3 TB/s).

The exponential unit is the narrowest pipe (8 clocks of a scheduler for a warp, where other arithmetic takes one), so
some exponentials are polynomials instead: as many as make both pipes equally long in the machine code.

Packed sequences change nothing of this: segments are cut from the whole packed axis, and a program walks the
pieces of sequences in its own, starting anew where one begins. A reverse scan has negative strides.
"""

import torch
import triton

from kernels.implementations import note
from kernels.layout import empty_like
from kernels.selective_scan.forward_configurations import (
    CONFIG,
    LABELS,
    LAUNCH,
    candidates,
    default_configuration,
)
from kernels.selective_scan.forward_kernels import carry_kernel, selective_scan_fwd_kernel
from kernels.selective_scan.workspace import workspace
from kernels.specialise import TYPES, static_case
from kernels.tuning import configuration, using

CARRY = {"BLOCK": 128, "AHEAD": 8}
MAX_STATES = 16  # in registers at once; a larger dstate runs in parts that add up

MIN_SEGMENT = 32  # tokens; a program also loads and stores its states, about four tokens of work


def selective_scan_triton(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens=None, reverse=False, return_states=0,
):  # fmt: skip
    """Arguments and returns as in `selective_scan_ref`; computes in float32.

    B and C are copied, as float32 rows, if their states are not neighbours in memory, or (from 2^24 elements
    on) if they are 16-bit; all else is read in place, whatever its strides. Bounds are not read by the host.
    """
    if u.dtype == torch.float64:
        raise NotImplementedError(
            "selective_scan: impl 'triton' computes in float32, got u in float64; use impl='torch'"
        )
    note("selective_scan", "triton.selective_scan_fwd")
    y, last_state, states, launches = plan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens, reverse, return_states
    )  # fmt: skip
    run(launches, u)
    return y, last_state, states


def run(launches, u):
    with torch.cuda.device_of(u):
        for kernel, grid, args in launches:
            kernel[grid](**args)


def plan(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens=None, reverse=False, return_states=0, segments=None,
):  # fmt: skip
    """Allocate the outputs and list the launches that fill them.

    Args:
        segments: overrides the choice of `choose_segments`.

    Returns:
        (y, last_state, states or None, [(kernel, grid, arguments)]).
    """
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    config = configuration(
        "selective_scan_fwd", default_configuration(batch, dim, seqlen, ngroups), u.device,
        same={"dtype": TYPES[u.dtype], "dstate": dstate}, near={"channels": batch * dim, "seqlen": seqlen},
    )  # fmt: skip
    D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
    B, C = _rows(B, config["CONVERT"]), _rows(C, config["CONVERT"])
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=u.device)
    y = empty_like(u)
    last_state = new(batch if cu_seqlens is None else len(cu_seqlens) - 1, dim, dstate)
    # channels inside, as the lanes of a warp store them
    states = new(batch, seqlen // (return_states or 1), dstate, dim) if return_states else None
    states = None if states is None else states.transpose(2, 3)
    sums = None
    if dstate > MAX_STATES:
        with workspace("sums over parts of the states", u.numel(), "a smaller batch needs less"):
            sums = empty_like(u, torch.float32)

    launches = []
    part = triton.cdiv(dstate, triton.cdiv(dstate, MAX_STATES))
    for first in range(0, dstate, part):
        some = slice(first, first + part)
        last = first + part >= dstate
        launches += _plan_part(
            u, delta, A[:, some], B[:, :, some], C[:, :, some],
            D if last else None, z if last else None, delta_bias, delta_softplus,
            None if initial_state is None else initial_state[..., some],
            sums if first else None, y if last else sums, last_state[..., some],
            None if states is None else states[..., some], cu_seqlens, reverse, return_states, segments,
            config,
        )  # fmt: skip
    return y, last_state, states, launches


def _plan_part(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, partial, y, last_state, states,
    cu_seqlens, reverse, every, segments, config,
):  # fmt: skip
    """The launches for states that fit in registers at once."""
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    block_d = config["BLOCK_D"]
    programs = batch * ngroups * triton.cdiv(dim // ngroups, block_d)
    whole = 1
    if not segments:
        warps = config["num_warps"] * programs
        segments = choose_segments(warps, seqlen, _sm_count(u.device), config["WARPS_PER_SM"])
        whole = config["UNROLL"]  # trips, of which nothing is left to do token by token
    segment = triton.cdiv(triton.cdiv(seqlen, segments), whole) * whole
    segments = triton.cdiv(seqlen, segment)

    initial = bounds = sequence = None
    if cu_seqlens is None:
        first = None if initial_state is None else initial_state[:, None]
        last = last_state[:, None]
    else:
        first, last, initial = None, last_state[:, None], initial_state
        bounds = seqlen - cu_seqlens.flip(0) if reverse else cu_seqlens
        starts = torch.arange(0, seqlen, segment, dtype=torch.int32, device=u.device)
        sequence = torch.searchsorted(bounds, starts, out_int32=True)
    # what comes first in a reverse scan is what lies last: pointers to it, and negative strides
    time = -1 if reverse else 1
    row = time if cu_seqlens is not None else 1
    if reverse:
        u, delta, B, C, z, partial, y = (
            None if t is None else t[..., -1:] for t in (u, delta, B, C, z, partial, y)
        )
        states = None if states is None else states[:, -1:]
        if cu_seqlens is not None:
            last, initial = last[-1:], None if initial is None else initial[-1:]

    strides = lambda t, *signs: None if t is None else _signed(t.stride(), signs)
    args = dict(
        u_ptr=u, delta_ptr=delta, A_ptr=A, B_ptr=B, C_ptr=C, D_ptr=D, z_ptr=z, bias_ptr=delta_bias,
        first_ptr=first, partial_ptr=partial, cu_ptr=bounds, sequence_ptr=sequence, initial_ptr=initial,
        y_ptr=y, last_ptr=last, steps_ptr=None, states_ptr=states,
        u_strides=u.stride()[:2], delta_strides=delta.stride()[:2], A_strides=A.stride(),
        B_strides=B.stride()[:3], C_strides=C.stride()[:3], z_strides=None if z is None else z.stride()[:2],
        first_strides=strides(first), initial_strides=strides(initial, row), y_strides=y.stride()[:2],
        last_strides=strides(last, row), states_strides=strides(states, 1, time),
        seqlen=seqlen, segment=segment, dim=dim, ngroups=ngroups,
        sequences=None if cu_seqlens is None else last_state.shape[0],
        TIME_STRIDES=tuple(time * t.stride(2) for t in (u, delta, z, partial) if t is not None),
        Y_STEP=time * y.stride(2), B_STEP=time * B.stride(3), C_STEP=time * C.stride(3),
        SOFTPLUS=delta_softplus, RAGGED=dim // ngroups % block_d != 0, DSTATE=dstate,
        PACK=min(_pack(B, 128), _pack(C, 128)), EVERY=every if states is not None else 0,
        POLY=min(config["POLY"], dstate), **{name: config[name] for name in LAUNCH}, num_stages=1,
    )  # fmt: skip
    if segments == 1:
        return [(selective_scan_fwd_kernel, (programs, 1), args)]

    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=u.device)
    numbers = batch * dim * (segments * dstate + segments - 1)
    with workspace("states between segments", numbers, f"fewer than {segments} segments need less"):
        carried, steps = new(batch, segments, dstate, dim), new(batch, segments - 1, dim)
    between = carried.transpose(2, 3)
    absent = ("C", "D", "z", "first", "partial", "y", "states")
    only_states = args | {f"{name}_ptr": None for name in absent}
    only_states |= {"last_ptr": between, "last_strides": between.stride(), "steps_ptr": steps}
    only_states |= {"TIME_STRIDES": args["TIME_STRIDES"][:2], "PACK": _pack(B, 128), "EVERY": 0}
    only_states |= {"POLY": min(config["POLY_STATES"], dstate)}
    carry = dict(
        A_ptr=A, first_ptr=first, steps_ptr=steps, states_ptr=carried, sequence_ptr=sequence,
        A_strides=A.stride(), first_strides=strides(first),
        segments=segments, dim=dim, dstate=dstate, **CARRY, num_warps=1, num_stages=1,
    )  # fmt: skip
    outputs = args | {"first_ptr": between, "first_strides": between.stride()}
    return [
        (selective_scan_fwd_kernel, (programs, segments - 1), only_states),
        (carry_kernel, (triton.cdiv(dim * dstate, CARRY["BLOCK"]), batch), carry),
        (selective_scan_fwd_kernel, (programs, segments), outputs),
    ]


def _signed(strides, signs):
    """`strides`, the first of them times `signs`."""
    signs = (*signs, *[1] * (len(strides) - len(signs)))
    return tuple(sign * stride for sign, stride in zip(signs, strides, strict=True))


def choose_segments(programs, seqlen, sm_count, warps_per_sm=CONFIG["WARPS_PER_SM"]):
    """Into how many pieces of time to cut, for `programs` warps of channels on `sm_count` multiprocessors."""
    wanted = sm_count * warps_per_sm
    if 2 * programs > wanted:
        return 1
    return max(1, min(triton.cdiv(wanted, programs), seqlen // MIN_SEGMENT))


def _sm_count(device):
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def static_candidates(target):
    """Each candidate compiled for two typical problems, as `static_cases`, with its name and configuration."""
    from kernels.selective_scan.problem import SelectiveScanProblem

    generation = int(target[3]) if target.startswith("sm_") else None
    for name, problem, dtype, segments in (
        ("fp32", SelectiveScanProblem(8, 4096, 2048), torch.float32, 1),
        ("bf16-split", SelectiveScanProblem(1, 32768, 2048), torch.bfloat16, 32),
    ):
        counted = []
        for config in candidates("selective_scan_fwd", problem, dtype, generation):
            seen = config | {"WARPS_PER_SM": None}  # which is not in the code
            if seen in counted:
                continue
            counted.append(seen)
            label = "-".join(f"{LABELS[key]}{config[key]:d}" for key in LABELS)
            with using(selective_scan_fwd=config):
                launches = plan(**problem.inputs(dtype, "meta"), segments=segments)[-1]
            for kernel, _, args in launches:
                if kernel is selective_scan_fwd_kernel:
                    case = _static_case(f"{name}-{label}", kernel, args)
                    yield case | {"kernel_name": "selective_scan_fwd", "configuration": config}


def _rows(t, convert):
    """B or C (batch, ngroups, dstate, seqlen) with neighbouring states; float32 if that pays or is needed."""
    neighbours = t.stride(2) == 1 or t.shape[2] == 1
    if neighbours and (t.dtype == torch.float32 or (t.element_size() == 2 and not convert)):
        return t
    with workspace("B or C as float32 rows", t.numel(), "none is needed for float32 rows"):
        rows = torch.empty_like(
            t.transpose(2, 3), dtype=torch.float32, memory_format=torch.contiguous_format
        )
    return rows.copy_(t.transpose(2, 3)).transpose(2, 3)


def _pack(t, bits=64):
    """How many states one load can take: as many as `bits` hold, if every row of `t` is aligned so."""
    if t.stride(2) != 1:
        return 1
    offsets = (t.shape[2], t.stride(0), t.stride(1), t.stride(3), t.data_ptr() // t.element_size())
    pack = bits // 8 // t.element_size()
    while any(offset % pack for offset in offsets):
        pack //= 2
    return pack


def static_cases():
    """The default configurations, for `profiles.static`: what `plan` launches for typical problems."""
    from kernels.selective_scan.problem import SelectiveScanProblem

    long, short = SelectiveScanProblem(8, 4096), SelectiveScanProblem(1, 2048)
    one = SelectiveScanProblem(1, 32768, has_initial_state=True)
    ragged = SelectiveScanProblem(8, 4096, 1000, 32, has_initial_state=True)
    bounds = {"cu_seqlens": torch.empty(9, dtype=torch.int32, device="meta")}
    packed = bounds | {"initial_state": torch.empty(8, 1024, 16, device="meta")}
    for name, dtype, problem, segments, more in (
        ("fp32", torch.float32, long, 1, {}),
        ("bf16-split", torch.bfloat16, long, 32, {}),
        ("bf16-short", torch.bfloat16, short, 1, {}),  # B and C as stored
        ("fp32-n32-ragged", torch.float32, ragged, 1, {}),
        ("bf16-train", torch.bfloat16, long, 1, {"return_states": 64}),
        ("bf16-packed-split", torch.bfloat16, one, 32, packed),
    ):
        launches = plan(**problem.inputs(dtype, "meta") | more, segments=segments)[-1]
        for kernel, _, args in launches[-1:] if problem is ragged else launches:
            yield _static_case(name, kernel, args)


def _static_case(name, kernel, args):
    case = {"name": f"selective_scan_carry-{name}", "work": {}}
    if kernel is selective_scan_fwd_kernel:
        part = "states" if args["y_ptr"] is None else "fwd"
        case["name"] = f"selective_scan_{part}-{name}"
        case["work"] = {"tokens": args["UNROLL"], "channels": args["BLOCK_D"]}
    options = {name: args[name] for name in ("num_warps", "num_stages", "maxnreg") if name in args}
    return case | static_case(kernel, args) | options
