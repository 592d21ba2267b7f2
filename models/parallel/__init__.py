"""One sequence over several processes, each with a part of its tokens: a scan whose states, and an attention whose keys
and values, are exchanged by torch.distributed. Everything else of a model looks at one token and needs no exchange.

    ranks = Ranks.contiguous(seqlen, group)            # or Ranks.zigzag, which balances causal attention
    hidden = forward(model, ranks.take(ids), ranks, "triton")
"""

from models.parallel.forward import forward
from models.parallel.ranks import Ranks

__all__ = ["Ranks", "forward"]
