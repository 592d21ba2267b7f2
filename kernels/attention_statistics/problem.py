"""The problem: its sizes, its inputs and its cost. Tests, benchmarks and profiles all start here."""

from dataclasses import dataclass

from kernels.causal_attention.problem import CausalAttentionProblem


@dataclass(frozen=True)
class AttentionStatisticsProblem:
    """The statistics of one attention; `str()` of it is its name in every table."""

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
        return str(self._attention())

    def inputs(self, dtype, device, seed=0):
        """Operands of `attention_statistics` by name."""
        operands = self._attention().inputs(dtype, device, seed)
        return {name: operands[name] for name in ("q", "k")}

    def flops(self):
        """Two products of headdim multiplications and additions per score that the mask keeps.

        What a key receives needs the row sums of its queries first: in O(seqlen) memory scores are formed twice.
        """
        return self._attention().flops()

    def bytes(self, dtype):
        """q and k read once, four float32 numbers a query and one a key and head written once."""
        queries, keys = self.seqlen_q or self.seqlen, self.seqlen
        read = self.nheads * queries + (self.nheads_kv or self.nheads) * keys
        written = self.nheads * (4 * queries + keys)
        return self.batch * (read * self.headdim * dtype.itemsize + 4 * written)

    def exps(self):
        """Results of the exponential unit: two per score that the mask keeps, since scores are formed twice."""
        return 2 * self._attention().exps()

    def _attention(self):
        return CausalAttentionProblem(**vars(self))
