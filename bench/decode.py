"""One decoded token at a context of exactly seqlen tokens, again and again.

The model reads seqlen tokens under the cell's own implementation, which is not timed, into a `DynamicCache` of
transformers. The work is the forward of the token that follows, one for every row. `reset`, outside of the timed
region, puts the cache back: LLaMA's is cropped by the token, Mamba's states are written back from copies. So every
run decodes the same token at the same position from the same cache; nothing grows or drifts. One token is decoded and
reset before the first that counts, so that the parity gate sees a cache that `reset` has put back.

What is timed is decoding as transformers does it: a `DynamicCache` grows by concatenation, so a token of LLaMA also
copies the whole cache, under every implementation alike. The energy of a token includes `reset`.
"""

from bench.forward import Work, hidden_states
from bench.memory import storage_bytes
from kernels.implementations import recording
from models.chunked import cache_argument, cache_tensors
from models.huggingface import transformers


class DecodedToken(Work):
    """Decodes the last token of `ids` with a cache of those before it.

    Args:
        model: bound to an implementation, without gradients.
        ids: (batch, seqlen + 1) int64 on the device.
    """

    def __init__(self, model, ids):
        self.model, self.token = model, ids[:, -1:]
        self.cache = transformers().DynamicCache(config=model.config)
        self._read(ids[:, :-1])
        self.cache_bytes = self.held()
        # on the host, so that copies are in no peak of a GPU
        self._states = [
            (states, key, state.to("cpu", copy=True))
            for states in _fixed_states(self.cache)
            for key, state in states.items()
        ]
        self()
        self.reset()

    def __call__(self):
        return self._read(self.token)

    def outputs(self):
        """Hidden states after the final norm (batch, 1, hidden) and logits (batch, vocabulary) of the token."""
        with recording() as kernels, hidden_states(self.model) as found:
            logits = self()
        return found[-1], logits[:, -1], dict(kernels)

    def reset(self):
        """Take the token out of the cache."""
        for layer in self.cache.layers:
            if getattr(layer, "keys", None) is not None:
                layer.crop(-1)
        for states, key, before in self._states:
            states[key].copy_(before)

    def held(self):
        """Bytes behind the cache right now."""
        return storage_bytes(cache_tensors(self.cache))

    def _read(self, ids):
        cache = {cache_argument(type(self.model)): self.cache}
        return self.model(ids, use_cache=True, logits_to_keep=1, **cache).logits


def _fixed_states(cache):
    """The dictionaries of states that a token overwrites: convolution and recurrence, layer by layer."""
    names = ("conv_states", "recurrent_states")
    return [
        getattr(layer, name) for layer in cache.layers for name in names if hasattr(layer, name)
    ]
