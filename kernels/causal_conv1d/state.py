"""The inputs that the next call needs."""

import torch


def last_inputs(x, initial_state, width):
    """The last `width - 1` inputs (batch, dim, width - 1), reaching back into `initial_state`, or zeros."""
    seqlen = x.shape[2]
    kept = x[..., max(0, seqlen - (width - 1)) :]
    older = width - 1 - kept.shape[2]
    if older == 0:
        return kept.clone(memory_format=torch.contiguous_format)
    if initial_state is None:
        return torch.nn.functional.pad(kept, (older, 0))
    return torch.cat([initial_state[..., seqlen:].to(x.dtype), kept], dim=2)
