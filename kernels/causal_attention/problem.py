"""The problem: its sizes, its inputs and its cost. Tests, benchmarks and profiles all start here."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CausalAttentionProblem:
    """One attention; `str()` of it is its name in every table. Decoding is seqlen_q=1."""

    batch: int = 1
    nheads: int = 8
    seqlen: int = 2048  # of the keys
    headdim: int = 64
    nheads_kv: int | None = None  # nheads if None
    seqlen_q: int | None = None  # seqlen if None
    tokens_first: bool = (
        True  # memory (batch, seqlen, nheads, headdim), as a model's projection leaves it
    )

    def __str__(self):
        kv = f"-kv{self.nheads_kv}" if self.nheads_kv else ""
        queries = f"-q{self.seqlen_q}" if self.seqlen_q else ""
        return f"b{self.batch}-h{self.nheads}{kv}-l{self.seqlen}{queries}-d{self.headdim}"

    def inputs(self, dtype, device, seed=0):
        """Operands of `causal_attention` by name."""
        generator = torch.Generator(device).manual_seed(seed)

        def randn(nheads, seqlen):
            first, second = (seqlen, nheads) if self.tokens_first else (nheads, seqlen)
            shape = (self.batch, first, second, self.headdim)
            tensor = torch.randn(shape, generator=generator, device=device).to(dtype)
            return tensor.transpose(1, 2) if self.tokens_first else tensor

        nheads_kv = self.nheads_kv or self.nheads
        return {
            "q": randn(self.nheads, self.seqlen_q or self.seqlen),
            "k": randn(nheads_kv, self.seqlen),
            "v": randn(nheads_kv, self.seqlen),
        }

    def flops(self):
        """Two products of headdim multiplications and additions per score that the mask keeps."""
        return 4 * self.headdim * self._scores()

    def bytes(self, dtype):
        """q, k and v read once and o written once; with seqlen_q = 1, decoding, that is the cache and little else."""
        queries, keys = self.seqlen_q or self.seqlen, self.seqlen
        heads = 2 * self.nheads * queries + 2 * (self.nheads_kv or self.nheads) * keys
        return self.batch * heads * self.headdim * dtype.itemsize

    def exps(self):
        """Results of the exponential unit: one per score that the mask keeps."""
        return self._scores()

    def backward_flops(self):
        """Five products: the scores again, dp = do v', dv, dq and dk. A kernel that forms some twice does more."""
        return 10 * self.headdim * self._scores()

    def backward_bytes(self, dtype):
        """q, k, v, o, do and lse (float32) read once, dq, dk and dv written once; no gradient of lse."""
        queries, keys = self.seqlen_q or self.seqlen, self.seqlen
        heads = 4 * self.nheads * queries + 4 * (self.nheads_kv or self.nheads) * keys
        lse = 4 * self.nheads * queries
        return self.batch * (heads * self.headdim * dtype.itemsize + lse)

    def backward_exps(self):
        """Results of the exponential unit: the probability of every score is formed again, once."""
        return self._scores()

    def _scores(self):
        queries, keys = self.seqlen_q or self.seqlen, self.seqlen
        return (
            self.batch * self.nheads * (queries * (keys - queries) + queries * (queries + 1) // 2)
        )
