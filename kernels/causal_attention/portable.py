"""`torch`: scaled_dot_product_attention with the kernel of torch's choice, on any device."""

from kernels.causal_attention.sdpa import log_sum_exp, sdpa
from kernels.causal_attention.sequences import packed


@packed
def causal_attention_torch(q, k, v, softmax_scale, return_lse):
    """Operands and results as `causal_attention_ref`; lse, which torch keeps to itself, is a second pass."""
    o = sdpa(q, k, v, softmax_scale)
    return o, log_sum_exp(q, k, softmax_scale) if return_lse else None
