"""`triton`: one warp carries the states of a block of channels through the sequence, in registers.

The state is a tuple of dstate vectors of BLOCK_D channels. Every sum over states therefore happens inside a
thread (no shuffle, no barrier, no shared memory), and B_t, C_t are scalars, loaded once for all channels of
the block. A warp runs serially and must hide its own latency: it loads u, delta and z some tokens ahead, B
one token ahead, and strides in time are compile-time constants, so that addresses cost nothing.

Where batch * dim cannot fill the machine, the sequence is split into segments. The kernel first runs without
outputs, to find the state that each segment ends in when it starts from zero, and the sum of its step sizes;
`carry_kernel` chains them (the decay over a segment is exp(A * sum)); then the kernel runs every segment from
its true first state.

Packed sequences change nothing of this: segments are cut from the whole packed axis, and a program walks the
pieces of sequences in its own, starting anew where one begins. A reverse scan has negative strides.
"""

import torch
import triton

from kernels.implementations import interpreted, note
from kernels.layout import empty_like
from kernels.selective_scan.forward_kernels import carry_kernel, selective_scan_fwd_kernel
from kernels.selective_scan.workspace import workspace

# One warp a program; not measured on a GPU yet. 64 channels are two a thread: independent work that hides
# latencies with few warps, and B and C are loaded once for both. 16 states of them and their rates take 64
# registers; 208 in all leave nine warps to a multiprocessor, and with the assembler's own choice some spill.
CONFIG = {"BLOCK_D": 64, "AHEAD": 2, "UNROLL": 4}
OPTIONS = {"num_warps": 1, "num_stages": 1, "maxnreg": 208}
CARRY = {"BLOCK": 128, "AHEAD": 8}
MAX_STATES = 16  # in registers at once; a larger dstate runs in parts that add up

# Splitting runs 16 of 20 exponentials twice and costs launches: worth it below half of the warps that a
# multiprocessor needs, which is two for each of its four schedulers.
WARPS_PER_SM = 8
MIN_SEGMENT = 32  # tokens; a program also loads and stores its states, about four tokens of work

# From here on (about 80 us of scan) converting B and C, two short launches, costs less than unpacking 16-bit
# numbers for every block of channels, which is one instruction in ten.
CONVERT_ELEMENTS = 1 << 24


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
            kernel[grid](**args, **OPTIONS)


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
    dstate = A.shape[1]
    D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
    convert = u.numel() >= CONVERT_ELEMENTS
    B, C = _rows(B, convert), _rows(C, convert)
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
        )  # fmt: skip
    return y, last_state, states, launches


def _plan_part(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, partial, y, last_state, states,
    cu_seqlens, reverse, every, segments,
):  # fmt: skip
    """The launches for states that fit in registers at once."""
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    config = _config(dim // ngroups)
    block_d = config["BLOCK_D"]
    programs = batch * ngroups * triton.cdiv(dim // ngroups, block_d)
    segments = segments or choose_segments(programs, seqlen, _sm_count(u.device))
    segment = triton.cdiv(seqlen, segments)
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
        PACK=min(_pack(B), _pack(C)), EVERY=every if states is not None else 0, **config,
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
    only_states |= {"TIME_STRIDES": args["TIME_STRIDES"][:2], "PACK": _pack(B), "EVERY": 0}
    carry = dict(
        A_ptr=A, first_ptr=first, steps_ptr=steps, states_ptr=carried, sequence_ptr=sequence,
        A_strides=A.stride(), first_strides=strides(first),
        segments=segments, dim=dim, dstate=dstate, **CARRY,
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


def choose_segments(programs, seqlen, sm_count):
    """Into how many pieces of time to cut, for `programs` blocks of channels on `sm_count` multiprocessors."""
    wanted = sm_count * WARPS_PER_SM
    if 2 * programs > wanted:
        return 1
    return max(1, min(triton.cdiv(wanted, programs), seqlen // MIN_SEGMENT))


def _sm_count(device):
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def _config(group_dim):
    if interpreted():  # there a step costs the same for any width
        return CONFIG | {"BLOCK_D": min(4096, triton.next_power_of_2(group_dim))}
    return CONFIG


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


def _pack(t):
    """How many states one load can take: as many as 64 bits hold, if every row of `t` is aligned so."""
    if t.stride(2) != 1:
        return 1
    offsets = (t.shape[2], t.stride(0), t.stride(1), t.stride(3), t.data_ptr() // t.element_size())
    pack = 8 // t.element_size()
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
            case = {"name": f"selective_scan_carry-{name}", "work": {}}
            if kernel is selective_scan_fwd_kernel:
                part = "states" if args["y_ptr"] is None else "fwd"
                case["name"] = f"selective_scan_{part}-{name}"
                case["work"] = {"tokens": args["UNROLL"], "channels": args["BLOCK_D"]}
            yield case | static_case(kernel, args) | OPTIONS


def static_case(kernel, args):
    """How Triton would specialise `kernel` for `args`: types, and values that become constants."""
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature, constexprs = {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = args[name]
        if name in constants or value is None:
            signature[name], constexprs[(i,)] = "constexpr", value
        elif isinstance(value, tuple):
            signature[name] = tuple("constexpr" if v == 1 else "i32" for v in value)
            constexprs |= {(i, j): 1 for j, v in enumerate(value) if v == 1}
        elif isinstance(value, int):
            signature[name] = "constexpr" if value == 1 else "i32"
            constexprs |= {(i,): 1} if value == 1 else {}
        else:
            signature[name] = f"*{_TYPES[value.dtype]}"
    return {"kernel": kernel, "signature": signature, "constexprs": constexprs}


_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}
