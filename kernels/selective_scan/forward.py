"""`triton`: one warp carries the states of a block of channels through the sequence, in registers.

The state is a tuple of dstate vectors of BLOCK_D channels. Every sum over states therefore happens inside a
thread (no shuffle, no barrier, no shared memory), and B_t, C_t are scalars, loaded once for all channels of
the block. A warp runs serially and must hide its own latency: it loads u, delta and z some tokens ahead, B
one token ahead, and strides in time are compile-time constants, so that addresses cost nothing.

Where batch * dim cannot fill the machine, the sequence is split into segments. The kernel first runs without
outputs, to find the state that each segment ends in when it starts from zero, and the sum of its step sizes;
`carry_kernel` chains them (the decay over a segment is exp(A * sum)); then the kernel runs every segment from
its true first state.
"""

import torch
import triton

from kernels.implementations import interpreted, note
from kernels.layout import empty_like
from kernels.selective_scan.forward_kernels import carry_kernel, selective_scan_fwd_kernel

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
    on) if they are 16-bit; all else is read in place, whatever its strides.
    """
    if cu_seqlens is not None or reverse or return_states:
        raise NotImplementedError(
            "selective_scan: impl 'triton' lacks cu_seqlens, reverse and return_states yet"
        )
    if u.dtype == torch.float64:
        raise NotImplementedError(
            "selective_scan: impl 'triton' computes in float32, got u in float64; use impl='torch'"
        )
    note("selective_scan", "triton.selective_scan_fwd")
    y, last_state, launches = plan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state
    )  # fmt: skip
    run(launches, u)
    return y, last_state, None


def run(launches, u):
    with torch.cuda.device_of(u):
        for kernel, grid, args in launches:
            kernel[grid](**args, **OPTIONS)


def plan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, segments=None):
    """Allocate the outputs and list the launches that fill them: (y, last_state, [(kernel, grid, arguments)]).

    `segments` overrides the choice of `choose_segments`.
    """
    batch, dim, _ = u.shape
    dstate = A.shape[1]
    D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
    convert = u.numel() >= CONVERT_ELEMENTS
    B, C = _rows(B, convert), _rows(C, convert)
    y = empty_like(u)
    last_state = torch.empty(batch, dim, dstate, dtype=torch.float32, device=u.device)
    if initial_state is not None:
        initial_state = initial_state[:, None]  # (batch, segment, dim, dstate)
    sums = empty_like(u, torch.float32) if dstate > MAX_STATES else None

    launches = []
    part = triton.cdiv(dstate, triton.cdiv(dstate, MAX_STATES))
    for first in range(0, dstate, part):
        states = slice(first, first + part)
        last = first + part >= dstate
        launches += _plan_part(
            u, delta, A[:, states], B[:, :, states], C[:, :, states],
            D if last else None, z if last else None, delta_bias, delta_softplus,
            None if initial_state is None else initial_state[..., states],
            sums if first else None, y if last else sums, last_state[:, None, :, states], segments,
        )  # fmt: skip
    return y, last_state, launches


def _plan_part(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, partial, y, last_state, segments
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

    def scan(grid, y, last, steps, first, C, D, z, partial):
        streams = [t for t in (u, delta, z, partial) if t is not None]
        return selective_scan_fwd_kernel, grid, dict(
            u_ptr=u, delta_ptr=delta, A_ptr=A, B_ptr=B, C_ptr=C, D_ptr=D, z_ptr=z,
            bias_ptr=delta_bias, first_ptr=first, partial_ptr=partial,
            y_ptr=y, last_ptr=last, steps_ptr=steps,
            u_strides=u.stride()[:2], delta_strides=delta.stride()[:2], A_strides=A.stride(),
            B_strides=B.stride()[:3], C_strides=None if C is None else C.stride()[:3],
            z_strides=None if z is None else z.stride()[:2],
            first_strides=None if first is None else first.stride(),
            y_strides=None if y is None else y.stride()[:2], last_strides=last.stride(),
            seqlen=seqlen, segment=segment, dim=dim, ngroups=ngroups,
            TIME_STRIDES=tuple(t.stride(2) for t in streams),
            Y_STEP=0 if y is None else y.stride(2), B_STEP=B.stride(3),
            C_STEP=0 if C is None else C.stride(3),
            SOFTPLUS=delta_softplus, RAGGED=dim // ngroups % block_d != 0, DSTATE=dstate,
            PACK=_pack(B) if C is None else min(_pack(B), _pack(C)), **config,
        )  # fmt: skip

    if segments == 1:
        return [scan((programs, 1), y, last_state, None, initial_state, C, D, z, partial)]
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=u.device)
    carried = new(batch, segments, dstate, dim)
    steps = new(batch, segments - 1, dim)
    states = carried.transpose(2, 3)
    carry = dict(
        A_ptr=A, first_ptr=initial_state, steps_ptr=steps, states_ptr=carried,
        A_strides=A.stride(), first_strides=None if initial_state is None else initial_state.stride(),
        segments=segments, dim=dim, dstate=dstate, **CARRY,
    )  # fmt: skip
    return [
        scan((programs, segments - 1), None, states, steps, None, None, None, None, None),
        (carry_kernel, (triton.cdiv(dim * dstate, CARRY["BLOCK"]), batch), carry),
        scan((programs, segments), y, last_state, None, states, C, D, z, partial),
    ]


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
    ragged = SelectiveScanProblem(8, 4096, 1000, 32, has_initial_state=True)
    for name, dtype, problem, segments in (
        ("fp32", torch.float32, long, 1),
        ("bf16-split", torch.bfloat16, long, 32),
        ("bf16-short", torch.bfloat16, short, 1),  # B and C as stored
        ("fp32-n32-ragged", torch.float32, ragged, 1),
    ):
        launches = plan(**problem.inputs(dtype, "meta"), segments=segments)[2]
        for kernel, _, args in launches[-1:] if problem is ragged else launches:
            case = {"name": f"selective_scan_carry-{name}", "work": {}}
            if kernel is selective_scan_fwd_kernel:
                part = "states" if args["y_ptr"] is None else "fwd"
                case["name"] = f"selective_scan_{part}-{name}"
                case["work"] = {"tokens": args["UNROLL"], "channels": args["BLOCK_D"]}
            yield case | _static_case(kernel, args) | OPTIONS


def _static_case(kernel, args):
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


_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
