"""A cache of keys and values whose memory is reserved once; import it inside functions, as it imports transformers.

transformers' `DynamicLayer` concatenates: every chunk of a prompt copies all keys and values before it, which is
quadratic in all, and holds two copies of a layer meanwhile. Its `StaticLayer` hands the whole buffer to attention, the
part that is still empty included, and relies on a mask. This one gives a view of what is there.
"""

from models.huggingface import transformers

DynamicLayer = transformers().cache_utils.DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values of a layer: (batch, nheads_kv, tokens so far, headdim) views of memory for `capacity` tokens."""

    def __init__(self, capacity):
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states, value_states):
        """Reserve the memory, in the shapes and dtypes of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._room = tuple(
            t.new_empty(*t.shape[:2], self.capacity, t.shape[3]) for t in (key_states, value_states)
        )
        self.keys, self.values = (room[:, :, :0] for room in self._room)
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Append; returns the views of all that is there. ValueError beyond the capacity."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity:,} tokens and was given {end:,}; reserve more"
            )
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def reserved_cache(config, capacity):
    """transformers' cache for a model of `config`, with `ReservedLayer` where it would have grown without bound."""
    cache = transformers().DynamicCache(config=config)
    cache.layers = [
        ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
