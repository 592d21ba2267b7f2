"""`triton`: gradients of the scan. One warp carries the adjoint of a block of channels from last token to first.

Per channel and state, with a_t = exp(d_t A), dy'_t = dy_t silu(z_t), and g_t the gradient of the state after token t
(dlast_state enters after the last token):

    g_t = dy'_t C_t + a_{t+1} g_{t+1}                        dinitial_state = a_first g_first
    dB_t = sum_channels g_t d_t u_t                          dC_t = sum_channels dy'_t h_t
    du_t = d_t <g_t, B_t> + D dy'_t                          dD = sum_t dy'_t u_t
    dd_t = u_t <g_t, B_t> + <g_t, A a_t h_{t-1}>             dA = sum_t d_t g_t a_t h_{t-1}
    ddelta_t = dd_t sigmoid(delta_t + delta_bias)            ddelta_bias = sum_t ddelta_t
    dz_t = dy_t (<h_t, C_t> + D u_t) silu'(z_t)

(`cpu_backward.py` computes the same.)

The forward kept every CHECKPOINT-th state. A program takes the segments between them from the last to the first: it
takes the step sizes of a segment, runs forward through it, and stores the state before each chunk of TOKENS; then,
chunk by chunk backwards, it goes through the states GROUP by GROUP. Those of a chunk are recomputed into registers,
and the adjoint walks back over them. What belongs to a state (its decay rate, its adjoint, its sum for dA) waits in
scratch memory, what belongs to a token (d, d u, dy' and three sums over states) in registers: that many tokens are
few registers, any number of states is a loop, and it is short enough for the instruction cache.

Sums over states stay inside a thread. Sums over channels are two for each token and state. Lanes exchange parts of
what they hold, so that 32 sums cost 31 shuffles and each ends in a lane of its own; as lane i begins its group with
state i * GROUP // 32, and takes the others in exchanged order, the first rounds have nothing to select (`lanes.py`).
The sums go to memory by block of channels and are added up there: no atomics, the same bits every time.

Where batch * dim cannot fill the machine, the segments are shared out among programs; `adjoint_kernel` and the
forward's `carry_kernel` first find the adjoint that enters each share from its right.

Instructions per state, token and channel, with two channels or more a thread:

    a = exp(d A)        1 multiplication, 1 exponential         twice: on the way forward, and in the chunk
    a h, h = a h + ..   1 multiplication, 1 multiply-add        twice
    dy' h, g d u        2 multiply-adds into the sums over the channels of a thread
    <h, C>, g, <g, B>   3 multiply-adds                         z; the adjoint; du and ddelta
    g a h               1 multiplication; 2 multiply-adds into ddelta and dA
    a g                 1 multiplication
"""

import math

import torch
import torch.nn.functional as F
import triton

from kernels.implementations import interpreted, note
from kernels.layout import dense_like
from kernels.selective_scan.adjoint import adjoint_kernel
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.backward_kernels import selective_scan_bwd_kernel
from kernels.selective_scan.forward import CARRY, _sm_count, choose_segments
from kernels.selective_scan.forward_kernels import carry_kernel
from kernels.selective_scan.workspace import workspace
from kernels.specialise import TYPES, static_case
from kernels.tuning import configuration, using

# Not measured on a GPU yet. Sums over the channels of a thread are free: two channels cost less than one, and four less
# than two, with half of the programs. Longer chunks spare traffic of the second-level cache. STATES run at once on the
# way forward; WARPS_PER_SM as in `forward.py`. With GROUP 4 there are 5 issue slots fewer, and registers spill.
CONFIG = {
    "TOKENS": 4, "BLOCK_D": 128, "GROUP": 2, "STATES": 16, "ADJOINT_UNROLL": 2, "ADJOINT_BLOCK_D": 64,
    "WARPS_PER_SM": 8, "maxnreg": None,
}  # fmt: skip
MAX_STATES = 16  # in registers at once, in the adjoint alone


def selective_scan_backward_triton(
    dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens, reverse, checkpoints,
):  # fmt: skip
    """Gradients of `selective_scan_triton`; computes in float32.

    Args:
        dy, dlast_state: gradients of y, and of the last state or None.
        u to reverse: as in `selective_scan_ref`.
        checkpoints: (batch, seqlen // CHECKPOINT, dim, dstate), its states with return_states=CHECKPOINT.

    Returns:
        du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state: each `dense_like` its operand, or None.

    B and C are copied, in float32. Two workspaces take the most memory: partial sums of dB and dC, 8 bytes per token
    and state for every BLOCK_D channels; and what programs keep of a segment, about 900 bytes a channel and piece.
    """
    if u.dtype == torch.float64:
        raise NotImplementedError(
            "selective_scan: impl 'triton' computes gradients in float32, got u in float64; use impl='torch'"
        )
    note("selective_scan_backward", "triton.selective_scan_bwd")
    launches, finish = plan(
        dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
        cu_seqlens, reverse, checkpoints,
    )  # fmt: skip
    with torch.cuda.device_of(u):
        for kernel, grid, args in launches:
            kernel[grid](**args)
    return finish()


def plan(
    dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state,
    cu_seqlens, reverse, checkpoints, pieces=None,
):  # fmt: skip
    """Allocate, and list the launches.

    Args:
        pieces: among how many programs to share out the sequence, instead of the choice by the size of the machine.

    Returns:
        ([(kernel, grid, arguments)], a function that adds up partial sums and returns the gradients).
    """
    batch, dim, seqlen = u.shape
    ngroups, dstate = B.shape[1:3]
    group_dim = dim // ngroups
    packed = cu_seqlens is not None
    config = configuration(
        "selective_scan_bwd", default_configuration(group_dim, dstate, u.dtype, packed), u.device,
        same={"dtype": TYPES[u.dtype], "dstate": dstate, "packed": int(packed)},
        near={"channels": batch * dim, "seqlen": seqlen},
    )  # fmt: skip
    block_d, tokens = config["BLOCK_D"], config["TOKENS"]
    blocks = triton.cdiv(group_dim, block_d)
    programs = batch * ngroups * blocks
    segments = triton.cdiv(seqlen, CHECKPOINT)
    pieces = pieces or choose_segments(
        programs, seqlen, _sm_count(u.device), config["WARPS_PER_SM"]
    )
    piece = triton.cdiv(segments, min(pieces, segments))
    pieces = triton.cdiv(segments, piece)
    group = min(config["GROUP"], triton.next_power_of_2(dstate))
    padded = triton.cdiv(dstate, group) * group
    D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))

    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=u.device)
    du, ddelta, dz = (None if t is None else dense_like(t) for t in (u, delta, z))
    first = dfirst = None
    if initial_state is not None:  # channels inside, as threads hold them
        first = initial_state.transpose(1, 2).contiguous().transpose(1, 2)
        dfirst = torch.empty_like(first, dtype=torch.float32)
    rows = 3 * padded + 4 + CHECKPOINT + tokens + CHECKPOINT // tokens * padded
    shape = pieces, batch, ngroups, blocks, rows, block_d
    with workspace(
        "what programs keep of a segment", math.prod(shape), "a smaller batch needs less"
    ):
        scratch = new(*shape)
    shape = blocks, batch, ngroups, seqlen, 2 * padded
    with workspace("the sums of dB and dC", math.prod(shape), "a smaller batch needs less"):
        dBC = new(*shape)
    BC = _pairs(B, C, segments * CHECKPOINT, padded, reverse)

    owner, dlast = None, dlast_state
    if cu_seqlens is not None:
        owner = _owner(cu_seqlens, seqlen, reverse)
        if dfirst is not None:  # sequences without a token are not visited
            dfirst.zero_() if dlast_state is None else dfirst.copy_(dlast_state)
    if dlast is not None:  # that of the sequence with the last token, (batch, 1, dim, dstate)
        dlast = (dlast if owner is None else dlast.index_select(0, owner[-1:]))[:, None]

    strides = lambda t: None if t is None else t.stride()
    args = {
        "A_ptr": A, "BC_ptr": BC, "D_ptr": D, "bias_ptr": delta_bias, "owner_ptr": owner, "first_ptr": first,
        "dlast_ptr": dlast_state, "dfirst_ptr": dfirst, "scratch_ptr": scratch,
        "A_strides": A.stride(), "BC_strides": BC.stride()[:2], "first_strides": strides(first),
        "dlast_strides": strides(dlast_state), "dfirst_strides": strides(dfirst),
        "seqlen": seqlen, "piece": piece, "dim": dim, "group_dim": group_dim, "dstate": dstate,
        "tokens": piece * CHECKPOINT, "nothing": 0,
        "SOFTPLUS": delta_softplus, "RAGGED": group_dim % block_d != 0, "DSTATE": dstate, "PADDED": padded,
        "STATES": _at_once(padded, config["STATES"]), "CHECKPOINT": CHECKPOINT, "TOKENS": tokens, "GROUP": group,
        "BLOCK_D": block_d,
    }  # fmt: skip
    args |= _in_time(reverse, dy=dy, u=u, delta=delta, z=z, du=du, ddelta=ddelta, dz=dz)
    args |= _in_order(reverse, 1, checkpoint=checkpoints) | _in_order(reverse, 3, dBC=dBC)
    before, entering = [], dlast
    if pieces > 1:
        before, entering = _plan_adjoint(args, config, batch, ngroups, pieces, dlast)
    args |= _in_order(pieces > 1, 1, adjoint=entering)  # from the last piece to the first
    main = _only(selective_scan_bwd_kernel, args) | _options(config)
    launches = [*before, (selective_scan_bwd_kernel, (programs, pieces), main)]
    sums = scratch[..., 2 * padded : 3 * padded + 4, :]
    return launches, lambda: _add_up(
        A, B, C, D, delta_bias, initial_state, du, ddelta, sums, dBC, dz, dfirst
    )  # fmt: skip


def _plan_adjoint(args, config, batch, ngroups, pieces, dlast):
    """The launches that find what enters each piece from its right, and the tensor that holds it afterwards."""
    A, BC, owner = args["A_ptr"], args["BC_ptr"], args["owner_ptr"]
    dim, dstate = A.shape
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=A.device)
    carried, steps = new(batch, pieces, dstate, dim), new(batch, pieces - 1, dim)
    block_d = config["ADJOINT_BLOCK_D"]
    grid = batch * ngroups * triton.cdiv(args["group_dim"], block_d), pieces - 1
    launches = []
    part = triton.cdiv(dstate, triton.cdiv(dstate, MAX_STATES))
    for n in range(0, dstate, part):
        some = slice(n, min(n + part, dstate))
        dlast_part = None if args["dlast_ptr"] is None else args["dlast_ptr"][..., some]
        own = {
            "A_ptr": A[:, some], "BC_ptr": BC[:, :, :, some], "dlast_ptr": dlast_part,
            "adjoint_ptr": carried[:, :, some],
            "steps_ptr": steps, "DSTATE": some.stop - some.start, "RAGGED": args["group_dim"] % block_d != 0,
            "UNROLL": config["ADJOINT_UNROLL"], "BLOCK_D": block_d,
        }  # fmt: skip
        own = _only(adjoint_kernel, args | own)
        launches.append((adjoint_kernel, grid, own | {"num_warps": 1, "num_stages": 1}))
    carry = dict(
        A_ptr=A, first_ptr=dlast, steps_ptr=steps, states_ptr=carried,
        sequence_ptr=None if owner is None else _starts(owner, args["tokens"], pieces),
        A_strides=A.stride(), first_strides=None if dlast is None else dlast.stride(),
        segments=pieces, dim=dim, dstate=dstate, **CARRY, num_warps=1, num_stages=1,
    )  # fmt: skip
    launches.append((carry_kernel, (triton.cdiv(dim * dstate, CARRY["BLOCK"]), batch), carry))
    return launches, carried.transpose(2, 3)


def _at_once(padded, most):
    """How many states the way forward carries: at most so many, as many in each pass."""
    return next(n for n in range(min(padded, most), 0, -1) if padded % n == 0)


def _options(config):
    options = {"num_warps": 1, "num_stages": 1}  # a warp adds up its lanes
    return options | ({"maxnreg": config["maxnreg"]} if config["maxnreg"] else {})


def _only(kernel, args):
    return {name: args[name] for name in kernel.arg_names}


def _in_order(reverse, axis, **tensors):
    """Pointers and strides; in a reverse scan the pointer of what lies last on `axis`, and a negative stride there."""
    args = {}
    for name, t in tensors.items():
        strides = None if t is None else list(t.stride())
        if t is not None and reverse:
            t = t.narrow(axis, t.shape[axis] - 1, 1) if t.shape[axis] else t
            strides[axis] *= -1
        args |= {f"{name}_ptr": t, f"{name}_strides": None if t is None else tuple(strides)}
    return args


def _in_time(reverse, **tensors):
    """The same of tensors (..., seqlen), with the stride in time as a constant of its own."""
    args = {}
    for name, t in tensors.items():
        args |= _in_order(reverse, -1, **{name: t})
        strides = args[f"{name}_strides"] or (None,)
        args |= {f"{name}_strides": strides[:-1] or None, f"{name.upper()}_STEP": strides[-1]}
    return args


def _pairs(B, C, tokens, padded, reverse):
    """(batch, ngroups, tokens, padded, 2): B and C of a state side by side, in the order of the scan, then zeros."""
    batch, ngroups, dstate, seqlen = B.shape
    shape = batch, ngroups, tokens, padded, 2
    with workspace("B and C side by side", math.prod(shape), "a smaller batch needs less"):
        pairs = torch.zeros(shape, dtype=torch.float32, device=B.device)
    for i, t in enumerate((B, C)):
        t = t.transpose(2, 3)
        pairs[:, :, :seqlen, :dstate, i] = t.flip(2) if reverse else t
    return pairs


def _owner(cu_seqlens, seqlen, reverse):
    """The number of the packed sequence that holds each token, in the order of the scan; any bounds stay inside."""
    tokens = torch.arange(seqlen, dtype=torch.int32, device=cu_seqlens.device)
    owner = torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True, out_int32=True)
    owner.clamp_(max=len(cu_seqlens) - 2)
    return owner.flip(0) if reverse else owner


def _starts(owner, tokens, pieces):
    """(pieces,), from the last piece to the second: a number that rises after each in which a sequence starts."""
    starts = F.pad(owner[1:] != owner[:-1], (1, tokens * pieces - len(owner)))
    starts = starts.view(pieces, tokens).any(1).flip(0)
    return F.pad(starts[:-1].cumsum(0), (1, 0)).to(torch.int32)


def _add_up(A, B, C, D, delta_bias, initial_state, du, ddelta, sums, dBC, dz, dfirst):
    """The gradients, from those of dBC and sums by piece of the sequence, batch, group, block, row and channel."""
    fill = lambda t, sums: None if t is None else dense_like(t).copy_(sums)
    group_dim, dstate = A.shape[0] // B.shape[1], A.shape[1]
    rows = sums.sum((0, 1)).transpose(2, 3).flatten(1, 2)[:, :group_dim].flatten(0, 1)
    dA, dbias, dD = rows[:, :dstate], rows[:, -2], rows[:, -1]
    dB, dC = dBC.sum(0).unflatten(-1, (-1, 2))[..., :dstate, :].transpose(2, 3).unbind(-1)
    return (
        du, ddelta, fill(A, dA), fill(B, dB), fill(C, dC), fill(D, dD), dz, fill(delta_bias, dbias),
        fill(initial_state, dfirst),
    )  # fmt: skip


def default_configuration(group_dim, dstate, dtype, packed=False):
    """The static choice, {name: value}: where more wants registers, less at once, so that none spill."""
    config = dict(CONFIG)
    if packed or dstate > MAX_STATES:
        config["TOKENS"] = 2
    elif dtype.itemsize == 2:
        config["STATES"] = 8
    if interpreted():  # there a step costs the same for any width
        width = min(4096, max(32, triton.next_power_of_2(group_dim)))
        config |= {"BLOCK_D": width, "ADJOINT_BLOCK_D": width}
    return config


# (TOKENS, BLOCK_D, GROUP) of which no register spills in a loop over tokens
SHAPES = ((4, 128, 2), (2, 128, 2), (2, 128, 4), (4, 64, 4), (4, 64, 2), (2, 64, 4))


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a SelectiveScanProblem, the static choice first; as `kernels.tuning` says.

    Shapes of a chunk with two counts of warps, then how far to split and the adjoint. The same for every GPU and dtype.
    """
    default = default_configuration(problem.dim // problem.ngroups, problem.dstate, dtype)
    found = [default]
    for tokens, block_d, group in SHAPES:
        shape = {"TOKENS": tokens, "BLOCK_D": block_d, "GROUP": group}
        found += [CONFIG | shape | {"WARPS_PER_SM": warps} for warps in (8, 4)]
    found += [default | {"WARPS_PER_SM": warps} for warps in (0, 12, 16)]
    found += [default | {"ADJOINT_BLOCK_D": width, "ADJOINT_UNROLL": 4} for width in (32, 64)]
    return tuple(one for i, one in enumerate(found) if one not in found[:i])


def static_candidates(target):
    """Each shape of a chunk for a typical problem, as `static_cases`, with its name and configuration."""
    from kernels.selective_scan.problem import SelectiveScanProblem

    problem = SelectiveScanProblem(8, 4096)
    for dtype in (torch.float32, torch.bfloat16):
        seen = []
        for config in candidates("selective_scan_bwd", problem, dtype, None):
            shape = {name: config[name] for name in ("TOKENS", "BLOCK_D", "GROUP", "STATES")}
            if shape in seen:
                continue
            seen.append(shape)
            name = f"{TYPES[dtype]}-t{config['TOKENS']}-d{config['BLOCK_D']}-g{config['GROUP']}-s{config['STATES']}"
            with using(selective_scan_bwd=config):
                ((kernel, _, args),) = _launches(problem, dtype, 1, False)
            case = _static_case(name, kernel, args)
            yield case | {"kernel_name": "selective_scan_bwd", "configuration": config}


def static_cases():
    """The default configurations, for `profiles.static`: what `plan` launches for typical problems."""
    from kernels.selective_scan.problem import SelectiveScanProblem

    full, ragged = (
        SelectiveScanProblem(8, 4096),
        SelectiveScanProblem(8, 4096, 1000, 32, has_initial_state=True),
    )
    for name, dtype, problem, pieces, packed in (
        ("fp32", torch.float32, full, 1, False),
        ("bf16-split", torch.bfloat16, full, 32, False),
        ("bf16-packed", torch.bfloat16, full, 1, True),
        ("fp32-n32-ragged", torch.float32, ragged, 1, False),
    ):
        for kernel, _, args in _launches(problem, dtype, pieces, packed):
            if kernel is not carry_kernel:
                yield _static_case(name, kernel, args)


def _static_case(name, kernel, args):
    part, work = "adjoint", {"tokens": args.get("UNROLL"), "channels": args["BLOCK_D"]}
    if kernel is selective_scan_bwd_kernel:
        part = "bwd"
        work = {"tokens": args["TOKENS"], "states": args["GROUP"], "channels": args["BLOCK_D"]}
    options = {name: args[name] for name in ("num_warps", "num_stages", "maxnreg") if name in args}
    case = {"name": f"selective_scan_{part}-{name}", "work": work} | static_case(kernel, args)
    # only the walk over the states of a chunk exchanges among lanes
    return case | options | ({"main": "SHFL"} if part == "bwd" else {})


def _launches(problem, dtype, pieces, packed):
    inputs = problem.inputs(dtype, "meta")
    batch, dim, seqlen = inputs["u"].shape
    states = torch.empty(batch, dim, problem.dstate, device="meta")
    checkpoints = torch.empty(
        batch, seqlen // CHECKPOINT, problem.dstate, dim, device="meta"
    ).transpose(2, 3)
    bounds = torch.empty(9, dtype=torch.int32, device="meta") if packed else None
    return plan(
        inputs["u"], states, **inputs, cu_seqlens=bounds, reverse=False, checkpoints=checkpoints, pieces=pieces
    )[0]  # fmt: skip
