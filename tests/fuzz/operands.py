"""Operands of every public operator: right ones of any small shape, dtype and strides, and wrong ones."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

import kernels

SMALL = st.integers(1, 5)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Call:
    """Arguments of an operator by name, and the (shape, dtype) of each result; `moderate` operands give finite ones."""

    operator: str
    arguments: dict
    results: tuple
    moderate: bool = True

    def __repr__(self):
        shown = {n: _shown(v) for n, v in self.arguments.items()}
        return f"{self.operator}({', '.join(f'{n}={v}' for n, v in shown.items())})"


def _shown(value):
    if not isinstance(value, torch.Tensor):
        return repr(value)
    strides = value.stride() if value.layout == torch.strided else value.layout
    return f"<{value.dtype} {tuple(value.shape)} strides {strides} {value.device}>"


@st.composite
def tensors(draw, shape, dtype, low=-2.0, high=2.0, written=False):
    """A tensor of moderate values, contiguous or not."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = torch.rand(shape, dtype=torch.float64, generator=random) * (high - low) + low
    values = values.to(dtype)
    match draw(st.sampled_from(("plain", "plain", "transposed", "stepped", "padded", "expanded"))):
        case "transposed" if len(shape) > 1:
            return values.mT.contiguous().mT
        case "stepped":
            return torch.stack([values, values], dim=-1)[..., 0]
        case "padded":
            return torch.cat([values, values], dim=0)[shape[0] :]
        case "expanded" if not written:
            return values[:1].expand(shape)
    return values


def _state_of(dtype):
    return torch.promote_types(dtype, torch.float32)


@st.composite
def bounds(draw, tokens):
    inner = draw(st.lists(st.integers(0, tokens), max_size=3).map(sorted))
    return torch.tensor([0, *inner, tokens], dtype=torch.int32)


@st.composite
def groups(draw, batch, dim, dstate, seqlen, dtype):
    """B or C, with or without groups."""
    ngroups = draw(st.sampled_from([None, *(g for g in range(1, dim + 1) if dim % g == 0)]))
    tail = () if seqlen is None else (seqlen,)
    shape = (batch, dstate, *tail) if ngroups is None else (batch, ngroups, dstate, *tail)
    return draw(st.tuples(tensors(shape, dtype), tensors(shape, dtype)))


maybe = lambda strategy: st.none() | strategy


@st.composite
def steps(draw, shape, dtype, dim):
    """(delta, its bias, softplus): without the softplus not below zero, where the recurrence grows exponentially."""
    softplus = draw(st.booleans())
    delta = draw(tensors(shape, dtype, -1.0 if softplus else 0.0, 1.0))
    bias = draw(maybe(tensors((dim,), torch.float32, -2.0 if softplus else 0.0, 2.0)))
    return delta, bias, softplus


@st.composite
def selective_scan(draw, floats=FLOATS):
    batch, dim, seqlen, dstate = (draw(SMALL) for _ in range(4))
    dtype, other = draw(st.sampled_from(floats)), draw(st.sampled_from(floats))
    cu_seqlens = draw(maybe(bounds(seqlen))) if batch == 1 else None
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    B, C = draw(groups(batch, dim, dstate, seqlen, other))
    last, every = draw(st.booleans()), draw(maybe(st.integers(1, 6)))
    state = _state_of(dtype)
    results = [((batch, dim, seqlen), dtype)]
    results += [((sequences, dim, dstate), state)] if last else []
    results += [((batch, seqlen // every, dim, dstate), state)] if every else []
    delta, delta_bias, softplus = draw(steps((batch, dim, seqlen), other, dim))
    arguments = {
        "u": draw(tensors((batch, dim, seqlen), dtype)),
        "delta": delta,
        "A": draw(tensors((dim, dstate), torch.float32, -2.0, -0.1)),
        "B": B, "C": C,
        "D": draw(maybe(tensors((dim,), torch.float32))),
        "z": draw(maybe(tensors((batch, dim, seqlen), dtype))),
        "delta_bias": delta_bias,
        "delta_softplus": softplus,
        "initial_state": draw(maybe(tensors((sequences, dim, dstate), torch.float32))),
        "return_last_state": last, "reverse": draw(st.booleans()), "cu_seqlens": cu_seqlens, "return_states": every,
    }  # fmt: skip
    return Call("selective_scan", arguments, tuple(results))


@st.composite
def selective_state_update(draw, floats=FLOATS):
    batch, dim, dstate = (draw(SMALL) for _ in range(3))
    dtype = draw(st.sampled_from(floats))
    B, C = draw(groups(batch, dim, dstate, None, dtype))
    state = draw(tensors((batch, dim, dstate), draw(st.sampled_from(floats)), written=True))
    dt, dt_bias, softplus = draw(steps((batch, dim), dtype, dim))
    arguments = {
        "state": state,
        "x": draw(tensors((batch, dim), dtype)), "dt": dt,
        "A": draw(tensors((dim, dstate), torch.float32, -2.0, -0.1)), "B": B, "C": C,
        "D": draw(maybe(tensors((dim,), torch.float32))), "z": draw(maybe(tensors((batch, dim), dtype))),
        "dt_bias": dt_bias, "dt_softplus": softplus,
    }  # fmt: skip
    return Call("selective_state_update", arguments, (((batch, dim), dtype),))


@st.composite
def causal_conv1d(draw, floats=FLOATS):
    batch, dim, seqlen, width = (
        draw(SMALL),
        draw(SMALL),
        draw(st.integers(1, 9)),
        draw(st.integers(2, 8)),
    )
    dtype = draw(st.sampled_from(floats))
    cu_seqlens = draw(maybe(bounds(seqlen))) if batch == 1 else None
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    last = draw(st.booleans())
    results = [((batch, dim, seqlen), dtype)] + (
        [((sequences, dim, width - 1), dtype)] if last else []
    )
    arguments = {
        "x": draw(tensors((batch, dim, seqlen), dtype)), "weight": draw(tensors((dim, width), dtype)),
        "bias": draw(maybe(tensors((dim,), dtype))),
        "initial_state": draw(maybe(tensors((sequences, dim, width - 1), dtype))),
        "return_final_state": last, "activation": draw(st.sampled_from((None, "silu"))), "cu_seqlens": cu_seqlens,
    }  # fmt: skip
    return Call("causal_conv1d", arguments, tuple(results))


@st.composite
def causal_conv1d_update(draw, floats=FLOATS):
    batch, dim, width = draw(SMALL), draw(SMALL), draw(st.integers(2, 8))
    dtype = draw(st.sampled_from(floats))
    held = width - 1 + draw(st.integers(0, 2))
    arguments = {
        "x": draw(tensors((batch, dim), dtype)), "conv_state": draw(tensors((batch, dim, held), dtype, written=True)),
        "weight": draw(tensors((dim, width), dtype)), "bias": draw(maybe(tensors((dim,), dtype))),
        "activation": draw(st.sampled_from((None, "silu"))),
    }  # fmt: skip
    return Call("causal_conv1d_update", arguments, (((batch, dim), dtype),))


@st.composite
def _queries_and_keys(draw, floats):
    batch, kv, seqlen_q, headdim = (
        draw(SMALL),
        draw(st.integers(1, 3)),
        draw(SMALL),
        draw(st.integers(1, 16)),
    )
    nheads, seqlen_k = (
        kv * draw(st.integers(1, 3)),
        seqlen_q + draw(st.integers(0, 4)),
    )
    dtype = draw(st.sampled_from(floats))
    q = draw(tensors((batch, nheads, seqlen_q, headdim), dtype))
    return q, draw(tensors((batch, kv, seqlen_k, headdim), dtype))


@st.composite
def causal_attention(draw, floats=FLOATS):
    q, k = draw(_queries_and_keys(floats))
    cu_seqlens = (
        draw(maybe(bounds(q.shape[2]))) if q.shape[0] == 1 and q.shape[2] == k.shape[2] else None
    )
    lse = draw(st.booleans())
    results = [(tuple(q.shape), q.dtype)] + (
        [(tuple(q.shape[:3]), _state_of(q.dtype))] if lse else []
    )
    arguments = {
        "q": q, "k": k, "v": draw(tensors(tuple(k.shape), q.dtype)),
        "softmax_scale": draw(st.sampled_from((None, 0.5, 1, -1.0, 0))), "return_lse": lse, "cu_seqlens": cu_seqlens,
    }  # fmt: skip
    return Call("causal_attention", arguments, tuple(results))


@st.composite
def attention_statistics(draw, floats=FLOATS):
    q, k = draw(_queries_and_keys(floats))
    positions = None
    if draw(st.booleans()):
        at = draw(
            st.lists(st.integers(0, k.shape[2] - 1), min_size=q.shape[2], max_size=q.shape[2])
        )
        positions = torch.tensor(sorted(at))
    rows, state = tuple(q.shape[:3]), _state_of(q.dtype)
    arguments = {
        "q": q, "k": k, "softmax_scale": draw(st.sampled_from((None, 0.5, 1, -1.0, 0))),
        "top_k": draw(st.integers(1, 12)), "span_threshold": draw(st.sampled_from((0.01, 0.5, 0.999))),
        "positions": positions,
    }  # fmt: skip
    results = (*((rows, state) for _ in range(4)), ((*rows[:2], k.shape[2]), state))
    return Call("attention_statistics", arguments, results)


@st.composite
def scan_statistics(draw, floats=FLOATS):
    batch, dim, seqlen, dstate = (draw(SMALL) for _ in range(4))
    dtype, level = (
        draw(st.sampled_from(floats)),
        draw(st.sampled_from(("state", "state", "channel"))),
    )
    B, C = draw(groups(batch, dim, dstate, seqlen, dtype))
    some = lambda n: maybe(
        st.lists(st.integers(0, n - 1), min_size=1, max_size=4).map(torch.tensor)
    )
    rows = draw(some(seqlen)) if level == "channel" else None
    channels = draw(some(dim)) if level == "channel" else None
    count = lambda t, n: n if t is None else len(t)
    shape = (
        (batch, dstate, seqlen)
        if level == "state"
        else (batch, count(channels, dim), count(rows, seqlen))
    )
    delta, delta_bias, softplus = draw(steps((batch, dim, seqlen), dtype, dim))
    arguments = {
        "delta": delta,
        "A": draw(tensors((dim, dstate), torch.float32, -2.0, -0.1)), "B": B, "C": C,
        "delta_bias": delta_bias, "delta_softplus": softplus,
        "top_k": draw(st.integers(1, 12)), "span_threshold": draw(st.sampled_from((0.01, 0.5, 0.999))),
        "level": level, "rows": rows, "channels": channels,
    }  # fmt: skip
    return Call("scan_statistics", arguments, ((shape, _state_of(dtype)),) * 4)


@st.composite
def ssd_scan(draw, floats=FLOATS):
    batch, seqlen, headdim, dstate, ngroups = (draw(SMALL) for _ in range(5))
    nheads = ngroups * draw(st.integers(1, 2))
    dtype, last = draw(st.sampled_from(floats)), draw(st.booleans())
    states = (batch, nheads, headdim, dstate)
    results = [((batch, seqlen, nheads, headdim), dtype)] + (
        [(states, _state_of(dtype))] if last else []
    )
    grouped = tensors((batch, seqlen, ngroups, dstate), dtype)
    dt, dt_bias, softplus = draw(steps((batch, seqlen, nheads), dtype, nheads))
    arguments = {
        "x": draw(tensors((batch, seqlen, nheads, headdim), dtype)),
        "dt": dt,
        "A": draw(tensors((nheads,), torch.float32, -2.0, -0.1)), "B": draw(grouped), "C": draw(grouped),
        "D": draw(maybe(tensors((nheads,), torch.float32))),
        "dt_bias": dt_bias, "dt_softplus": softplus,
        "initial_state": draw(maybe(tensors(states, torch.float32))), "return_last_state": last,
    }  # fmt: skip
    return Call("ssd_scan", arguments, tuple(results))


OPERATORS = {
    function.__name__: function
    for function in (
        selective_scan, selective_state_update, causal_conv1d, causal_conv1d_update, causal_attention,
        attention_statistics, scan_statistics, ssd_scan,
    )
}  # fmt: skip

HUGE = 10**400  # more than a float holds
SCALARS = st.sampled_from(
    (None, True, 0, -1, 1, 10**12, HUGE, 0.5, float("nan"), float("inf"), "", "silu", [], {}, object, 1j)
)  # fmt: skip


@st.composite
def broken(draw, calls, floats=FLOATS):
    """A call with one or two arguments changed, mostly into wrong ones."""
    call = draw(calls)
    arguments = dict(call.arguments)
    for name in draw(
        st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True)
    ):
        value = arguments[name]
        if isinstance(value, torch.Tensor) and draw(st.integers(0, 4)):
            arguments[name] = draw(_changed(value, floats))
        else:
            arguments[name] = draw(SCALARS)
    return replace(call, arguments=arguments, moderate=False)


@st.composite
def _changed(draw, t, floats):
    """A tensor that differs from `t` in one respect."""
    axis = draw(st.integers(0, t.dim() - 1)) if t.dim() else 0
    changes = ["rank", "flat", "scalar", "dtype", "float", "device", "sparse", "gradient"]
    if t.dim():
        changes += ["longer", "shorter", "empty", "values", "expanded"]
    match draw(st.sampled_from(changes)):
        case "rank":
            return t.unsqueeze(0)
        case "flat":
            return t.reshape(-1)
        case "scalar":
            return torch.zeros((), dtype=t.dtype)
        case "dtype":
            return t.to(draw(st.sampled_from(OTHERS)))
        case "float":
            return t.to(draw(st.sampled_from(floats)))
        case "device":
            return t.to("meta")
        case "sparse":
            return t.to_sparse()
        case "gradient":
            return t.clone().requires_grad_() if t.is_floating_point() else t.clone()
        case "longer":
            return torch.cat([t, t], axis)
        case "shorter":
            return t.narrow(axis, 0, t.shape[axis] - 1)
        case "empty":
            return t.narrow(axis, 0, 0)
        case "expanded":
            return t.narrow(axis, 0, 1).expand(t.shape) if t.shape[axis] else t
        case "values":
            wild = draw(
                st.sampled_from((float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-40))
            )
            if not t.is_floating_point():
                wild = draw(st.sampled_from((-1, 2**31 - 1, -(2**31))))
            return torch.full(t.shape, wild, dtype=torch.float64).to(t.dtype)


def run(call, impl):
    """What the operator returns, as a tuple."""
    found = getattr(kernels, call.operator)(**call.arguments, impl=impl)
    return found if isinstance(found, tuple) else (found,)
