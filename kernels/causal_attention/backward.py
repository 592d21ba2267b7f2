"""`triton`: gradients of causal attention, deterministic: sums stay inside of a program, there are no atomics.

Two kernels, one after the other: the first stores what the second needs, a number a query.
"""

import triton

from kernels.causal_attention.backward_kernels import (
    causal_attention_bwd_dkdv_kernel,
    causal_attention_bwd_dq_kernel,
)
from kernels.causal_attention.backward_tiles import DKDV, DKDV_TRIED, DQ, DQ_TRIED
from kernels.causal_attention.tiles import (
    candidates_of,
    check_operands,
    heads_per_section,
    precision,
    static_candidates_of,
    static_cases_of,
    tile_for,
    workspace,
)
from kernels.implementations import note
from kernels.layout import dense_like

DQ_KERNEL, DKDV_KERNEL = "causal_attention_bwd_dq", "causal_attention_bwd_dkdv"
TILES = {DQ_KERNEL: (DQ, DQ_TRIED), DKDV_KERNEL: (DKDV, DKDV_TRIED)}


def causal_attention_backward_triton(do, dlse, q, k, v, o, lse, softmax_scale, cu_seqlens=None):
    """dq, dk and dv, each `dense_like` its operand, from the results of the forward; repeats are bit-identical.

    Args:
        do: gradient of o, any strides.
        dlse: gradient of lse, float32, any strides, or None.
        q, k, v, softmax_scale, cu_seqlens: operands of the forward.
        o, lse: its results; lse is contiguous.
    """
    check_operands(q)
    note("causal_attention_backward", "triton.causal_attention_bwd")
    batch, nheads, seqlen_q, headdim = q.shape
    _, nheads_kv, seqlen_k, _ = k.shape
    groups = nheads // nheads_kv
    sequences = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    delta = workspace("delta of the gradients", q, batch, nheads, seqlen_q)
    dq, dk, dv = dense_like(q), dense_like(k), dense_like(v)
    kv_bytes = 2 * seqlen_k * headdim * q.element_size()
    q_bytes = 2 * groups * seqlen_q * headdim * q.element_size()
    sizes = (sequences, seqlen_q, seqlen_k)
    dlse_strides = None if dlse is None else dlse.stride()

    tile = tile_for(DQ, q, seqlen_k, DQ_KERNEL)
    section = groups * heads_per_section(batch * nheads_kv, kv_bytes)
    causal_attention_bwd_dq_kernel[(triton.cdiv(seqlen_q, tile["BLOCK_M"]) * batch * nheads,)](
        q, k, v, o, do, lse, dlse, cu_seqlens, dq, delta,
        q.stride(), k.stride(), v.stride(), o.stride(), do.stride(), dlse_strides, dq.stride(),
        softmax_scale, batch * nheads, section, nheads, groups, *sizes,
        HEADDIM=headdim, PRECISION=precision(q), **tile,
    )  # fmt: skip
    tile = tile_for(DKDV, q, seqlen_k, DKDV_KERNEL)
    section = heads_per_section(batch * nheads_kv, q_bytes)
    grid = (triton.cdiv(seqlen_k, tile["BLOCK_N"]) * batch * nheads_kv,)
    for dk_of, dv_of in ((None, dv), (dk, None)) if tile.pop("SPLIT", False) else ((dk, dv),):
        causal_attention_bwd_dkdv_kernel[grid](
            q, k, v, do, lse, delta, cu_seqlens, dk_of, dv_of,
            q.stride(), k.stride(), v.stride(), do.stride(), dk.stride(), dv.stride(),
            softmax_scale, batch * nheads_kv, section, nheads_kv, groups, *sizes,
            HEADDIM=headdim, PRECISION=precision(q), **tile,
        )  # fmt: skip
    return dq, dk, dv


def candidates(kernel, problem, dtype, generation):
    """Configurations to try for a `CausalAttentionProblem`, the default first."""
    return candidates_of(*TILES[kernel], problem, dtype, generation)


FLOATS = {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "softmax_scale": "fp32"}
COUNTS = ("heads", "heads_per_section", "groups", "sequences", "seqlen_q", "seqlen_k")
SCALARS = FLOATS | dict.fromkeys(COUNTS, "i32")
DQ_CASE = {
    "kernel": causal_attention_bwd_dq_kernel,
    "name": DQ_KERNEL,
    "operands": ("q", "k", "v", "o", "do", "dq"),
    "scalars": SCALARS | {"nheads": "i32"},
}
DKDV_CASE = {
    "kernel": causal_attention_bwd_dkdv_kernel,
    "name": DKDV_KERNEL,
    "operands": ("q", "k", "v", "do", "dk", "dv"),
    "scalars": SCALARS | {"nheads_kv": "i32"},
}
PACKED = {"cu_seqlens_ptr": "*i32"}
DLSE = {"dlse_ptr": "*fp32", "dlse_strides": ("i32", "i32", "i32")}


def static_cases():
    """The default configurations as `profiles.static` compiles them, each for the GPUs that they are meant for."""
    yield from static_cases_of(**DQ_CASE, tables=DQ, packed=PACKED | DLSE)
    for case in static_cases_of(**DKDV_CASE, tables=DKDV, packed=PACKED):
        yield from _launches(case)


def static_candidates(target):
    """The candidates as `profiles.static` compiles them."""
    yield from static_candidates_of(DQ_KERNEL, candidates, target, **DQ_CASE)
    for case in static_candidates_of(DKDV_KERNEL, candidates, target, **DKDV_CASE):
        yield from _launches(case)


def _launches(case):
    """A case of dk and dv, or one of each where the configuration splits them."""
    if not case.get("SPLIT"):
        yield case
        return
    for formed, absent in (("dk", "dv"), ("dv", "dk")):
        yield case | {
            "name": f"{case['name']}-{formed}",
            "signature": case["signature"] | {f"{absent}_ptr": "constexpr"},
            "constexprs": case["constexprs"] | {f"{absent}_ptr": None},
        }
