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
runs forward through a segment and stores the state before each chunk of TOKENS in a scratch memory that stays in the
second-level cache; then, chunk by chunk backwards and state by state, it recomputes the few states of the chunk into
registers and walks back over them. Sums over states stay inside a thread. Sums over channels, two for each token and
state, are made for all states at once: lanes exchange halves of what they hold, so that 32 sums cost 31 shuffles, and
each ends in a lane of its own. They go to memory by block of channels and are added up there: no atomics, the same
bits every time.

Where batch * dim cannot fill the machine, the segments are shared out among programs; `adjoint_kernel` and the
forward's `carry_kernel` first find the adjoint that enters each share from its right. More states than registers hold
run in parts that add up.
"""

import math

import torch
import torch.nn.functional as F
import triton

from kernels.implementations import interpreted, note
from kernels.layout import dense_like, is_token_major
from kernels.selective_scan.adjoint import adjoint_kernel
from kernels.selective_scan.autograd import CHECKPOINT
from kernels.selective_scan.backward_kernels import selective_scan_bwd_kernel
from kernels.selective_scan.forward import (
    CARRY,
    MAX_STATES,
    _pack,
    _rows,
    _sm_count,
    choose_segments,
    static_case,
)
from kernels.selective_scan.forward_kernels import carry_kernel
from kernels.selective_scan.workspace import workspace

# Not measured on a GPU yet. With 4 tokens a chunk there are 12 issue slots a token fewer, and registers spill.
CONFIG = {"TOKENS": 2, "BLOCK_D": 64}
OPTIONS = {"num_warps": 1, "num_stages": 1}
STATES_OF_MANY = (
    8  # at once, if they run in parts: 16 and the sums of other parts do not find registers
)
ADJOINT = {"UNROLL": 2, "BLOCK_D": 64}


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

    B and C are copied, as float32 rows, unless they are that. Two workspaces take the most memory: partial sums of dB
    and dC, 8 bytes per token and state for every 64 channels, and for dstate > 16 sums over states, 12 bytes per
    element of u.
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
            kernel[grid](**args, **OPTIONS)
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
    config = _config(dim // ngroups)
    blocks = triton.cdiv(dim // ngroups, config["BLOCK_D"])
    programs = batch * ngroups * blocks
    segments = triton.cdiv(seqlen, CHECKPOINT)
    pieces = pieces or choose_segments(programs, seqlen, _sm_count(u.device))
    piece = triton.cdiv(segments, min(pieces, segments))
    pieces = triton.cdiv(segments, piece)
    most = MAX_STATES if dstate <= MAX_STATES else STATES_OF_MANY
    part = triton.cdiv(dstate, triton.cdiv(dstate, most))
    parts = [slice(n, min(n + part, dstate)) for n in range(0, dstate, part)]
    D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))

    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=u.device)
    du, ddelta, dz = (None if t is None else dense_like(t) for t in (u, delta, z))
    dfirst = None if initial_state is None else dense_like(initial_state)
    dA = [
        new(batch, ngroups * blocks, pieces, some.stop - some.start, config["BLOCK_D"])
        for some in parts
    ]
    dD, dbias = (None if t is None else new(batch * pieces, dim) for t in (D, delta_bias))
    numbers = programs * pieces * (CHECKPOINT // config["TOKENS"] + 1) * part * config["BLOCK_D"]
    with workspace("the states between chunks", numbers, "a smaller batch needs less"):
        scratch = new(numbers)
    shape = len(parts), blocks, batch, ngroups, seqlen, 2 * triton.next_power_of_2(part)
    with workspace("the sums of dB and dC", math.prod(shape), "a smaller batch needs less"):
        dBC = new(*shape)
    partial = None
    if len(parts) > 1:
        with workspace(
            "sums over parts of the states", 3 * u.numel(), "a smaller batch needs less"
        ):
            partial = (
                new(3, batch, seqlen, dim).transpose(2, 3)
                if is_token_major(u)
                else new(3, *u.shape)
            )

    owner = None
    if cu_seqlens is not None:
        owner = _owner(cu_seqlens, seqlen, reverse)
        if dfirst is not None:  # sequences without a token are not visited
            dfirst.zero_() if dlast_state is None else dfirst.copy_(dlast_state)
    args = dict(
        seqlen=seqlen, dim=dim, group_dim=dim // ngroups, owner_ptr=owner, bias_ptr=delta_bias,
        scratch_ptr=scratch, piece=piece, nothing=0, SOFTPLUS=delta_softplus,
        RAGGED=dim // ngroups % config["BLOCK_D"] != 0, CHECKPOINT=CHECKPOINT, **config,
    )  # fmt: skip
    B_rows, C_rows = _rows(B, convert=True), _rows(C, convert=True)
    states = lambda t, some: None if t is None else t[..., some]
    launches = []
    for i, some in enumerate(parts):
        last = i == len(parts) - 1
        rows = {"B": B_rows[:, :, some], "C": C_rows[:, :, some]}
        pairs = _pairs(**rows)
        args |= {
            "A_ptr": A[:, some],
            "A_strides": A.stride(),
            "dA_ptr": dA[i],
            "DSTATE": some.stop - some.start,
        }
        args |= {"D_ptr": D, "ADD": i > 0, "PACK": min(_pack(t) for t in rows.values())}
        args |= _in_time(reverse, dy=dy, u=u, delta=delta, z=z, partial=partial, BC=pairs, **rows)
        args |= _in_time(
            reverse, du=du if last else None, ddelta=ddelta if last else None, dz=dz if last else None
        )  # fmt: skip
        args |= {"dD_ptr": dD if last else None, "dbias_ptr": dbias if last else None}
        args |= _in_order(reverse, 1, checkpoint=states(checkpoints, some))
        args |= {"CHECKPOINT_STEP": checkpoints.stride(3)}
        args |= _in_order(reverse, 3, dBC=dBC[i])
        for name, t in (("first", initial_state), ("dlast", dlast_state), ("dfirst", dfirst)):
            t = states(t, some)
            args |= {f"{name}_ptr": t, f"{name}_strides": None if t is None else t.stride()}
        launches += _plan_part(args, batch, programs, pieces, states(dlast_state, some))
    return launches, lambda: _add_up(
        A, B, C, D, delta_bias, du, ddelta, dA, dBC, dD, dz, dbias, dfirst
    )


def _plan_part(args, batch, programs, pieces, dlast_state):
    """The launches for states that fit in registers at once."""
    owner, dlast = args["owner_ptr"], dlast_state
    if (
        dlast is not None
    ):  # that of the sequence which holds the last token, (batch, 1, dim, dstate)
        dlast = (dlast if owner is None else dlast.index_select(0, owner[-1:]))[:, None]
    adjoint, before = dlast, []
    if pieces > 1:
        tokens, dim, dstate = args["piece"] * CHECKPOINT, args["dim"], args["DSTATE"]
        new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=args["A_ptr"].device)
        carried, steps = new(batch, pieces, dstate, dim), new(batch, pieces - 1, dim)
        own = dict(adjoint_ptr=carried, steps_ptr=steps, tokens=tokens, **ADJOINT)
        carry = dict(
            A_ptr=args["A_ptr"], first_ptr=dlast, steps_ptr=steps, states_ptr=carried,
            sequence_ptr=None if owner is None else _starts(owner, tokens, pieces),
            A_strides=args["A_strides"], first_strides=None if dlast is None else dlast.stride(),
            segments=pieces, dim=dim, dstate=dstate, **CARRY,
        )  # fmt: skip
        before = [
            (adjoint_kernel, (programs, pieces - 1), _only(adjoint_kernel, args | own)),
            (carry_kernel, (triton.cdiv(dim * dstate, CARRY["BLOCK"]), batch), carry),
        ]
        adjoint = carried.transpose(2, 3)
    strides = _in_order(pieces > 1, 1, adjoint=adjoint)  # carried from the last piece to the first
    main = _only(selective_scan_bwd_kernel, args | strides)
    return [*before, (selective_scan_bwd_kernel, (programs, pieces), main)]


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


def _pairs(B, C):
    """(batch, ngroups, dstate, seqlen) of 64 bits: B and C of a state side by side, states beside each other."""
    with workspace("B and C side by side", 2 * B.numel(), "a smaller batch needs less"):
        pairs = torch.empty(*B.transpose(2, 3).shape, 2, dtype=torch.float32, device=B.device)
    pairs[..., 0], pairs[..., 1] = B.transpose(2, 3), C.transpose(2, 3)
    return pairs.view(torch.int64)[..., 0].transpose(2, 3)


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


def _add_up(A, B, C, D, delta_bias, du, ddelta, dA, dBC, dD, dz, dbias, dfirst):
    """The gradients, from partial sums over batch, pieces of the sequence, and blocks of channels."""
    fill = lambda t, sums: None if t is None else dense_like(t).copy_(sums)
    total = lambda sums: None if sums is None else sums.sum(0)
    gradient_A, dB, dC = dense_like(A), dense_like(B), dense_like(C)
    group_dim, first = A.shape[0] // B.shape[1], 0
    for rates, rows in zip(dA, dBC, strict=True):
        size = rates.shape[3]
        some = slice(first, first + size)
        first += size
        # by group, block and channel
        rates = rates.sum((0, 2)).unflatten(0, (B.shape[1], -1)).transpose(2, 3)
        gradient_A[:, some] = rates.flatten(1, 2)[:, :group_dim].flatten(0, 1)
        rows = total(rows).unflatten(-1, (-1, 2))[..., :size, :].transpose(2, 3)
        dB[:, :, some], dC[:, :, some] = rows.unbind(-1)
    return (
        du, ddelta, gradient_A, dB, dC, fill(D, total(dD)), dz, fill(delta_bias, total(dbias)), dfirst
    )  # fmt: skip


def _config(group_dim):
    if interpreted():  # there a step costs the same for any width
        return CONFIG | {"BLOCK_D": min(4096, max(32, triton.next_power_of_2(group_dim)))}
    return CONFIG


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
            if kernel is carry_kernel:
                continue
            part = "adjoint" if kernel is adjoint_kernel else "bwd"
            last = args.get("du_ptr") is not None or part == "adjoint"
            work = {
                "tokens": args["UNROLL" if part == "adjoint" else "TOKENS"],
                "channels": args["BLOCK_D"],
            }
            yield {
                "name": f"selective_scan_{part}-{name}" + ("" if last else "-part"), "work": work,
                **static_case(kernel, args), **OPTIONS,
            }  # fmt: skip


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
