"""Our attention under any transformers model: `import kernels.huggingface`, then `attn_implementation="crossover"`.

    import kernels.huggingface
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="crossover")

`crossover` computes with the Triton kernels; `crossover-torch`, `crossover-cpu`, `crossover-cuda` and
`crossover-reference` with the other implementations. Each adds two entries to transformers and changes none.

Handled are causal masks, padding on the left or right, packed sequences (position_ids that restart, or `cu_seq_lens_q`
as `DataCollatorWithFlattening` gives it) and growing caches. Sliding windows that are shorter than the sequence, soft
caps, sinks, dropout, static caches and attention weights are refused with one clear error. No mask of
seqlen x seqlen is ever made.
"""

from functools import partial

import torch

from kernels.causal_attention.op import causal_attention
from kernels.clash import clash
from kernels.implementations import IMPLEMENTATIONS

if wrong := clash():
    raise ImportError(wrong)

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function


def attend(module, query, key, value, attention_mask, *, scaling=None, impl, **kwargs):
    """The function that transformers' attention layers call.

    Args:
        query: (batch, nheads, seqlen_q, headdim) view; key, value: (batch, nheads_kv, seqlen_k, headdim).
        attention_mask: what `sequences` returned.

    Returns:
        o (batch, seqlen_q, nheads, headdim), and None for the weights.
    """
    _check(module, key, impl, **kwargs)
    if attention_mask is not None and attention_mask.dim() > 1:
        got = tuple(attention_mask.shape)
        raise ValueError(
            f"{_NAME} applies the causal mask itself, got one of shape {got}; use 'hf' or 'sdpa'"
        )
    attention = partial(causal_attention, softmax_scale=scaling, impl=impl)
    packed = kwargs.get("cu_seq_lens_q")
    if packed is not None and query.shape[2] == key.shape[2]:
        o = _packed(attention, query, key, value, packed)
    elif attention_mask is None:
        o = attention(query, key, value)
    elif query.shape[2] == key.shape[2]:
        o = _packed(attention, query, key, value, attention_mask)
    else:
        rows = zip(
            query.split(1), key.split(1), value.split(1), attention_mask.tolist(), strict=True
        )
        o = torch.cat([attention(q, k[:, :, n:], v[:, :, n:]) for q, k, v, n in rows])
    return o.transpose(1, 2), None


def _packed(attention, query, key, value, cu_seqlens):
    """Attention within the sequences of all rows, laid end to end."""
    batch, _, seqlen, _ = query.shape
    # (batch, nheads, seqlen, headdim) -> (1, nheads, batch * seqlen, headdim): a view of token-major memory
    q, k, v = (t.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for t in (query, key, value))
    o = attention(q, k, v, cu_seqlens=cu_seqlens.to(torch.int32))
    return o[0].transpose(0, 1).unflatten(0, (batch, seqlen)).transpose(1, 2)


def sequences(
    batch_size, q_length, kv_length, q_offset=0, kv_offset=0, *,
    mask_function=causal_mask_function, attention_mask=None, use_vmap=False, device="cpu", **kwargs,
):  # fmt: skip
    """transformers' hook that makes masks: here, where sequences begin.

    Returns:
        None if every query sees every key before it. Else, without a cache, the bounds (n + 1,) int32 of the
        sequences of all rows laid end to end; with one, the first key (batch,) of each row, on the CPU.

    Raises:
        ValueError: the mask is not causal attention within sequences.
    """
    if isinstance(q_offset, torch.Tensor) or q_offset + q_length != kv_length:
        raise ValueError(
            f"{_NAME} needs a cache that grows and forgets nothing, such as DynamicCache; got one of {kv_length} keys"
        )
    plain = mask_function is causal_mask_function
    if attention_mask is None and plain:
        return None
    if torch.compiler.is_compiling():
        return _while_compiling(q_length, mask_function, attention_mask, device)
    position = torch.arange(q_length, device=device) + q_offset
    starts = torch.zeros(batch_size, q_length, dtype=torch.int64, device=device)
    if attention_mask is not None:
        starts[:] = _first_token(attention_mask[:, :kv_length])[:, None]
    if not plain:
        if use_vmap:
            raise ValueError(f"{_NAME} applies the causal mask alone; use 'hf' or 'sdpa'")
        starts = torch.maximum(starts, _starts(mask_function, position, batch_size))
    if not starts.any():
        return None
    if q_length < kv_length:
        if (starts != starts[:, -1:]).any():
            raise ValueError(f"{_NAME} takes packed sequences only without a cache")
        return starts[:, -1].cpu()
    begins = position[None] == starts.clamp(max=q_length)
    begins[:, 0] = True  # what lies before the first token of a row, and the rows themselves
    bounds = begins.flatten().nonzero()[:, 0]
    return torch.cat([bounds, bounds.new_tensor([begins.numel()])]).to(torch.int32)


def _first_token(mask):
    """(batch,) how many padded tokens each row begins with; those at its end need nothing, no token sees them."""
    mask = mask.bool()
    first = torch.where(mask.any(1), mask.int().argmax(1), 0)
    last = mask.shape[1] - mask.flip(1).int().argmax(1)
    if bool((mask.sum(1) != torch.where(mask.any(1), last - first, 0)).any()):
        raise ValueError(
            f"{_NAME} takes padding at the ends of a row, got an attention_mask with holes"
        )
    return first


def _starts(mask_function, position, batch_size):
    """(batch, seqlen_q) the first key that each query sees, from a mask function that is causal within sequences."""
    rows = torch.arange(batch_size, device=position.device)[:, None]
    sees = lambda keys: mask_function(rows, rows.new_zeros(1, 1), position[None], keys)
    before = (position - 1).clamp(min=0)[None]
    begins = ~sees(before) | (position == 0)[None]
    starts = torch.where(begins, position[None], 0).cummax(1).values
    outside = (starts - 1).clamp(min=0)
    wrong = sees((position + 1).clamp(max=position[-1])[None]) & (position < position[-1])[None]
    wrong = wrong | ~sees(starts) | (sees(outside) & (starts > 0))
    if bool(wrong.any()):
        raise ValueError(
            f"{_NAME} computes causal attention within sequences, got a mask of another shape (a sliding window "
            "shorter than the sequence, for instance); use 'hf' or 'sdpa'"
        )
    return starts


def _while_compiling(q_length, mask_function, attention_mask, device):
    """Values cannot be looked at while a graph is traced: what is not plainly causal fails when the graph runs."""
    if attention_mask is not None:
        raise ValueError(
            f"{_NAME} takes no attention_mask under torch.compile; give rows of equal length"
        )
    position = torch.arange(1, q_length, device=device)[None]
    zero = position.new_zeros(1, 1)
    if q_length > 1:
        torch._assert_async(
            mask_function(zero, zero, position, position - 1).all(),
            f"{_NAME}: under torch.compile packed sequences need cu_seq_lens_q",
        )
    return None


def _check(
    module, key, impl, dropout=0.0, is_causal=None, sliding_window=None, softcap=None, s_aux=None,
    output_attentions=False, **kwargs,
):  # fmt: skip
    """Refuse what the operator does not compute."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    what = ""
    if dropout:
        what = f"no attention dropout, got {dropout}; set config.attention_dropout to 0"
    elif not causal:
        what = "causal attention only"
    elif sliding_window is not None and key.shape[2] > sliding_window:
        what = f"no sliding window, got {sliding_window} for {key.shape[2]} keys"
    elif softcap is not None:
        what = f"no soft cap, got {softcap}"
    elif s_aux is not None:
        what = "no attention sinks"
    elif output_attentions:
        what = "no attention weights to return"
    if what:
        raise ValueError(f"{_NAME} (impl {impl!r}) has {what}; or use 'hf' or 'sdpa'")


_NAME = "attn_implementation='crossover'"


def register(impl):
    """Make `impl` known to transformers; returns its name, `crossover-` and the implementation."""
    name = f"crossover-{impl}"
    AttentionInterface.register(name, partial(attend, impl=impl))
    AttentionMaskInterface.register(name, sequences)
    return name


for _impl in (*(impl for impl in IMPLEMENTATIONS if impl != "hf"), "reference"):
    register(_impl)
AttentionInterface.register("crossover", partial(attend, impl="triton"))
AttentionMaskInterface.register("crossover", sequences)
